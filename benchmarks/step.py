"""Speed, memory and arithmetic of the training step: GAP-FC + CutMix, and three of SAOL.

  python benchmarks/step.py                  # the demo's network: about two minutes on 2 CPU cores
  python benchmarks/step.py --backbone=resnet50 --image_size=224 --num_classes=1000 --batch_size=256

SAOL comes without L_SS2, with it on half of the batch, and as in the paper. The variants share
backbone, batch, images and recipe. The recipe is the demo's (configs/digits_saol.py) for its
network, resnet8, and that of `default_config()` for all others, with `--set`: ImageNet's recipe has
`--set model.norm_group=32 data.crop_padding=0`. CutMix is on in each. The images are noise that
lies on the device: no input pipeline is timed.

Time: after a warm-up the variants take turns, A B C A B C ..., each turn being some steps followed
by a wait for the device, so that the drift of a shared machine hits all alike. Ratios are taken
inside a round, and reported with their lowest and highest round. Inference is timed in the same
way, with one set of parameters: GAP-FC's logits alone, and SAOL's class probabilities with the
attention map and the class maps.

Memory: the highest use of one device that its allocator saw while a variant ran alone
(`device.memory_stats()`), or, where a device does not tell (CPU) or an earlier peak hides it, what
the compiled program asks for (`memory_analysis()`: arguments + results + temporaries). The table
says which; the JSON holds both.

Arithmetic: FLOPs that XLA's `cost_analysis()` counts in the step before its own optimisations, for
all devices together; a multiply-add counts two. On GPUs XLA then turns convolutions into library
calls, whose arithmetic it does not know. The count afterwards, for one device, is in the JSON where
the compiler gives one; on a CPU it is 1 or 2 % higher for the demo.
"""

import argparse
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import record
from benchmarks.command_line import add_sizes, add_timing, make_parser, parse_fields
from benchmarks.synthetic import VARIANTS, SyntheticExperiment, make_config, synthetic_images
from saol_jax.compiler import compiler_options
from saol_jax.data.augment import normalise
from saol_jax.experiment import Experiment
from saol_jax.train_step import Batch

INFERENCE = {"gap": "GAP-FC, logits", "saol": "SAOL, with maps"}

_WARM_UP_STEPS = 2
_INFERENCE_SHARE = 0.25  # of the measuring time


def main() -> None:
  """Measures, prints the tables and writes the JSON."""
  options = parse()
  mode = "_deterministic" if options.deterministic else ""
  output, result = record.begin(options.output, f"step_{options.backbone}{mode}")
  images = synthetic_images(options)
  fields = {"deterministic": options.deterministic} | parse_fields(options.set)
  experiments = {
    name: SyntheticExperiment(make_config(options, fields | changes), images)
    for name, (_, changes) in VARIANTS.items()
  }
  config = experiments["saol"].config
  batch = experiments["saol"].put(images[np.arange(options.batch_size)])
  print(
    f"{options.backbone}, {options.image_size} px, {options.num_classes} classes, batch "
    f"{options.batch_size}, {config.dtype}, {result['device']['count']} x "
    f"{result['device']['kind']} (CPU: {result['device']['cpu']})",
    flush=True,
  )

  training, steps = compile_training(experiments, batch)
  states = {name: experiment.init() for name, experiment in experiments.items()}
  turns = {name: training_turn(steps[name], states, name, batch) for name in VARIANTS}
  seconds = options.seconds * (1 - _INFERENCE_SHARE)
  timing = measure(turns, rounds=options.rounds, seconds=seconds)
  _add_times(training, timing, options.batch_size)
  for name, state in states.items():
    # Arithmetic with NaN can take another time.
    training[name]["first_bad_step"] = max(int(step) for step in state.bad_step.values())

  variables = states["saol"].variables
  inference, functions = compile_inference(experiments["saol"], variables, batch["image"])
  turns = {name: inference_turn(functions[name], variables, batch["image"]) for name in INFERENCE}
  seconds = options.seconds * _INFERENCE_SHARE
  inference_timing = measure(turns, rounds=options.rounds, seconds=seconds)
  _add_times(inference, inference_timing, options.batch_size)

  result["settings"] = {
    **{name: value for name, value in vars(options).items() if name != "output"},
    "steps_a_turn": timing["steps"],
    "inference_steps_a_turn": inference_timing["steps"],
    "config": config.to_dict(),
  }
  result["training"], result["inference"] = training, inference
  print(f"\n{tables(training, inference)}")
  record.write(output, result)


def compile_training(
  experiments: dict[str, Experiment], batch: Batch
) -> tuple[dict[str, Any], dict[str, Callable]]:
  """Compiles each variant's step and runs it alone, to see its memory.

  Returns:
    By variant: its numbers so far, for JSON, and its compiled step.
  """
  numbers, steps = {}, {}
  device = jax.local_devices()[0]
  for name, experiment in experiments.items():
    steps[name], numbers[name] = _compile(experiment.train_step, experiment.abstract_state(), batch)
    # Read after the compilation, which tries algorithms out on the device.
    peak_before = _peak_bytes(device)
    begin = time.perf_counter()
    state = experiment.init()
    parameters = state.variables.params
    numbers[name]["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    del parameters
    for _ in range(_WARM_UP_STEPS):
      state, values = steps[name](state, batch)
    jax.block_until_ready((state, values))
    del state
    numbers[name]["fresh_state_seconds"] = time.perf_counter() - begin
    print(
      f"{name}: compiled in {numbers[name]['compile_seconds']:.0f} s, "
      f"a fresh state and {_WARM_UP_STEPS} steps in {numbers[name]['fresh_state_seconds']:.0f} s",
      flush=True,
    )
    numbers[name]["memory"] = {
      "allocator_peak_bytes": _peak_bytes(device),
      "allocator_peak_bytes_before": peak_before,
      "program_bytes": program_bytes(steps[name]),
    }
  choose_memory([variant["memory"] for variant in numbers.values()])
  return numbers, steps


def choose_memory(memories: Sequence[dict[str, Any]]) -> None:
  """Adds `bytes` and their `source`, the same for all variants so that they can be compared.

  The allocator's peak never falls: it belongs to a variant only if that variant raised it.
  """
  measured = all(
    memory["allocator_peak_bytes"] is not None
    and memory["allocator_peak_bytes"] > memory["allocator_peak_bytes_before"]
    for memory in memories
  )
  for memory in memories:
    memory["source"] = "device.memory_stats()" if measured else "compiled.memory_analysis()"
    memory["bytes"] = memory["allocator_peak_bytes" if measured else "program_bytes"]


def compile_inference(
  experiment: Experiment, variables: Any, images: jax.Array
) -> tuple[dict[str, Any], dict[str, Callable]]:
  """Compiles the forward pass of each head; the compiler drops what a head does not need."""

  def forward(head: str) -> Callable:
    def inference(variables, images):
      images = normalise(images, experiment.info.mean, experiment.info.std)
      output, _ = experiment.model.apply(variables, images, train=False)
      return output.gap_logits if head == "gap" else output.spatial

    return jax.jit(inference, compiler_options=compiler_options(experiment.mesh))

  numbers, functions = {}, {}
  for head in INFERENCE:
    functions[head], numbers[head] = _compile(forward(head), variables, images)
  return numbers, functions


def measure(
  turns: dict[str, Callable[[int], None]], *, rounds: int, seconds: float
) -> dict[str, Any]:
  """Times functions in turns: A B C A B C ...

  Args:
    turns: by name, a function that does the given number of steps and waits for their end.
    rounds: how often each has its turn.
    seconds: that all rounds together should take; a turn has at least one step.

  Returns:
    `steps` of a turn, and `seconds`: by name, the mean time of a step in each round.
  """
  for turn in turns.values():
    turn(_WARM_UP_STEPS)
  once = sum(seconds_of(turn, 1) for turn in turns.values())
  steps = max(1, round(seconds / rounds / once))
  times = {name: [] for name in turns}
  for _ in range(rounds):
    for name, turn in turns.items():
      times[name].append(seconds_of(turn, steps) / steps)
  return {"steps": steps, "seconds": times}


def tables(training: dict[str, Any], inference: dict[str, Any]) -> str:
  """Markdown tables of both, with ratios to the first row of each."""
  memory = next(iter(training.values()))["memory"]
  step_rows = [
    (
      VARIANTS[name][0],
      *_time_cells(numbers),
      f"{numbers['memory']['bytes'] / 2**20:.1f}",
      f"{numbers['ratio_to_gap']['memory']:.2f}",
      f"{numbers['flops'] / 1e9:.3f}",
      f"{numbers['ratio_to_gap']['flops']:.2f}",
      f"{numbers['trace_seconds'] + numbers['compile_seconds']:.1f}",
    )
    for name, numbers in training.items()
  ]
  inference_rows = [
    (
      INFERENCE[name],
      *_time_cells(numbers),
      f"{numbers['flops'] / 1e9:.3f}",
      f"{numbers['ratio_to_gap']['flops']:.2f}",
      f"{numbers['trace_seconds'] + numbers['compile_seconds']:.1f}",
    )
    for name, numbers in inference.items()
  ]
  times = ("ms (lowest-highest)", "images/s", "time ratio (lowest-highest)")
  flops = ("GFLOPs", "ratio", "compile s")
  bad = [VARIANTS[name][0] for name, numbers in training.items() if numbers["first_bad_step"]]
  return "\n".join(
    [
      record.markdown(
        ("training step", *times, "peak MiB", "ratio", *flops), step_rows, text_columns=1
      ),
      "",
      record.markdown(("inference", *times, *flops), inference_rows, text_columns=1),
      "",
      f"Medians over rounds; ratios to the first row. Peak memory by {memory['source']}.",
      *(f"Not comparable: the loss of {variant} was not finite." for variant in bad),
    ]
  )


def _time_cells(numbers: dict[str, Any]) -> tuple[str, str, str]:
  step, ratio = numbers["step_seconds"], numbers["ratio_to_gap"]["time"]
  low, middle, high = (1000 * step[key] for key in ("min", "median", "max"))
  return (
    f"{middle:.2f} ({low:.2f}-{high:.2f})",
    f"{numbers['images_per_second']:.1f}",
    f"{ratio['median']:.3f} ({ratio['min']:.3f}-{ratio['max']:.3f})",
  )


def _add_times(numbers: dict[str, Any], timing: dict[str, Any], batch_size: int) -> None:
  """Adds step time, images/s, and ratios to "gap" of time, FLOPs and memory."""
  base = numbers["gap"]
  for name, seconds in timing["seconds"].items():
    own = numbers[name]
    ratios = [a / b for a, b in zip(seconds, timing["seconds"]["gap"], strict=True)]
    own["step_seconds"] = spread(seconds)
    own["images_per_second"] = batch_size / own["step_seconds"]["median"]
    own["ratio_to_gap"] = {"time": spread(ratios), "flops": own["flops"] / base["flops"]}
    if "memory" in own:
      own["ratio_to_gap"]["memory"] = own["memory"]["bytes"] / base["memory"]["bytes"]


def spread(rounds: Sequence[float]) -> dict[str, Any]:
  """What is kept of a number that each round has: all of it, and its middle and ends."""
  return {
    "median": statistics.median(rounds),
    "min": min(rounds),
    "max": max(rounds),
    "rounds": list(rounds),
  }


def training_turn(step: Callable, states: dict[str, Any], name: str, batch: Batch) -> Callable:
  """A function that does a number of steps on `states[name]`, and waits for them."""

  def turn(steps: int) -> None:
    for _ in range(steps):
      # The step donates the state: the next one takes its place.
      states[name], values = step(states[name], batch)
    jax.block_until_ready((states[name], values))

  return turn


def inference_turn(function: Callable, variables: Any, images: jax.Array) -> Callable:
  """A function that calls another one a number of times, and waits for the last result."""

  def turn(steps: int) -> None:
    for _ in range(steps):
      output = function(variables, images)
    jax.block_until_ready(output)

  return turn


def seconds_of(turn: Callable[[int], None], steps: int) -> float:
  """The time that a turn of some steps takes."""
  start = time.perf_counter()
  turn(steps)
  return time.perf_counter() - start


def _compile(function: Callable, *arguments: Any) -> tuple[Callable, dict[str, Any]]:
  """Compiles a jitted function; also its times and FLOPs, for JSON."""
  start = time.perf_counter()
  lowered = function.lower(*arguments)
  traced = time.perf_counter()
  compiled = lowered.compile()
  return compiled, {
    "trace_seconds": traced - start,
    "compile_seconds": time.perf_counter() - traced,
    "flops": record.count_flops(lowered),
    "flops_after_optimisation": (compiled.cost_analysis() or {}).get("flops"),
  }


def _peak_bytes(device: jax.Device) -> int | None:
  """The highest memory use of a device so far; None where it does not tell."""
  return (device.memory_stats() or {}).get("peak_bytes_in_use")


def program_bytes(compiled: Any) -> int:
  """Memory of one device that a compiled program needs; donated arguments count once."""
  memory = compiled.memory_analysis()
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
  )


def parse() -> argparse.Namespace:
  """The command line."""
  parser = make_parser(__doc__)
  add_sizes(parser, backbone="resnet8", image_size=32, num_classes=10, dtype="auto")
  add_timing(parser, rounds=30)
  parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="of the config")
  parser.add_argument(
    "--deterministic", action="store_true", help="as --config.deterministic; changes GPUs alone"
  )
  return parser.parse_args()


if __name__ == "__main__":
  record.run(main)
