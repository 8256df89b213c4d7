r"""All that is to be measured on an accelerator and needs no data, the most wanted first.

  SAOL_COMMIT=$(git rev-parse HEAD) JAX_COMPILATION_CACHE_DIR=/tmp/cache \
      python benchmarks/accelerator.py --time_limit=540 --output=OUT

Each measurement is a script of its own, whose JSON and log go to OUT. One that has its JSON there
is left out, and none is started that could not be done in the time that is left: the same command
goes on with the others. One that takes twice as long as it may need is killed. The first
compilations take most of the time; a cache that stays saves them.
"""

import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

if __package__ in (None, ""):  # started as a file
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import record
from benchmarks.command_line import make_parser

_DONE = "done"
_TIMING = "--seconds=30 --rounds=10"
_SMALL = "--backbone=wrn_40_2 --num_classes=100 --batch_size=128"  # which the host limits
_CIFAR = f"--backbone=wrn_28_10 --num_classes=100 --batch_size=128 {_TIMING}"
_IMAGENET = f"--backbone=resnet50 --image_size=224 --num_classes=1000 --batch_size=256 {_TIMING}"
_RECIPE = "--set model.norm_group=32 data.crop_padding=0"  # ImageNet's, see step.py


class Measurement(NamedTuple):
  """A script of this folder with its arguments, as in a shell, and the seconds that it may need."""

  command: str
  seconds: float


MEASUREMENTS = {
  "step_wrn_28_10": Measurement(f"step.py {_CIFAR}", 240),
  "step_parts_resnet50": Measurement(f"step_parts.py {_IMAGENET} {_RECIPE}", 240),
  "kernels_wrn_40_2": Measurement(f"kernels.py {_SMALL} --variants gap saol", 120),
  "kernels_wrn_40_2_without_command_buffers": Measurement(
    f"kernels.py {_SMALL} --variants gap saol --option xla_gpu_enable_command_buffer=", 120
  ),
  "step_resnet50_deterministic": Measurement(f"step.py --deterministic {_IMAGENET} {_RECIPE}", 300),
  # What has a result already.
  "step_resnet50": Measurement(f"step.py {_IMAGENET} {_RECIPE}", 300),
  "step_torch_resnet50": Measurement(
    f"step_torch.py --torch_python={shlex.quote(sys.executable)} "
    f"--variants 'compile, channels_last' {_IMAGENET}",
    300,
  ),
  "resume_deterministic": Measurement(
    "fault_injection.py --faults=4 --set deterministic=True "
    "--kinds 'SIGTERM at any moment' 'kill -9 at any moment'",
    240,
  ),
}


def main() -> None:
  """Measures what is missing, as far as the time goes."""
  parser = make_parser(__doc__, output=False)
  parser.add_argument("--time_limit", type=float, default=540.0, help="seconds for all")
  parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for the results")
  options = parser.parse_args()
  measure(MEASUREMENTS, options.output, deadline=time.monotonic() + options.time_limit)


def measure(
  measurements: Mapping[str, Measurement], output: pathlib.Path, *, deadline: float
) -> None:
  """Does those without a result in a folder, and says in the end what became of each."""
  output.mkdir(parents=True, exist_ok=True)
  rows = []
  for name, (command, seconds) in measurements.items():
    result, log = output / f"{name}.json", output / f"{name}.txt"
    left = deadline - time.monotonic()
    if result.exists():
      rows.append((name, "was there", ""))
    elif left < seconds:
      rows.append((name, f"not begun: {left:.0f} of {seconds:.0f} s are left", ""))
    else:
      started = time.monotonic()
      arguments = [*shlex.split(command), f"--output={result}"]
      outcome = _call(arguments, log, timeout=min(left, 2 * seconds))
      if outcome != _DONE and result.exists():  # what it says is kept, and it is done again
        result.replace(result.with_suffix(".failed.json"))
      rows.append((name, outcome, f"{time.monotonic() - started:.0f} s"))
      print(f"{name}: {outcome}", flush=True)
  print("\n" + record.markdown(("measurement", "outcome", "time"), rows, text_columns=2))


def _call(arguments: Sequence[str], log: pathlib.Path, *, timeout: float) -> str:
  """Runs a script, its lines into a file; says how it ended."""
  command = [sys.executable, str(record.ROOT / "benchmarks" / arguments[0]), *arguments[1:]]
  with (
    log.open("w") as lines,
    subprocess.Popen(
      command, stdout=lines, stderr=subprocess.STDOUT, start_new_session=True
    ) as process,
  ):
    try:
      code = process.wait(timeout)
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)  # with the runs that it started
      return f"killed after {timeout:.0f} s, see {log.name}"
  return _DONE if code == 0 else f"failed with code {code}, see {log.name}"


if __name__ == "__main__":
  record.run(main)
