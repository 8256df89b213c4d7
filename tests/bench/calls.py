"""Benchmarks as a user calls them, with sizes for which that takes seconds."""

import math
import subprocess
import sys
from importlib import metadata

import jax
from flax import nnx

from saol_jax import create_model
from tests.support import ROOT, run

BATCH, PIXELS, CLASSES, WIDTH = 4, 16, 5, 8
QUICK_COMPILATION = "--xla_backend_optimization_level=0"


def call(script: str, *arguments: str, timeout: float = 240) -> tuple[int, str]:
  path = str(ROOT / "benchmarks" / script)
  return run([sys.executable, "-W", "error:::saol_jax", path, *arguments], timeout=timeout)


def parameters(**options) -> int:
  """Of resnet8 with an output layer."""
  model = nnx.eval_shape(lambda: create_model("resnet8", CLASSES, rngs=nnx.Rngs(0), **options))
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def check_description(result: dict) -> None:
  """The result tells truly where it comes from."""
  head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
  assert result["commit"] == (head.stdout.strip() if head.returncode == 0 else None)
  assert (result["dirty"] is None) == (result["commit"] is None)
  assert result["device"]["platform"] == "cpu"
  assert result["device"]["count"] == 1
  assert result["versions"]["flax"] == metadata.version("flax")
  assert result["date"].endswith("+00:00")
