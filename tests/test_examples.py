"""The examples do what they say."""

import math
import pathlib
import re
import shutil
import sys

import jax
import pytest

from examples import own_loop
from tests.support import ROOT, TINY, run


def test_a_loop_of_ones_own(capsys):
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as users have it
    top1 = own_loop.main(num_steps=2, batch_size=8)
  assert set(top1) == {"SAOL", "GAP-FC"}
  step, score = capsys.readouterr().out.splitlines()
  losses = re.findall(r"  (\w+) (\d\.\d{3})", step)
  assert [name for name, _ in losses] == ["consistency", "distillation", "mask", "spatial"]
  assert float(losses[-1][1]) == pytest.approx(math.log(10), abs=1)  # of ten classes, at the start
  assert score == "test top-1: " + ", ".join(f"{n} {100 * x:.1f} %" for n, x in top1.items())


def test_a_recipe_of_ones_own(tmp_path):
  recipe = tmp_path / "mine.py"  # as a user has it, in a folder of his own
  shutil.copy(ROOT / "examples" / "own_recipe.py", recipe)
  fields = [f"--config.{name}={value}" for name, value in TINY.items()]
  main = [sys.executable, str(ROOT / "main.py"), f"--config={recipe}", f"--workdir={tmp_path}/run"]
  code, output = run([*main, *fields])
  assert code == 0, output
  assert "plain with head saol on digit_scenes" in output
  assert pathlib.Path(tmp_path / "run" / "checkpoints" / "12").is_dir()
