import pathlib
import shlex
import sys

import pytest

from saol_jax import finish


def test_summary_holds_every_number_aligned():
  text = finish.summary(
    top1={("test", "SAOL"): 0.97214, ("test", "GAP-FC"): 1.0},
    seconds=252.4,
    images_per_second=1551.2,
    files={"workdir": pathlib.Path("runs/digits"), "curves": "runs/digits/curves.png"},
    next_commands=[("evaluate again", "python main.py --mode=evaluate")],
  )
  lines = text.splitlines()
  assert len(lines) < 20
  for wanted in (" 97.21 %", "100.00 %", "4 min 12 s", "1,551 images/s", "runs/digits/curves.png"):
    assert wanted in text
  assert "  python main.py --mode=evaluate" in lines
  assert "evaluate again" in text
  table = [
    line for line in lines if line.startswith("  ") and "#" not in line and "python" not in line
  ]
  column = table[0].index("97.21")
  assert table[1].index("100.00") == column - 1
  assert all(line[column - 2] == " " for line in table)
  assert not text.endswith("\n")


@pytest.mark.parametrize(
  ("seconds", "words"),
  [
    (0.2, "0 s"),
    (59.4, "59 s"),
    (59.6, "1 min 00 s"),
    (3599.7, "1 h 00 min"),
    (90061, "25 h 01 min"),
  ],
)
def test_summary_without_training_and_durations(seconds, words):
  text = finish.summary(
    top1={("test", "SAOL"): 0.5}, seconds=seconds, images_per_second=None, files={}
  )
  assert text.splitlines()[-1].endswith(f" {words}")
  assert "images/s" not in text
  assert "Next" not in text


def test_every_next_command_keeps_a_recipe_that_may_register_the_backbone(monkeypatch):
  argv = ["main.py", "--config", "my recipe.py", "--workdir=run", "--process_id=0"]
  monkeypatch.setattr(sys, "argv", argv)
  found = finish._next_commands(pathlib.Path("run"), True, False)
  commands = [shlex.split(command)[1:] for _, command in found]
  assert [command[:4] for command in commands] == [argv[:4]] * 3
  assert commands[-1][4:] == ["--mode=predict", "--images=FOLDER"]


def test_of_our_backbones_the_next_commands_need_the_workdir_alone(monkeypatch):
  monkeypatch.setattr(sys, "argv", ["main.py", "--config=r.py", "--config.seed=3", "--workdir=a b"])
  found = finish._next_commands(pathlib.Path("a b"), False, True)
  assert [shlex.split(command)[1:] for _, command in found] == [
    ["main.py", "--workdir=a b", "--mode=evaluate", "--config.evaluate.checkpoint=best"],
    ["main.py", "--workdir=a b", "--mode=predict", "--images=FOLDER"],
  ]
