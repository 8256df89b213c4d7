"""The examples do what they say."""

import pathlib
import shutil
import sys

import jax

from examples import own_loop
from tests.support import ROOT, TINY, run


def test_a_loop_of_ones_own(capsys):
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as users have it
    top1 = own_loop.main(num_steps=2, batch_size=8)
  assert set(top1) == {"SAOL", "GAP-FC"}
  assert all(0 <= value <= 1 for value in top1.values())
  printed = capsys.readouterr().out
  assert printed.startswith("step 2/2  consistency 0.")
  assert printed.count("\n") == 2


def test_a_recipe_of_ones_own(tmp_path):
  recipe = tmp_path / "mine.py"  # as a user has it, in a folder of his own
  shutil.copy(ROOT / "examples" / "own_recipe.py", recipe)
  fields = [f"--config.{name}={value}" for name, value in TINY.items()]
  main = [sys.executable, str(ROOT / "main.py"), f"--config={recipe}", f"--workdir={tmp_path}/run"]
  code, output = run([*main, *fields])
  assert code == 0, output
  assert "plain with head saol on digit_scenes" in output
  assert pathlib.Path(tmp_path / "run" / "checkpoints" / "12").is_dir()
