"""Where the time of SAOL's training step goes, and how much of the device's arithmetic it uses.

  python benchmarks/step_parts.py                  # the demo's network
  python benchmarks/step_parts.py --backbone=resnet50 --image_size=224 --num_classes=1000 \
      --batch_size=256

Programs that each do more than the one before take turns, as in step.py: the forward pass of the
trunk; the gradient of GAP-FC + CutMix; that of SAOL without L_SS2; that of SAOL; SAOL's whole step;
and the preparation of a batch alone. A part's time is a difference of two of them inside a round,
and so is its arithmetic. What the compiler fuses over the border of two parts counts to one of
them, and noise can make a small part negative.

The device's rate is that of a product of two square matrices of random numbers in the step's dtype,
the best of the rounds, where papers often divide by the maker's figure. Utilisation is a part's
FLOPs, as XLA counts them before its own optimisations, over its time and that rate. On a CPU with
several cores XLA's product may not be the fastest there is.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import record
from benchmarks.command_line import add_sizes, add_timing, make_parser, parse_fields, positive
from benchmarks.step import inference_turn, measure, spread, training_turn
from benchmarks.synthetic import VARIANTS, SyntheticExperiment, make_config, synthetic_images
from saol_jax.compiler import compiler_options
from saol_jax.preparation import prepare_batch, step_keys
from saol_jax.train_step import make_loss_fn

# Name -> the programs whose times are added, and those that are subtracted.
PARTS = {
  "preparing the batch": (("preparation",), ()),
  "trunk, forward": (("trunk",), ()),
  "trunk, backward; GAP-FC's loss": (("gap",), ("trunk",)),
  "SAOL's head and losses": (("saol_without_ss2",), ("gap",)),
  "unmixed forward pass, L_SS2": (("saol",), ("saol_without_ss2",)),
  "optimizer, EMA, metrics": (("step",), ("saol", "preparation")),
  "whole step": (("step",), ()),
}

_MATRIX_SIZE = 8192
_MATRIX_SIZE_ON_CPU = 1024


def main() -> None:
  """Measures, prints the table and writes the JSON."""
  options = parse()
  output, result = record.begin(options.output, f"step_parts_{options.backbone}")
  images = synthetic_images(options)
  fields = parse_fields(options.set)
  experiments = {
    name: SyntheticExperiment(make_config(options, fields | VARIANTS[name][1]), images)
    for name in ("gap", "saol_without_ss2", "saol")
  }
  config = experiments["saol"].config
  size = options.matrix_size
  turns, flops = compile_programs(experiments, images[np.arange(options.batch_size)])
  # Random: a device that draws less power for simple numbers is faster with them.
  matrix = jax.random.normal(jax.random.key(0), (size, size), config.dtype)
  product = jax.jit(lambda a, b: a @ b).lower(matrix, matrix).compile()
  turns["product"] = inference_turn(product, matrix, matrix)
  timing = measure(turns, rounds=options.rounds, seconds=options.seconds)

  seconds = timing["seconds"]
  rate = 2 * size**3 / min(seconds.pop("product"))
  parts = {name: part(seconds, flops, *terms) for name, terms in PARTS.items()}
  for own in parts.values():
    own["utilisation"] = own["flops"] / own["seconds"]["median"] / rate
  result["settings"] = {name: value for name, value in vars(options).items() if name != "output"}
  result["settings"] |= {"dtype": config.dtype, "steps_a_turn": timing["steps"]}
  result["matrix_flops_per_second"], result["parts"] = rate, parts
  result["programs"] = {
    name: {"seconds": spread(own), "flops": flops[name]} for name, own in seconds.items()
  }
  print(
    f"{options.backbone}, {options.image_size} px, batch {options.batch_size}, {config.dtype}; "
    f"a product of {size} x {size} matrices: {rate / 1e12:.3g} TFLOP/s\n\n{table(parts)}"
  )
  record.write(output, result)


def compile_programs(
  experiments: Mapping[str, SyntheticExperiment], images: Mapping[str, np.ndarray]
) -> tuple[dict[str, Callable[[int], None]], dict[str, float]]:
  """By program: a function that takes turns, see `step.measure`; and FLOPs of a call."""
  saol = experiments["saol"]
  batch = saol.put(images)
  options = compiler_options(saol.mesh)

  def preparation(key, batch):
    key_augment, key_cutmix, _ = step_keys(key, 0)
    return prepare_batch(saol.config, saol.info, saol.mesh, batch, key_augment, key_cutmix)

  def trunk(variables, images):
    return saol.model.merge(variables).backbone(images, train=True)

  turns, flops = {}, {}

  def add(name: str, function: Callable, *arguments: Any) -> Callable:
    lowered = jax.jit(function, compiler_options=options).lower(*arguments)
    compiled, flops[name] = lowered.compile(), record.count_flops(lowered)
    turns[name] = inference_turn(compiled, *arguments)
    return compiled

  key = jax.random.key(0)
  prepared = add("preparation", preparation, key, batch)(key, batch)
  add("trunk", trunk, saol.init().variables, prepared["mixed"])
  for name, experiment in experiments.items():
    loss_fn = make_loss_fn(experiment.config, experiment.model)
    variables = experiment.init().variables

    def gradient(variables, batch, loss_fn=loss_fn):
      key = jax.random.key(0)
      return jax.grad(loss_fn, has_aux=True)(variables.params, variables.batch_stats, batch, key)

    add(name, gradient, variables, prepared)
  states = {"step": saol.init()}
  lowered = saol.train_step.lower(saol.abstract_state(), batch)
  flops["step"] = record.count_flops(lowered)
  turns["step"] = training_turn(lowered.compile(), states, "step", batch)
  return turns, flops


def part(
  seconds: Mapping[str, list[float]],
  flops: Mapping[str, float],
  added: tuple[str, ...],
  subtracted: tuple[str, ...],
) -> dict[str, Any]:
  """Time of a part in each round, its share of the whole step there, and its FLOPs."""

  def total(of: Mapping[str, Any]) -> Any:
    return sum(np.asarray(of[name]) for name in added) - sum(
      np.asarray(of[name]) for name in subtracted
    )

  own = total(seconds)
  return {
    "seconds": spread(own.tolist()),
    "share": spread((own / np.asarray(seconds["step"])).tolist()),
    "flops": float(total(flops)),
  }


def table(parts: Mapping[str, dict[str, Any]]) -> str:
  """As Markdown: medians over rounds."""
  rows = [
    (
      name,
      f"{1000 * own['seconds']['median']:.2f}",
      f"{100 * own['share']['median']:.1f} %",
      f"{own['flops'] / 1e9:.3f}",
      f"{100 * own['utilisation']:.0f} %",
    )
    for name, own in parts.items()
  ]
  header = ("part of SAOL's step", "ms", "of the step", "GFLOPs", "of the matrix rate")
  return record.markdown(header, rows, text_columns=1)


def parse() -> argparse.Namespace:
  """The command line."""
  parser = make_parser(__doc__)
  add_sizes(parser, backbone="resnet8", image_size=32, num_classes=10, dtype="auto")
  add_timing(parser, rounds=30)
  parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="of the config")
  size = _MATRIX_SIZE_ON_CPU if jax.default_backend() == "cpu" else _MATRIX_SIZE
  parser.add_argument("--matrix_size", type=positive(int), default=size, help="of the product")
  return parser.parse_args()


if __name__ == "__main__":
  record.run(main)
