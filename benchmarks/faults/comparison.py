"""Whether two runs left the same: checkpoints bit for bit, the log, the tables of classes."""

import json
import pathlib

import jax
import numpy as np

from saol_jax.checkpoint import Checkpoints
from saol_jax.experiment import Experiment
from saol_jax.runlog import scores


def differences(
  expected: pathlib.Path, found: pathlib.Path, experiment: Experiment, *, best_is_kept: bool
) -> list[str]:
  """What is different in a workdir, as lines to read; [] where nothing is.

  Args:
    expected: the workdir of the undisturbed run.
    found: the other.
    experiment: of both.
    best_is_kept: whether the checkpoint with the best score must be there.
  """
  logs = [_log(workdir) for workdir in (expected, found)]
  problems = _different_logs(*logs)
  known = scores(logs[0], experiment.score_name)
  a, b = (Checkpoints(workdir, known, read_only=True) for workdir in (expected, found))
  try:
    if a.latest != b.latest:
      problems.append(f"the latest checkpoint is step {b.latest} instead of {a.latest}")
    if best_is_kept and a.best != b.best:
      problems.append(f"the best checkpoint, step {a.best}, is gone")
    like = experiment.abstract_state()
    for step in sorted({*a.steps} & {*b.steps}):
      names = different_arrays(leaves(a.restore(like, step)), leaves(b.restore(like, step)))
      problems += [f"checkpoint {step}: {name}" for name in names]
  finally:
    a.close()
    b.close()
  for path in [expected / "config.json", expected / "model.json", *expected.glob("eval*/*.csv")]:
    other = found / path.relative_to(expected)
    if not other.exists() or other.read_bytes() != path.read_bytes():
      problems.append(f"{path.relative_to(expected)} is different")
  return problems


def leaves(tree) -> dict[str, np.ndarray]:
  """The arrays of a pytree by path, random keys as numbers."""

  def numbers(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)

  paths = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): numbers(leaf) for path, leaf in paths}


def different_arrays(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> list[str]:
  """Names of the arrays that one of two has alone, or that are not the same bits."""
  return sorted(
    name
    for name in a.keys() | b.keys()
    if name not in a
    or name not in b
    or (a[name].dtype, a[name].shape) != (b[name].dtype, b[name].shape)
    or a[name].tobytes() != b[name].tobytes()
  )


def _log(workdir: pathlib.Path) -> list[dict[str, float]]:
  """The lines of the log without what depends on the machine; strict, each must be whole."""
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def _different_logs(expected: list[dict], found: list[dict]) -> list[str]:
  problems = []
  if len(expected) != len(found):
    problems.append(f"metrics.jsonl has {len(found)} lines instead of {len(expected)}")
  for number, (a, b) in enumerate(zip(expected, found, strict=False), 1):
    if a != b:
      problems.append(f"metrics.jsonl, line {number}: {b} instead of {a}")
  return problems
