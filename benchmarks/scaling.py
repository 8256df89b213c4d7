"""What the devices of a run exchange in a step, and what one of them holds, from compiled programs.

  python benchmarks/scaling.py --target=cpu --devices 1 4 8 64                  # fake devices
  python benchmarks/scaling.py --target=cuda --devices 1 8 64 512               # no GPU is needed
  python benchmarks/scaling.py --target=tpu --devices 4 8 64                    # nor a TPU

Nothing is run: the training step is compiled for so many devices, on `tpu` and `cuda` by the real
compilers (see benchmarks/targets.py), with a batch that grows with them, and the collectives are
read from the program. Bytes are those of what a collective leaves on one device: of the sums.
Memory of a device: what the program asks for, arguments + results + temporaries; on `cuda`
convolutions may want a workspace on top, since their algorithms are chosen on the card. Other norm
groups and batches are `--norm_group` and `--per_device`. FLOPs are XLA's count before optimisation.
"""

import argparse
import collections
import math
import pathlib
import re
import sys
import time
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import record, targets
from benchmarks.command_line import add_sizes, make_parser, positive
from benchmarks.step import program_bytes
from benchmarks.synthetic import VARIANTS, SyntheticExperiment, make_config, synthetic_images
from saol_jax.distributed import split_batch
from saol_jax.train_step import TrainState

_BYTES = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2, "s64": 8, "s32": 4, "u32": 4, "s8": 1, "u8": 1}
_BYTES |= {"pred": 1}
_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(_KINDS)})(-start)?\(")
_NO_OPERATIONS = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")


def main() -> None:
  """Compiles for each number of devices, prints a table, writes JSON."""
  options = _parse()
  targets.prepare(options.target, max(options.devices))
  name = f"scaling_{options.backbone}_{options.target}"
  output, result = record.begin(options.output, name, anywhere=True)
  programs = []
  for devices in options.devices:
    for variant in options.variants:
      programs.append(describe(options, variant, devices))
      print(f"{devices} devices, {VARIANTS[variant][0]}: compiled", flush=True)
  result["settings"] = {k: v for k, v in vars(options).items() if k != "output"}
  result["programs"] = programs
  print(f"\n{table(programs)}")
  record.write(output, result)


def describe(options: argparse.Namespace, variant: str, devices: int) -> dict[str, Any]:
  """A variant's training step, compiled for a number of devices."""
  lowered, state = lower(options, variant, targets.mesh_of(options.target, devices))
  start = time.monotonic()
  compiled = lowered.compile()
  program = compiled.as_text()
  return {
    "variant": variant,
    "devices": devices,
    "batch_size": options.per_device * devices,
    "operations": count_operations(program),
    "collectives": collectives(program),
    "parameter_bytes": _bytes(state.variables.params),
    "statistics_bytes": _bytes(state.variables.batch_stats),
    "state_bytes": _bytes(state),
    "program_bytes": program_bytes(compiled),
    "flops_per_device": record.count_flops(lowered) / devices,
    "compile_seconds": time.monotonic() - start,
  }


def lower(
  options: argparse.Namespace, variant: str, mesh: Mesh
) -> tuple[jax.stages.Lowered, TrainState]:
  """A variant's training step for a mesh, not yet compiled, and the shapes of its state."""
  changes = {
    "batch_size": options.per_device * mesh.size,
    "model.norm_group": options.norm_group,
    "deterministic": options.deterministic,
  }
  config = make_config(options, VARIANTS[variant][1] | changes)
  experiment = SyntheticExperiment(config, synthetic_images(options), mesh)
  state, sharding = experiment.abstract_state(), split_batch(mesh)
  shapes = {"image": experiment.train.image_shape, "label": ()}
  types = {"image": jnp.uint8, "label": jnp.int32}
  batch = {
    name: jax.ShapeDtypeStruct((config.batch_size, *shape), types[name], sharding=sharding)
    for name, shape in shapes.items()
  }
  return experiment.train_step.lower(state, batch), state


def count_operations(program: str) -> int:
  """How many operations of its own an HLO program starts; on a GPU these are kernels."""
  entry = program[program.index("\nENTRY ") :].partition("\n}")[0]
  kinds = re.findall(r"^  (?:ROOT )?%\S+ = (?:\(.*?\)|\S+) ([\w-]+)\(", entry, re.MULTILINE)
  return sum(not kind.endswith("-done") and kind not in _NO_OPERATIONS for kind in kinds)


def collectives(program: str) -> dict[str, dict[str, int]]:
  """The collectives of an HLO program, by kind: how many, and the bytes of their results.

  An asynchronous one is counted at its start, which for all kinds but sums returns its operands
  before the results.
  """
  found = collections.defaultdict(lambda: {"number": 0, "bytes": 0})
  for line in program.splitlines():
    match = _COLLECTIVE.search(line)
    if match:
      shapes, kind, start = match.groups()
      arrays = [
        _BYTES[type_] * math.prod(map(int, filter(None, sides.split(","))))
        for type_, sides in _ARRAY.findall(shapes)
        if type_ in _BYTES
      ]
      operands = len(arrays) // 2 if start and kind != "all-reduce" else 0
      found[kind]["number"] += 1
      found[kind]["bytes"] += sum(arrays[operands:])
  return dict(found)


def table(programs: Iterable[dict[str, Any]]) -> str:
  """Markdown: a row a program."""
  rows = []
  for program in programs:
    found = program["collectives"]
    sums = found.get("all-reduce", {"number": 0, "bytes": 0})
    others = sum(kind["number"] for kind in found.values()) - sums["number"]
    rows.append(
      (
        VARIANTS[program["variant"]][0],
        str(program["devices"]),
        f"{program['batch_size']:,}",
        str(sums["number"]),
        f"{sums['bytes'] / 1e6:.2f}",
        f"{program['parameter_bytes'] / 1e6:.2f}",
        str(others),
        f"{program['program_bytes'] / 2**30:.2f}",
        f"{program['flops_per_device'] * program['devices'] / program['batch_size'] / 1e9:.2f}",
      )
    )
  header = ("step", "devices", "batch", "all-reduces", "MB", "parameters, MB", "other collectives")
  header += ("GiB a device", "GFLOPs an image")
  return record.markdown(header, rows, text_columns=1)


def _bytes(tree: Any) -> int:
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _parse() -> argparse.Namespace:
  parser = make_parser(__doc__)
  add_sizes(parser, backbone="wrn_40_2", image_size=32, num_classes=100, dtype="bfloat16")
  parser.add_argument("--target", choices=list(targets.KINDS), default="cpu", help="compiler")
  parser.add_argument("--devices", type=positive(int), nargs="+", default=[1, 4, 8, 64])
  parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=["saol"])
  parser.add_argument("--per_device", type=positive(int), default=32, help="images a device")
  parser.add_argument("--norm_group", type=int, default=32, help="0: the whole batch")
  parser.add_argument("--deterministic", action="store_true", help="changes GPUs alone")
  options = parser.parse_args()
  options.batch_size = 2  # of the images in memory, which are never read
  return options


if __name__ == "__main__":
  record.run(main)
