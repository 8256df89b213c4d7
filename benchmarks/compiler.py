"""What the compiler options of `saol_jax.compiler` are worth: the same step with and without them.

  python benchmarks/compiler.py                  # the demo's network: a minute on 2 CPU cores
  python benchmarks/compiler.py --backbone=wrn_16_4 --num_classes=100 --batch_size=32

Training steps of GAP-FC + CutMix and of SAOL, and their forward passes, each compiled with the
options and without, take turns as in `step.py`; ratios are taken inside a round.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import record
from benchmarks.command_line import add_sizes, add_timing, make_parser
from benchmarks.step import inference_turn, measure, spread, training_turn
from benchmarks.synthetic import VARIANTS, SyntheticExperiment, make_config, synthetic_images
from saol_jax.compiler import compiler_options

HEADS = ("gap", "saol")


def main() -> None:
  """Measures, prints the table and writes the JSON."""
  options = _parse()
  output, result = record.begin(options.output, f"compiler_{options.backbone}")
  images = synthetic_images(options)
  turns = {}
  for head in HEADS:
    experiment = SyntheticExperiment(make_config(options, VARIANTS[head][1]), images)
    batch = experiment.put(images[np.arange(options.batch_size)])
    asked = compiler_options(experiment.mesh)
    for name, given in (("without", None), ("with", asked)):
      turns[f"{head} training {name}"] = _training(experiment, batch, given)
      turns[f"{head} inference {name}"] = _inference(experiment, batch, given)
  timing = measure(turns, rounds=options.rounds, seconds=options.seconds)

  result["settings"] = {name: value for name, value in vars(options).items() if name != "output"}
  result["options"], result["timing"] = asked, {}
  rows = []
  for head in HEADS:
    for what in ("training", "inference"):
      without, given = (timing["seconds"][f"{head} {what} {name}"] for name in ("without", "with"))
      ratios = spread([b / a for a, b in zip(without, given, strict=True)])
      found = {"without_seconds": spread(without), "with_seconds": spread(given), "ratio": ratios}
      result["timing"][f"{head} {what}"] = found
      times = [f"{1000 * found[key]['median']:.1f}" for key in ("without_seconds", "with_seconds")]
      cells = (*times, f"{ratios['median']:.2f} ({ratios['min']:.2f}-{ratios['max']:.2f})")
      rows.append((VARIANTS[head][0], what, *cells))
  header = ("network's head", "step", "without, ms", "with, ms", "ratio (lowest-highest)")
  print(f"{options.backbone}, batch {options.batch_size}: {asked}")
  print("\n" + record.markdown(header, rows, text_columns=2))
  record.write(output, result)


def _training(experiment: SyntheticExperiment, batch: Any, given: dict | None) -> Callable:
  # The jitted step has the options already: what it was made from is jitted anew.
  step = jax.jit(experiment.train_step.__wrapped__, donate_argnums=0, compiler_options=given)
  states = {"": experiment.init()}
  compiled = step.lower(experiment.abstract_state(), batch).compile()
  return training_turn(compiled, states, "", batch)


def _inference(experiment: SyntheticExperiment, batch: Any, given: dict | None) -> Callable:
  variables = experiment.init().variables
  images = batch["image"].astype(np.float32)

  def forward(variables, images):
    output, _ = experiment.model.apply(variables, images, train=False)
    return output.gap_logits if output.spatial is None else output.spatial

  compiled = jax.jit(forward, compiler_options=given).lower(variables, images).compile()
  return inference_turn(compiled, variables, images)


def _parse() -> argparse.Namespace:
  parser = make_parser(__doc__)
  add_sizes(parser, backbone="resnet8", image_size=32, num_classes=10, dtype="auto")
  add_timing(parser, rounds=12)
  return parser.parse_args()


if __name__ == "__main__":
  record.run(main)
