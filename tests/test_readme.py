"""The README's code runs, and its commands exist."""

import re

from tests.support import ROOT

README = (ROOT / "README.md").read_text()


def test_python_examples_print_what_they_say(capsys):
  blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
  assert blocks
  for block in blocks:
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out.splitlines()
    promised = re.findall(r"print\(.*\)  # (\([\d, ]+\))", block)
    assert promised == printed


def test_commands_name_files_and_targets_that_exist():
  makefile = (ROOT / "Makefile").read_text()
  for target in re.findall(r"\bmake (\w+)", README):
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
