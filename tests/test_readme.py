"""The README's code runs, and its commands exist."""

import re

from PIL import Image

from tests.support import ROOT, write_run

README = (ROOT / "README.md").read_text()


BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_python_examples_print_what_they_say(capsys):
  blocks = [block for block in BLOCKS if "saol_jax.load" not in block]
  assert blocks
  for block in blocks:
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out.splitlines()
    promised = re.findall(r"print\(.*\)  # (\([\d, ]+\))", block)
    assert promised == printed


def test_predictor_example_runs_on_a_workdir(capsys, tmp_path, monkeypatch):
  (block,) = (block for block in BLOCKS if "saol_jax.load" in block)
  assert len([line for line in block.splitlines() if line]) <= 10
  monkeypatch.chdir(tmp_path)
  write_run(tmp_path / "runs" / "digits")
  Image.new("RGB", (40, 30), "red").save("a.jpg")
  Image.new("L", (7, 50)).save("b.png")
  exec(compile(block, "README.md", "exec"), names := {"__name__": "readme"})
  printed = capsys.readouterr().out.splitlines()
  sizes = [(30, 40), (50, 7), (60, 80)]
  assert printed[1::2] == [f"{size} {(5, *size)}" for size in sizes]
  assert [line.split()[0] in "0123456789" for line in printed[::2]] == [True] * 3
  height, width = sizes[-1]
  assert 0 <= names["y_min"] <= names["y_max"] <= height
  assert 0 <= names["x_min"] <= names["x_max"] <= width


def test_commands_name_files_and_targets_that_exist():
  makefile = (ROOT / "Makefile").read_text()
  targets = set(re.findall(r"\bmake\s+([\w-]+)", README))
  assert targets >= {"demo", "test", "test-processes", "test-parity"}
  for target in targets:
    assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
  for config in re.findall(r"--config=(configs/\w+\.py)", README):
    assert (ROOT / config).exists(), config


def test_files_of_the_tour_exist():
  tour = README.split("## How the pieces fit")[1].split("```")[1]
  names = re.findall(r"^\s+([\w./ ]+?)(?:  |$)", tour, re.MULTILINE)
  files = [name for line in names for name in line.split() if name.endswith((".py", "/"))]
  assert len(files) > 15
  for name in files:
    assert (ROOT / name).exists() or (ROOT / "saol_jax" / name).exists(), name
