"""step.py, predict.py and step_torch.py: what they report follows from what they measured."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import predict, step, step_torch, synthetic
from saol_jax import create_model
from saol_jax.errors import UserError
from saol_jax.model import FunctionalModel
from tests.bench.calls import (
  BATCH,
  CLASSES,
  PIXELS,
  QUICK_COMPILATION,
  WIDTH,
  call,
  check_description,
  parameters,
)
from tests.support import table_rows


def test_step_reports_what_it_measured(tmp_path, monkeypatch):
  """One run with tiny sizes, checked in several ways; quick to compile: its speed is no matter."""
  path = tmp_path / "folder" / "step.json"
  sizes = {"image_size": PIXELS, "num_classes": CLASSES, "batch_size": BATCH, "width": WIDTH}
  flags = {**sizes, "rounds": 3, "seconds": 0.2, "output": path}
  monkeypatch.setenv("XLA_FLAGS", QUICK_COMPILATION)
  code, output = call("step.py", *(f"--{name}={value}" for name, value in flags.items()))
  assert code == 0, output
  result = json.loads(path.read_text())
  check_description(result)
  assert "benchmarks/step.py" in result["command"]
  check_settings(result)
  check_ratios_and_rates(result)
  check_table(result, output)
  check_parameters_and_memory(result["training"])
  check_flops(result["training"], result["inference"])


def check_settings(result: dict) -> None:
  config = result["settings"]["config"]
  assert config["batch_size"] == BATCH
  assert config["model"]["width"] == WIDTH
  assert config["dtype"] == "float32"  # auto, on a CPU
  assert result["xla_flags"] == QUICK_COMPILATION


def check_ratios_and_rates(result: dict) -> None:
  """They follow from the rounds."""
  for part, names in (("training", synthetic.VARIANTS), ("inference", step.INFERENCE)):
    numbers = result[part]
    assert list(numbers) == list(names)
    base = np.array(numbers["gap"]["step_seconds"]["rounds"])
    assert len(base) == 3
    for own in numbers.values():
      seconds = np.array(own["step_seconds"]["rounds"])
      assert np.all(seconds > 0)
      assert own["step_seconds"]["median"] == np.median(seconds)
      assert own["images_per_second"] == pytest.approx(BATCH / np.median(seconds))
      for key, function in (("median", np.median), ("min", np.min), ("max", np.max)):
        assert own["ratio_to_gap"]["time"][key] == pytest.approx(function(seconds / base)), key
      assert own["ratio_to_gap"]["flops"] == own["flops"] / numbers["gap"]["flops"]
      if part == "training":
        memory = own["memory"]["bytes"] / numbers["gap"]["memory"]["bytes"]
        assert own["ratio_to_gap"]["memory"] == memory
        assert own["first_bad_step"] == 0


def check_table(result: dict, output: str) -> None:
  """It says what the JSON says."""
  printed = table_rows(output)
  names = [label for label, _ in synthetic.VARIANTS.values()] + list(step.INFERENCE.values())
  numbers = [*result["training"].values(), *result["inference"].values()]
  assert [row[0] for row in printed] == names
  for row, own in zip(printed, numbers, strict=True):
    seconds, ratio = own["step_seconds"], own["ratio_to_gap"]["time"]
    low, middle, high = (f"{1000 * seconds[key]:.2f}" for key in ("min", "median", "max"))
    assert row[1] == f"{middle} ({low}-{high})"
    assert row[2] == f"{own['images_per_second']:.1f}"
    assert row[3] == f"{ratio['median']:.3f} ({ratio['min']:.3f}-{ratio['max']:.3f})"


def check_parameters_and_memory(training: dict) -> None:
  expected = {
    "gap": parameters(head="gap"),
    "saol_without_ss2": parameters(width=WIDTH),
    "saol_half_ss2": parameters(width=WIDTH),
    "saol": parameters(width=WIDTH),
  }
  assert {name: own["parameters"] for name, own in training.items()} == expected
  for name, own in training.items():
    assert own["memory"]["source"] == "compiled.memory_analysis()"  # a CPU does not tell
    # At least parameters and both of AdamW's moments, all float32.
    assert own["memory"]["bytes"] > 3 * 4 * expected[name]
    assert own["memory"]["bytes"] < 20 * 4 * expected[name]


def check_flops(training: dict, inference: dict) -> None:
  """A step is about three forward passes; L_SS2 adds one, of SAOL, or half of one."""

  def forward(head: str, *, train: bool) -> float:
    model = FunctionalModel(
      lambda rngs: create_model("resnet8", CLASSES, head=head, width=WIDTH, rngs=rngs)
    )
    variables = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((BATCH, PIXELS, PIXELS, 3), jnp.float32)
    function = jax.jit(lambda v, x: model.apply(v, x, train=train))
    return function.lower(variables, images).cost_analysis()["flops"]

  assert 2.7 < training["gap"]["flops"] / forward("gap", train=True) < 3.3
  for name, passes in (("saol", 1), ("saol_half_ss2", 0.5)):
    extra = training[name]["flops"] - training["saol_without_ss2"]["flops"]
    assert 0.9 * passes < extra / forward("saol", train=True) < 1.1 * passes
  assert inference["gap"]["flops"] == pytest.approx(forward("gap", train=False), rel=0.02)
  assert inference["saol"]["flops"] == pytest.approx(forward("saol", train=False), rel=0.02)
  for own in (*training.values(), *inference.values()):
    assert own["flops_after_optimisation"] == pytest.approx(own["flops"], rel=0.05)


def test_variants_take_turns_after_a_warm_up(monkeypatch):
  """With a clock that a step of "slow" moves by 2 s and one of "fast" by 1 s."""
  clock, calls = [0.0], []
  monkeypatch.setattr(step.time, "perf_counter", lambda: clock[0])

  def turn(name: str, seconds: float):
    def take(steps: int) -> None:
      calls.append((name, steps))
      clock[0] += seconds * steps

    return take

  turns = {"slow": turn("slow", 2.0), "fast": turn("fast", 1.0)}
  timing = step.measure(turns, rounds=3, seconds=45.0)
  assert timing["steps"] == 5
  assert timing["seconds"] == {"slow": [2.0] * 3, "fast": [1.0] * 3}
  warm_up = [(name, steps) for name, steps in calls if steps != 5]
  assert {name for name, _ in warm_up} == {"slow", "fast"}
  assert calls[len(warm_up) :] == [("slow", 5), ("fast", 5)] * 3


def test_predict_reports_what_it_measured(tmp_path, monkeypatch):
  path = tmp_path / "predict.json"
  flags = {"backbones": "resnet8", "width": WIDTH, "batch_size": 2, "rounds": 3, "output": path}
  monkeypatch.setenv("XLA_FLAGS", QUICK_COMPILATION)
  code, output = call("predict.py", *(f"--{name}={value}" for name, value in flags.items()))
  assert code == 0, output
  result = json.loads(path.read_text())
  check_description(result)
  numbers = result["networks"]["resnet8"]
  assert numbers.pop("width") == WIDTH
  assert list(numbers) == ["gap", "saol", "predictor"]
  # SAOL's forward pass does all that GAP-FC's does, and the predictor does all of SAOL's.
  flops = [numbers[name]["flops"] for name in ("gap", "saol")]
  assert flops[0] < flops[1]
  for own, row in zip(numbers.values(), table_rows(output), strict=True):
    clock = np.array(own["clock_seconds"])
    assert len(clock) == len(own["busy_seconds"]) == 3
    assert own["images_per_second"] == pytest.approx(2 / np.median(clock))
    ratio = np.median(clock / np.array(numbers["gap"]["clock_seconds"]))
    assert own["ratio_to_gap"]["clock_seconds"] == pytest.approx(ratio)
    assert row[2:5] == [
      f"{1000 * np.median(clock):.1f}",
      f"{own['images_per_second']:.0f}",
      f"{ratio:.2f}",
    ]


def test_turns_are_timed_on_the_clock_and_by_what_the_cores_did():
  """Waiting is no work: a turn that sleeps is long on the clock and short on the cores."""
  spun = []

  def spin():
    start = time.process_time()
    while time.process_time() - start < 0.02:
      spun.append(0)

  seconds = predict.take_turns({"sleep": lambda: time.sleep(0.02), "spin": spin}, rounds=2)
  assert [len(part) for own in seconds.values() for part in own] == [2, 2, 2, 2]
  assert min(*seconds["sleep"][0], *seconds["spin"][0], *seconds["spin"][1]) >= 0.02
  assert max(seconds["sleep"][1]) < 0.01


@pytest.mark.parametrize(
  ("peaks", "bytes_", "source"),
  [
    # (before, after) of each variant; the programs ask for 10, 11, 12.
    (((5, 20), (20, 30), (30, 40)), (20, 30, 40), "device.memory_stats()"),
    (((5, 20), (25, 25), (25, 40)), (10, 11, 12), "compiled.memory_analysis()"),
    (((None, None),) * 3, (10, 11, 12), "compiled.memory_analysis()"),
  ],
)
def test_a_peak_counts_only_for_the_variant_that_raised_it(peaks, bytes_, source):
  memories = [
    {
      "allocator_peak_bytes_before": before,
      "allocator_peak_bytes": after,
      "program_bytes": 10 + i,
    }
    for i, (before, after) in enumerate(peaks)
  ]
  step.choose_memory(memories)
  assert tuple(memory["bytes"] for memory in memories) == bytes_
  assert {memory["source"] for memory in memories} == {source}


def test_ours_is_compared_round_by_round():
  training = {"saol_jax": {"memory": {"bytes": 2**21}}, "PyTorch eager": {"peak_bytes": None}}
  seconds = {"saol_jax": [0.1, 0.3, 0.2], "PyTorch eager": [0.1, 0.1, 0.4]}
  busy = {"saol_jax": [0.2, 0.2, 0.2], "PyTorch eager": [0.1, 0.4, 0.1]}
  step_torch.add_times(training, seconds, busy, batch_size=8)
  theirs = training["PyTorch eager"]
  assert theirs["our_time_over_this"]["rounds"] == pytest.approx([1.0, 3.0, 0.5])
  assert theirs["our_busy_time_over_this"]["median"] == 2.0
  assert theirs["images_per_second"] == 80
  ours, row = table_rows(step_torch.table(training))
  assert ours[3:] == ["1.00 (1.00-1.00)", "1.00", "2"]
  assert row == ["PyTorch eager", "100.0 (100.0-400.0)", "80", "1.00 (0.50-3.00)", "2.00", ""]


def test_without_pytorch_there_is_one_message():
  torch = step_torch.Torch("true")  # a program that ends at once
  with pytest.raises(UserError, match="--torch_python="):
    torch.ask(variant="eager", steps=1)
  torch.close()
