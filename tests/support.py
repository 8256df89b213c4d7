"""A run small enough to be done many times, and main.py as a user starts it."""

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs.digits_saol import get_config
from saol_jax import workdir as workdirs
from saol_jax.checkpoint import Checkpoints
from saol_jax.config import resolve
from saol_jax.experiment import Experiment
from saol_jax.model_card import write_model_json

ROOT = pathlib.Path(__file__).parent.parent

# Every loss, both heads, EMA, several norm groups, a checkpoint at steps that are not evaluated.
TINY = {
  "batch_size": 16,
  "eval_batch_size": 300,
  "num_train_steps": 12,
  "log_every_steps": 4,
  "eval_every_steps": 6,
  "checkpoint_every_steps": 5,
  "figures": False,  # drawing takes longer than training
  "model.width": 8,
  "model.norm_group": 4,
  "optimizer.ema_decay": 0.9,
}


def tiny_config(argument: str = "", **changes) -> ml_collections.ConfigDict:
  """TINY with changes; a dot in a field's name is spelled `__`."""
  config = get_config(argument)
  fields = TINY | {name.replace("__", "."): value for name, value in changes.items()}
  config.update_from_flattened_dict(fields)
  return config


def empty_files(root: pathlib.Path, names: Sequence[str]) -> None:
  """Makes files of these names, and the folders that they need."""
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).touch()


def write_run(folder, steps=(3,), **changes) -> SimpleNamespace:
  """A workdir as training leaves it, without training; returns what it was made from."""
  config = resolve(tiny_config(**changes))
  experiment = Experiment(config)
  workdirs.claim(config, folder)
  write_model_json(experiment, folder)
  state = experiment.init()
  checkpoints = Checkpoints(folder, {})
  for step in steps:
    state = state.replace(step=jnp.full_like(state.step, step))
    if state.ema is not None:  # so that it matters which of the two is used
      state = state.replace(ema=jax.tree.map(lambda x: 0.8 * x, state.ema))
    checkpoints.save(state)
  checkpoints.close()
  return SimpleNamespace(folder=folder, experiment=experiment, state=state)


def command(workdir, *more: str, **changes) -> list[str]:
  """The command line of a tiny run."""
  fields = TINY | {name.replace("__", "."): value for name, value in changes.items()}
  flags = [f"--config.{name}={value}" for name, value in fields.items()]
  return [
    sys.executable,
    str(ROOT / "main.py"),
    f"--config={ROOT}/configs/digits_saol.py",
    f"--workdir={workdir}",
    *flags,
    *more,
  ]


def run(arguments: list[str], *, devices: int = 1, timeout: float = 240) -> tuple[int, str]:
  """Runs a command to its end; returns its exit code and all that it printed."""
  done = subprocess.run(
    arguments,
    capture_output=True,
    text=True,
    timeout=timeout,
    env=environment(devices),
    check=False,
  )
  return done.returncode, done.stdout + done.stderr


def wait_until(true: Callable[[], object], *processes: subprocess.Popen, seconds=300.0) -> None:
  """Returns once the condition holds; fails where a process ends by itself before that."""
  deadline = time.monotonic() + seconds
  while not true():
    ended = [process for process in processes if process.poll() is not None]
    assert not ended, ended[0].communicate()[0][-6000:]
    assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
    time.sleep(0.02)


def environment(devices: int = 1) -> dict[str, str]:
  """For a subprocess: as in the suite, with a number of fake devices."""
  return os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}


def mesh_of(devices: int) -> jax.sharding.Mesh:
  """The first of this process's fake devices."""
  types = (jax.sharding.AxisType.Auto,)
  return jax.make_mesh((devices,), ("data",), axis_types=types, devices=jax.devices()[:devices])


def records(workdir, *, timing: bool = False) -> list[dict[str, float]]:
  """The lines of metrics.jsonl, without what depends on the machine's speed."""
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  if timing:
    return lines
  return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def leaves(tree) -> dict[str, np.ndarray]:
  """The arrays of a pytree by path, random keys as numbers."""

  def numbers(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)

  return {
    jax.tree_util.keystr(path): numbers(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def assert_identical(a, b) -> None:
  """Two pytrees have the same arrays, bit for bit."""
  a, b = leaves(a), leaves(b)
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def saved_state(workdir: pathlib.Path, step: int, **changes):
  """The checkpoint of a step of a tiny run, as arrays by path."""
  experiment = Experiment(resolve(tiny_config(**changes)))
  checkpoints = Checkpoints(workdir, {}, read_only=True)
  state = checkpoints.restore(experiment.abstract_state(), step)
  checkpoints.close()
  return leaves(state)


def same_arrays(a: dict, b: dict) -> None:
  assert a.keys() == b.keys()
  for name in a:
    assert a[name].tobytes() == b[name].tobytes(), name


def snapshot(folder: pathlib.Path) -> dict[str, bytes]:
  return {
    str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
  }


def table_rows(output: str) -> list[list[str]]:
  """The cells of all Markdown tables in a text, without headers and the rules below them."""
  rows, lines = [], [line.strip() for line in output.splitlines()]
  for above, line in zip(["", *lines], lines, strict=False):
    if line.startswith("|") and above.startswith("|"):  # not a header
      cells = [cell.strip() for cell in line.split("|")[1:-1]]
      if cells[0].strip("-"):
        rows.append(cells)
  return rows
