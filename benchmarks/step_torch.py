r"""The training step beside PyTorch's: GAP-FC + CutMix, the same network, batch size and images.

  python benchmarks/step_torch.py --torch_python=TORCH/bin/python   # the demo's network
  python benchmarks/step_torch.py --backbone=wrn_16_4 --batch_size=32
  python benchmarks/step_torch.py --backbone=resnet50 --image_size=224 --num_classes=1000 \
      --batch_size=256                                              # on a GPU

Ours is the whole step of `main.py` with `default_config()`, flip and crop left out: uint8 in,
CutMix with a box for each image, SGD with Nesterov momentum, the gradient's norm, checks and
metrics. PyTorch's is a plain script's, see torch_training.py; networks of 224 px are timm's. Both
compute in float32 on a CPU, and in bfloat16 (PyTorch: autocast) on a GPU. PyTorch is no requirement
of ours: --torch_python names an interpreter that has it.

PyTorch runs in a process of its own. The two take turns in one call, each turn being some steps
followed by a wait for the device, while the other's threads sleep. Ratios are taken inside a round.
On a CPU there is also the ratio of the time that cores were busy, which programs beside these two
disturb less; PyTorch's threads spin while they wait for each other, which counts as busy. With one
core (`taskset -c 0`) nothing spins.
"""

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
# Half of a GPU's memory each. Before JAX starts.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")

import jax
import ml_collections
import numpy as np

from benchmarks import record, step
from benchmarks.command_line import add_sizes, add_timing, make_parser
from benchmarks.synthetic import SyntheticExperiment, synthetic_images
from saol_jax.config import default_config, resolve
from saol_jax.errors import UserError

OURS = "saol_jax"
_LEARNING_RATE = 0.01  # low: noise with random labels must not diverge
_ON_CPU = ("eager", "eager, channels_last")
_ON_GPU = ("eager, channels_last", "compile, channels_last")


class Torch:
  """The process with PyTorch."""

  def __init__(self, python: str):
    """Starts it; XLA's flags are none of its business."""
    script = pathlib.Path(__file__).with_name("torch_training.py")
    self._process = subprocess.Popen(
      [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

  def ask(self, **request: Any) -> dict[str, Any]:
    """Sends a request and waits for its answer.

    Raises:
      UserError: PyTorch cannot be imported there, or cannot do it.
    """
    try:
      self._process.stdin.write(json.dumps(request) + "\n")
      self._process.stdin.flush()
      line = self._process.stdout.readline()
    except BrokenPipeError:
      line = ""
    if not line:
      raise UserError(
        "the process with PyTorch ended, see above; give an interpreter that has torch (and timm "
        "for its networks): --torch_python=TORCH/bin/python"
      )
    answer = json.loads(line)
    if "error" in answer:
      raise UserError(f"PyTorch, {request['variant']}: {answer['error']}")
    return answer

  def turn(self, variant: str, busy: list[float]) -> Callable[[int], None]:
    """A function that does a number of steps, and appends the cores' seconds for one."""

    def take(steps: int) -> None:
      busy.append(self.ask(variant=variant, steps=steps)["busy_seconds"] / steps)

    return take

  def close(self) -> None:
    """Ends it, if it has not ended by itself."""
    with contextlib.suppress(BrokenPipeError):  # what could not be sent is tried again here
      self._process.stdin.close()
    self._process.wait()


def main() -> None:
  """Measures, prints the table and writes the JSON."""
  options = parse()
  platform = jax.default_backend()
  output, result = record.begin(options.output, f"step_torch_{options.backbone}")
  config = make_config(options)
  images = synthetic_images(options)
  experiment = SyntheticExperiment(config, images)
  batch = experiment.put(images[np.arange(options.batch_size)])
  training, steps = step.compile_training({OURS: experiment}, batch)
  states = {OURS: experiment.init()}
  ours = step.training_turn(steps[OURS], states, OURS, batch)
  busy = {OURS: []}  # seconds of all cores, for a step, by turn

  def take_turn(steps: int) -> None:
    begin = time.process_time()
    ours(steps)
    busy[OURS].append((time.process_time() - begin) / steps)

  turns = {OURS: take_turn}

  variants = options.variants or (_ON_CPU if platform == "cpu" else _ON_GPU)
  of_torch = {
    "backbone": options.backbone,
    "num_classes": options.num_classes,
    "image_size": options.image_size,
    "batch_size": options.batch_size,
    "dtype": config.dtype,
    "learning_rate": _LEARNING_RATE,
    "device": "cpu" if platform == "cpu" else "cuda",
  }
  torch = Torch(options.torch_python)
  for variant in variants:
    name = f"PyTorch {variant}"
    training[name] = torch.ask(variant=variant, options=of_torch)
    if training[name]["parameters"] != training[OURS]["parameters"]:
      raise UserError(
        f"{options.backbone} has {training[name]['parameters']} parameters there and "
        f"{training[OURS]['parameters']} here: not the same network"
      )
    turns[name], busy[name] = torch.turn(variant, seconds := []), seconds

  timing = step.measure(turns, rounds=options.rounds, seconds=options.seconds)
  for variant in variants:
    training[f"PyTorch {variant}"] |= torch.ask(variant=variant)
  torch.close()
  training[OURS]["first_bad_step"] = max(int(s) for s in states[OURS].bad_step.values())
  busy = {name: seconds[-options.rounds :] for name, seconds in busy.items()}  # not the warm-up
  add_times(training, timing["seconds"], busy, options.batch_size)

  result["settings"] = {
    **{name: value for name, value in vars(options).items() if name not in ("output",)},
    "steps_a_turn": timing["steps"],
    "config": config.to_dict(),
  }
  result["training"] = training
  print(f"{options.backbone}, {options.image_size} px, batch {options.batch_size}, {config.dtype}")
  print(table(training))
  record.write(output, result)


def parse() -> argparse.Namespace:
  """The command line."""
  parser = make_parser(__doc__)
  add_sizes(parser, backbone="resnet8", image_size=32, num_classes=10, dtype="auto")
  add_timing(parser, rounds=20)
  parser.add_argument("--variants", nargs="+", help="of PyTorch, see torch_training.py")
  parser.add_argument("--torch_python", default=sys.executable, help="an interpreter with torch")
  return parser.parse_args()


def make_config(options: argparse.Namespace) -> ml_collections.ConfigDict:
  """Ours, resolved."""
  config = default_config()
  config.update_from_flattened_dict(
    {
      "batch_size": options.batch_size,
      "dtype": options.dtype,
      "num_train_steps": 10_000,
      "data.name": "noise",
      "data.flip": False,
      "data.crop_padding": 0,
      "model.name": options.backbone,
      "model.head": "gap",
      "optimizer.learning_rate": _LEARNING_RATE,
    }
  )
  return resolve(config)


def add_times(
  training: dict[str, Any],
  seconds: dict[str, list[float]],
  busy: dict[str, list[float]],
  batch_size: int,
) -> None:
  """Adds to each its step time and images/s, and to PyTorch's how long ours takes beside it."""
  for name, own in training.items():
    own["step_seconds"], own["busy_seconds"] = step.spread(seconds[name]), step.spread(busy[name])
    own["images_per_second"] = batch_size / own["step_seconds"]["median"]
    for key, measured in (("our_time_over_this", seconds), ("our_busy_time_over_this", busy)):
      pairs = zip(measured[OURS], measured[name], strict=True)
      own[key] = step.spread([ours / theirs for ours, theirs in pairs])


def table(training: dict[str, Any]) -> str:
  """A Markdown table."""
  rows = []
  for name, own in training.items():
    seconds, ratio = own["step_seconds"], own["our_time_over_this"]
    peak = own["memory"]["bytes"] if name == OURS else own["peak_bytes"]
    rows.append(
      [
        name,
        f"{1e3 * seconds['median']:.1f} ({1e3 * seconds['min']:.1f}-{1e3 * seconds['max']:.1f})",
        f"{own['images_per_second']:.0f}",
        f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})",
        f"{own['our_busy_time_over_this']['median']:.2f}",
        f"{peak / 2**20:.0f}" if peak else "",
      ]
    )
  header = [
    "training step",
    "ms (lowest-highest)",
    "images/s",
    "our time / this",
    "our busy time / this",
    "peak MiB",
  ]
  return record.markdown(header, rows, text_columns=1)


if __name__ == "__main__":
  record.run(main)
