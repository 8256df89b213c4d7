"""Which kernels the time of a training step goes to, on a GPU: the device's own trace of it.

  python benchmarks/kernels.py --variants gap saol --backbone=resnet50 --image_size=224 \
      --num_classes=1000 --batch_size=256 --keep=/tmp/traces

After a warm-up some steps of each variant run under `jax.profiler`. The table adds up what the
device was busy with, by kind of kernel, and says for how long it had nothing to do; the JSON has
those that take a thousandth or more, with the instruction of the program that each belongs to.
`--keep=DIR` leaves there the programs' text and the traces, for TensorBoard and Perfetto. Variants
and images are step.py's.

`--option NAME=VALUE` is told to the compiler: kernels in command buffers do not say to which
instruction they belong, and with `xla_gpu_enable_command_buffer=` there are none.
"""

import argparse
import collections
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import record
from benchmarks.command_line import add_sizes, make_parser, parse_fields, positive
from benchmarks.step import training_turn
from benchmarks.synthetic import VARIANTS, SyntheticExperiment, make_config, synthetic_images
from saol_jax.errors import UserError

# Kind -> what the name of its kernels or of their instruction has in it; the first that fits.
KINDS = {
  "convolution": "cudnn|conv|implicit|fprop|dgrad|wgrad|xmma",
  "matrix product": "gemm|dot|nvjet|cutlass|cublas",
  "copy": "copy|memcpy|memset|transpose",
  "reduction": "reduc",
  "sort": "sort",
  "elementwise": "fusion",
}
_LEAST_SHARE = 1e-3  # of the time, of a kernel that is listed
_WARM_UP_STEPS = 3


class Kernel(NamedTuple):
  """One execution of a kernel.

  Attributes:
    name: of the kernel.
    instruction: of the program, or "" where the trace does not say.
    start, end: nanoseconds.
  """

  name: str
  instruction: str
  start: float
  end: float


def main() -> None:
  """Traces, prints the tables and writes the JSON."""
  options = parse()
  output, result = record.begin(options.output, f"kernels_{options.backbone}")
  images = synthetic_images(options)
  result["settings"] = {name: str(value) for name, value in vars(options).items()}
  result["variants"] = {}
  for name in options.variants:
    fields = parse_fields(options.set) | VARIANTS[name][1]
    experiment = SyntheticExperiment(make_config(options, fields), images)
    batch = experiment.put(images[np.arange(options.batch_size)])
    lowered = experiment.train_step.lower(experiment.abstract_state(), batch)
    compiled = lowered.compile(compiler_options=_xla_options(options.option))
    turn = training_turn(compiled, {name: experiment.init()}, name, batch)
    turn(_WARM_UP_STEPS)
    with tempfile.TemporaryDirectory() as folder:
      kernels = trace(turn, options.steps, folder)
      if options.keep:
        _keep(options.keep, name, pathlib.Path(folder), compiled.as_text())
    if not kernels:
      raise UserError(
        f"the trace shows no kernel of {jax.devices()[0].device_kind}: this script is for GPUs"
      )
    found = summary(kernels, options.steps, instructions(compiled.as_text()))
    result["variants"][name] = found
    print(f"\n{VARIANTS[name][0]}: {1e3 * found['seconds']:.2f} ms a step\n\n{table(found)}")
  record.write(output, result)


def trace(turn: Callable[[int], None], steps: int, folder: str) -> list[Kernel]:
  """What GPUs did during some steps; the profiler's files go to a folder."""
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  options.host_tracer_level = 1
  with jax.profiler.trace(folder, profiler_options=options):
    turn(steps)
  (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
  kernels = []
  for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
    if not plane.name.startswith("/device:GPU"):
      continue
    for line in plane.lines:
      if line.name.startswith("Stream"):
        kernels += [_kernel(event) for event in line.events]
  return kernels


def _kernel(event: Any) -> Kernel:
  stats = dict(event.stats)
  start = event.start_ns
  return Kernel(event.name, str(stats.get("hlo_op", "")), start, start + event.duration_ns)


def instructions(program: str) -> dict[str, str]:
  """By instruction of a compiled program's text: the operation of ours that it came from."""
  pattern = r'^ +(?:ROOT )?%(\S+) = .*?metadata={[^}]*?op_name="([^"]*)"'
  return dict(re.findall(pattern, program, flags=re.MULTILINE))


def summary(kernels: Sequence[Kernel], steps: int, operations: Mapping[str, str]) -> dict[str, Any]:
  """Times of a step, in seconds.

  Args:
    kernels: of all steps.
    steps: how many.
    operations: by instruction, see `instructions`.

  Returns:
    `seconds` from the first kernel to the last, `idle_seconds` of them, `kinds` with their seconds
    and number of kernels, and `kernels`, those that take most first.
  """
  totals = collections.defaultdict(lambda: [0.0, 0])
  kinds = collections.defaultdict(lambda: [0.0, 0])
  for kernel in kernels:
    for group in (totals[kernel.name, kernel.instruction], kinds[kind(kernel)]):
      group[0] += kernel.end - kernel.start
      group[1] += 1
  least = _LEAST_SHARE * sum(seconds for seconds, _ in kinds.values())
  span = max(kernel.end for kernel in kernels) - min(kernel.start for kernel in kernels)

  def numbers(group: list) -> dict[str, float]:
    return {"seconds": group[0] / 1e9 / steps, "number": group[1] / steps}

  return {
    "seconds": span / 1e9 / steps,
    "idle_seconds": (span - _busy(kernels)) / 1e9 / steps,
    "kinds": {name: numbers(group) for name, group in _longest_first(kinds)},
    "kernels": [
      {
        "kernel": name,
        "instruction": instruction,
        "operation": operations.get(instruction, ""),
        **numbers(group),
      }
      for (name, instruction), group in _longest_first(totals)
      if group[0] >= least
    ],
  }


def kind(kernel: Kernel) -> str:
  """What a kernel does, as far as names tell."""
  for name, pattern in KINDS.items():
    if re.search(pattern, f"{kernel.name} {kernel.instruction}", flags=re.IGNORECASE):
      return name
  return "other"


def table(found: Mapping[str, Any]) -> str:
  """Markdown: the kinds of kernels, and what the device waits."""
  total = found["seconds"]
  idle = {"seconds": found["idle_seconds"], "number": 0}
  rows = [
    (name, f"{own['number']:.0f}", f"{1e3 * own['seconds']:.2f}", f"{own['seconds'] / total:.1%}")
    for name, own in (*found["kinds"].items(), ("nothing", idle))
  ]
  return record.markdown(("the device does", "kernels", "ms", "share"), rows, text_columns=1)


def _busy(kernels: Iterable[Kernel]) -> float:
  """Nanoseconds in which at least one kernel ran."""
  busy = until = 0.0
  for kernel in sorted(kernels, key=lambda k: k.start):
    busy += max(0.0, kernel.end - max(kernel.start, until))
    until = max(until, kernel.end)
  return busy


def _longest_first(groups: Mapping[Any, list]) -> list[tuple[Any, list]]:
  return sorted(groups.items(), key=lambda item: -item[1][0])


def _xla_options(given: Sequence[str]) -> dict[str, bool | str]:
  return {
    name: {"true": True, "false": False}.get(value.lower(), value)
    for name, value in parse_fields(given).items()
  }


def _keep(folder: pathlib.Path, name: str, traced: pathlib.Path, program: str) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  (folder / f"{name}.hlo.txt").write_text(program)
  (path,) = traced.rglob("*.xplane.pb")
  (folder / f"{name}.xplane.pb").write_bytes(path.read_bytes())


def parse() -> argparse.Namespace:
  """The command line."""
  parser = make_parser(__doc__)
  add_sizes(parser, backbone="resnet8", image_size=32, num_classes=10, dtype="auto")
  parser.add_argument("--batch_size", type=positive(int), default=64, help="over all devices")
  parser.add_argument("--variants", nargs="+", default=["saol"], choices=list(VARIANTS))
  parser.add_argument("--steps", type=positive(int), default=5, help="that are traced")
  parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="of the config")
  parser.add_argument("--option", nargs="*", default=[], metavar="NAME=VALUE", help="of XLA")
  parser.add_argument("--keep", type=pathlib.Path, help="folder for programs and traces")
  return parser.parse_args()


if __name__ == "__main__":
  record.run(main)
