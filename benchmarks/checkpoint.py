"""What a checkpoint costs: its size, how long training waits for it, and how long it takes to read.

  python benchmarks/checkpoint.py --backbone=resnet50 --image_size=224 --num_classes=1000

The state is that of a run with SAOL before its first step. Saving is asynchronous: training waits
while the state is copied and its checksums are taken ("stall"), and goes on while it is written.
Reading verifies checksums. Times are medians; the disk is that of `--folder`, or else of temporary
files.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
import time

import jax
import jax.numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import record
from benchmarks.command_line import add_sizes, make_parser, positive
from benchmarks.synthetic import SyntheticExperiment, make_config, synthetic_images
from saol_jax.checkpoint import Checkpoints


def main() -> None:
  """Saves and restores, prints a table, writes JSON."""
  options = _parse()
  output, result = record.begin(options.output, f"checkpoint_{options.backbone}")
  config = make_config(options, {"optimizer.ema_decay": options.ema_decay})
  experiment = SyntheticExperiment(config, synthetic_images(options))
  result |= measure(experiment, options.saves, options.folder)
  settings = {name: value for name, value in vars(options).items() if name != "output"}
  result["settings"] = settings | {"folder": options.folder and str(options.folder)}
  header = ("backbone", "MB", "stall, s", "on disk after, s", "restored in, s")
  seconds = (result[name] for name in ("stall_seconds", "write_seconds", "restore_seconds"))
  medians = (f"{statistics.median(values):.2f}" for values in seconds)
  row = (options.backbone, f"{result['state_bytes'] / 1e6:.0f}", *medians)
  print("\n" + record.markdown(header, [row], text_columns=1))
  record.write(output, result)


def measure(
  experiment: SyntheticExperiment, saves: int, folder: pathlib.Path | None
) -> dict[str, object]:
  """Bytes of the state and of the files; seconds of each save and each restore."""
  state = jax.block_until_ready(experiment.init())
  found = {"stall_seconds": [], "write_seconds": [], "restore_seconds": []}
  with tempfile.TemporaryDirectory(dir=folder) as workdir:
    checkpoints = Checkpoints(pathlib.Path(workdir), {})
    for step in range(1, saves + 1):
      state = jax.block_until_ready(state.replace(step=jnp.int32(step)))
      start = time.monotonic()
      checkpoints.save(state)
      found["stall_seconds"].append(time.monotonic() - start)
      checkpoints.wait()
      found["write_seconds"].append(time.monotonic() - start)
    files = [path for path in pathlib.Path(workdir).rglob("*") if path.is_file()]
    found["file_bytes"] = sum(path.stat().st_size for path in files) // len(checkpoints.steps)
    for _ in range(saves):
      start = time.monotonic()
      jax.block_until_ready(checkpoints.restore(experiment.abstract_state()))
      found["restore_seconds"].append(time.monotonic() - start)
    checkpoints.close()
  leaves = jax.tree.leaves(state)
  return {"state_bytes": sum(leaf.nbytes for leaf in leaves), **found}


def _parse() -> argparse.Namespace:
  parser = make_parser(__doc__)
  add_sizes(parser, backbone="wrn_40_2", image_size=32, num_classes=100, dtype="auto")
  parser.add_argument("--ema_decay", type=float, default=0.0, help="above 0: with moving average")
  parser.add_argument("--saves", type=positive(int), default=5, help="repetitions")
  parser.add_argument("--folder", type=pathlib.Path, help="of the disk to write to")
  options = parser.parse_args()
  options.batch_size = 2
  return options


if __name__ == "__main__":
  record.run(main)
