"""Speed of prediction: what and where against what alone, forward passes and whole predictor.

  python benchmarks/predict.py       # the demo's network and WRN-16-4: a minute on 2 CPU cores

Forward: GAP-FC's logits alone, and SAOL's class probabilities with the attention map and all class
maps, of one model with one set of parameters, timed in turns as in `step.py`. Beside the time on
the clock stands the time that all cores together were busy: of a machine that others use, only the
second can be trusted. On an accelerator it says nothing.

Predictor: what `saol_jax.load` returns, on pictures in memory larger than the network's images:
resizing, forward pass, boxes of the five most probable classes, maps at the picture's size.
"""

import argparse
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import record, step
from benchmarks.command_line import make_parser, positive
from benchmarks.synthetic import SyntheticExperiment, make_config, synthetic_images
from saol_jax.model_card import ModelCard
from saol_jax.predictor import Predictor

BACKBONES = ("resnet8", "wrn_16_4")

_WARM_UP_ROUNDS = 2
_PICTURE_SIDE = 4  # times that of the network's images


def main() -> None:
  """Measures, prints the table and writes the JSON."""
  options = _parse()
  output, result = record.begin(options.output, "predict")
  result["settings"] = {name: value for name, value in vars(options).items() if name != "output"}
  result["networks"] = {}
  for backbone in options.backbones:
    result["networks"][backbone] = measure_network(backbone, options)
    print(f"{backbone}: done", flush=True)
  print(f"\n{table(result['networks'])}")
  record.write(output, result)


def measure_network(backbone: str, options: argparse.Namespace) -> dict[str, Any]:
  """Both forward passes and the predictor of one network with fresh parameters."""
  sizes = {"backbone": backbone, "image_size": 32, "num_classes": 10, "width": options.width}
  sizes = argparse.Namespace(**sizes, batch_size=options.batch_size, dtype="auto")
  images = synthetic_images(sizes)
  experiment = SyntheticExperiment(make_config(sizes, {}), images)
  batch = experiment.put(images[np.arange(options.batch_size)])
  variables = experiment.init().variables
  numbers, functions = step.compile_inference(experiment, variables, batch["image"])
  predictor = Predictor(
    experiment.config,
    ModelCard(images.info.class_names, images.info.mean, images.info.std, (32, 32)),
    experiment.model,
    variables,
    batch_size=options.batch_size,
  )
  pictures = list(images.images.repeat(_PICTURE_SIDE, 1).repeat(_PICTURE_SIDE, 2))

  def forward(head: str) -> Callable[[], None]:
    return lambda: jax.block_until_ready(functions[head](variables, batch["image"]))

  def predict() -> None:
    for prediction in predictor(pictures):
      _ = (prediction.boxes, prediction.attention, prediction.class_maps)

  turns = {head: forward(head) for head in step.INFERENCE} | {"predictor": predict}
  for name, (clock, busy) in take_turns(turns, options.rounds).items():
    own = numbers.setdefault(name, {})
    own["images_per_second"] = options.batch_size / float(np.median(clock))
    own["clock_seconds"], own["busy_seconds"] = clock, busy
  for own in numbers.values():
    own["ratio_to_gap"] = {
      kind: float(np.median(np.divide(own[kind], numbers["gap"][kind])))
      for kind in ("clock_seconds", "busy_seconds")
    }
  return {"width": experiment.config.model.width, **numbers}


def take_turns(
  turns: dict[str, Callable[[], None]], rounds: int
) -> dict[str, tuple[list[float], list[float]]]:
  """Calls functions in turns, A B C A B C ...: the seconds of each call, on the clock and busy."""
  seconds = {name: ([], []) for name in turns}
  for number in range(-_WARM_UP_ROUNDS, rounds):
    for name, turn in turns.items():
      clock, busy = time.perf_counter(), time.process_time()
      turn()
      if number >= 0:
        seconds[name][0].append(time.perf_counter() - clock)
        seconds[name][1].append(time.process_time() - busy)
  return seconds


def table(networks: dict[str, dict[str, Any]]) -> str:
  """A Markdown table, medians over rounds, ratios to GAP-FC inside a round."""
  names = {**step.INFERENCE, "predictor": "whole predictor, SAOL"}
  rows = []
  for backbone, numbers in networks.items():
    for name, title in names.items():
      own = numbers[name]
      ratios = own["ratio_to_gap"]
      rows.append(
        (
          f"{backbone}, width {numbers['width']}",
          title,
          f"{1000 * float(np.median(own['clock_seconds'])):.1f}",
          f"{own['images_per_second']:.0f}",
          f"{ratios['clock_seconds']:.2f}",
          f"{ratios['busy_seconds']:.2f}",
          f"{own['flops'] / numbers['gap']['flops']:.2f}" if "flops" in own else "",
        )
      )
  header = ("network", "inference", "ms", "images/s", "clock ratio", "busy ratio", "FLOPs ratio")
  return record.markdown(header, rows, text_columns=2)


def _parse() -> argparse.Namespace:
  parser = make_parser(__doc__)
  parser.add_argument("--backbones", nargs="+", default=BACKBONES, help="on 32 px, 10 classes")
  parser.add_argument("--width", type=positive(int), help="of SAOL; default: the recipe's")
  parser.add_argument("--batch_size", type=positive(int), default=64, help="images")
  parser.add_argument("--rounds", type=positive(int), default=30, help="turns of each")
  return parser.parse_args()


if __name__ == "__main__":
  record.run(main)
