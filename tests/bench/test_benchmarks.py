"""The benchmarks, run as a user runs them, against counts by hand and recomputed ratios."""

import importlib
import json
import math
import pathlib
import shlex
import statistics
import subprocess
import sys
import time
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import (
  accelerator,
  heads,
  input,
  localise,
  predict,
  record,
  scaling,
  step,
  step_torch,
  synthetic,
)
from benchmarks.command_line import parse_fields, set_fields
from saol_jax import create_model
from saol_jax.arithmetic import multiply_adds
from saol_jax.config import default_config, resolve
from saol_jax.data import ArraySource
from saol_jax.data.source import DatasetInfo
from saol_jax.errors import UserError
from saol_jax.model import FunctionalModel
from tests.support import ROOT, run, table_rows

BATCH, PIXELS, CLASSES, WIDTH = 4, 16, 5, 8
QUICK_COMPILATION = "--xla_backend_optimization_level=0"


def call(script: str, *arguments: str) -> tuple[int, str]:
  return run(
    [sys.executable, "-W", "error:::saol_jax", str(ROOT / "benchmarks" / script), *arguments]
  )


def parameters(**options) -> int:
  """Of resnet8 with an output layer."""
  model = nnx.eval_shape(lambda: create_model("resnet8", CLASSES, rngs=nnx.Rngs(0), **options))
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def check_description(result: dict) -> None:
  """The result tells truly where it comes from."""
  head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
  assert result["commit"] == (head.stdout.strip() if head.returncode == 0 else None)
  assert (result["dirty"] is None) == (result["commit"] is None)
  assert result["device"]["platform"] == "cpu"
  assert result["device"]["count"] == 1
  assert result["versions"]["flax"] == metadata.version("flax")
  assert result["date"].endswith("+00:00")


def test_eight_devices_exchange_no_more_than_four(tmp_path, monkeypatch):
  """One all-reduce of the gradients and the running statistics; a few scalars on top."""
  monkeypatch.setenv("XLA_FLAGS", QUICK_COMPILATION)
  output = tmp_path / "scaling.json"
  sizes = f"--image_size={PIXELS} --num_classes={CLASSES} --width={WIDTH} --per_device=4".split()
  code, printed = call(
    "scaling.py", "--backbone=resnet8", "--devices", "4", "8", *sizes, f"--output={output}",
    "--norm_group=4", "--dtype=float32",
  )  # fmt: skip
  assert code == 0, printed
  four, eight = json.loads(output.read_text())["programs"]
  assert (four["devices"], eight["devices"]) == (4, 8)
  assert four["collectives"] == eight["collectives"]
  assert set(eight["collectives"]) == {"all-reduce"}
  sums = eight["collectives"]["all-reduce"]
  assert sums["number"] == 1
  expected = 4 * parameters(width=WIDTH) + eight["statistics_bytes"]
  assert eight["parameter_bytes"] == 4 * parameters(width=WIDTH)
  assert expected < sums["bytes"] < expected + 100
  assert [row[3] for row in table_rows(printed) if row[0] == "SAOL"] == ["1", "1"]


def test_collectives_are_counted_with_their_bytes():
  program = """
    %all-reduce.1 = (f32[3,5]{1,0}, bf16[7]{0}) all-reduce(%a, %b), channel_id=1, to_apply=%add
    %all-reduce-start.2 = f32[] all-reduce-start(%c), channel_id=2, to_apply=%add
    %all-reduce-done.2 = f32[] all-reduce-done(%all-reduce-start.2)
    %ag = (u8[2]{0}, u8[8]{0}) all-gather-start(%d), channel_id=3, dimensions={0}
    %fusion = f32[3,5]{1,0} fusion(%all-reduce.1), kind=kLoop, calls=%f
  """
  assert scaling.collectives(program) == {
    "all-reduce": {"number": 2, "bytes": 3 * 5 * 4 + 7 * 2 + 4},
    "all-gather": {"number": 1, "bytes": 8},
  }


# heads.py ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
  """JSON and output of heads.py for a tiny network and for ResNet-50."""
  path = tmp_path_factory.mktemp("heads") / "heads.json"
  networks = [f"resnet8:{PIXELS}:{CLASSES}", "resnet50:224:1000"]
  code, output = call("heads.py", "--networks", *networks, f"--output={path}")
  assert code == 0, output
  return json.loads(path.read_text()), output


def conv(size: int, kernel: int, inputs: int, outputs: int, *, padded: bool = True) -> int:
  """Multiply-adds of a convolution to size x size; without those that meet padding if not `padded`.

  Of a 3 x 3 kernel with stride 1, one tap of three falls outside at both ends of each axis.
  """
  taps = kernel * size if padded or kernel == 1 else kernel * size - 2
  return taps**2 * inputs * outputs


def by_hand(*, padded: bool) -> dict[str, int]:
  """Multiply-adds of resnet8 at 16 pixels: stage maps 8 x 8 x 32, 4 x 4 x 64, 4 x 4 x 64."""

  def c(*args):
    return conv(*args, padded=padded)

  # With stride 2 and padding 1 on an even size, one tap is lost at the start of each axis alone.
  def strided(size, inputs, outputs):
    return (3 * size - (0 if padded else 1)) ** 2 * inputs * outputs

  backbone = strided(8, 3, 32) + 2 * c(8, 3, 32, 32)
  backbone += strided(4, 32, 64) + c(4, 3, 64, 64) + c(4, 1, 32, 64)
  backbone += 2 * c(4, 3, 64, 64)
  resize = 4 * 8 * 32 * 8 + 4 * 4 * 32 * 8  # 8 x 8 x 32 to 4 x 8 x 32 to 4 x 4 x 32
  resize += 2 * 4 * 8 * 8  # its weights, a resized identity, for each direction
  gap = 64 * CLASSES
  counts = {"gap": backbone + gap}
  for head, width, kernel in (("saol", 128, 3), ("light", 64, 1)):
    branch = c(4, kernel, 64, width) + c(4, kernel, width, 1)
    laterals = c(4, 1, 32, width) + 2 * c(4, 1, 64, width)
    saol = branch + resize + laterals + c(4, kernel, 3 * width, CLASSES)
    counts[f"{head}_inference"] = backbone + saol
    counts[f"{head}_training"] = backbone + saol + branch + gap
  return counts


def test_multiply_adds_are_those_counted_by_hand(counted):
  outputs = counted[0]["networks"][0]["outputs"]
  assert {key: output["multiply_adds"] for key, output in outputs.items()} == by_hand(padded=True)


def test_xla_counts_two_for_each_product_inside_the_image(counted):
  outputs = counted[0]["networks"][0]["outputs"]
  for key, products in by_hand(padded=False).items():
    # Beyond them, normalisation, activations and softmax.
    assert 1 < outputs[key]["xla_flops"] / (2 * products) < 1.1, key


def test_compiling_hardly_changes_the_count(counted):
  model = FunctionalModel(lambda rngs: create_model("resnet8", CLASSES, rngs=rngs))
  variables = jax.eval_shape(model.init, jax.random.key(0))
  image = jax.ShapeDtypeStruct((1, PIXELS, PIXELS, 3), jnp.float32)
  forward = jax.jit(lambda v, x: model.apply(v, x, train=False)[0].spatial)
  compiled = forward.lower(variables, image).compile().cost_analysis()["flops"]
  lowered = counted[0]["networks"][0]["outputs"]["saol_inference"]["xla_flops"]
  assert lowered == pytest.approx(compiled, rel=0.01)


def test_head_parameters_are_those_of_create_model(counted):
  outputs = counted[0]["networks"][0]["outputs"]
  gap = parameters(head="gap")
  linear = 64 * CLASSES + CLASSES
  assert outputs["gap"]["parameters"] == gap
  assert outputs["gap"]["head_parameters"] == linear
  assert outputs["saol_inference"]["parameters"] == parameters(mask_branch=False) - linear
  assert outputs["saol_training"]["parameters"] == parameters()
  assert outputs["saol_training"]["head_parameters"] == parameters() - gap + linear


def test_resnet50_is_torchvisions(counted):
  """25,557,032 parameters and 4.089 G multiply-adds in torchvision's table of weights."""
  gap = counted[0]["networks"][1]["outputs"]["gap"]
  assert gap["parameters"] == 25_557_032
  assert round(gap["multiply_adds"] / 1e9, 3) == 4.089
  assert gap["head_multiply_adds"] == 2048 * 1000


def test_the_heads_of_resnet50_are_within_the_bars(counted):
  """Forward pass over GAP-FC's: 8 %; the light head 3 %, and a tenth of the parameters."""
  over = {k: v["over_gap_percent"] for k, v in counted[0]["networks"][1]["outputs"].items()}
  for count in ("multiply_adds", "xla_flops"):
    assert 0 < over["saol_inference"][count] <= 8
    assert 0 < over["light_inference"][count] <= 3
    assert 0 < over["light_training"][count] <= 3
  assert over["light_inference"]["parameters"] < over["light_training"]["parameters"] <= 10


def test_heads_table_says_what_the_json_says(counted):
  result, output = counted
  check_description(result)
  assert "benchmarks/heads.py" in result["command"]
  printed = iter(table_rows(output))
  for network in result["networks"]:
    base = network["outputs"]["gap"]
    for key, label in heads.LABELS.items():
      numbers, row = network["outputs"][key], next(printed)
      assert row[:3] == [
        f"{network['name']}, {network['image_size']} px, {network['num_classes']} classes",
        label,
        f"{numbers['parameters'] / 1e6:.3f}",
      ]
      if key == "gap":
        assert row[4] == row[7] == row[9] == ""
        continue
      for column, name in ((4, "parameters"), (7, "multiply_adds")):
        percent = 100 * (numbers[name] - base[name]) / base[name]
        assert row[column] == f"{percent:+.1f} %"
      xla = base["xla_flops"]
      if key.endswith("_training"):
        xla = network["gap_xla_flops_in_training"]
      assert row[9] == f"+{100 * (numbers['xla_flops'] - xla) / xla:.1f} %"
  assert next(printed, None) is None


def test_multiply_adds_of_groups_and_batches():
  """Each output of a grouped convolution reads its group alone; batched products add up."""

  def count(function, *shapes) -> int:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return multiply_adds(jax.make_jaxpr(function)(*arguments).jaxpr)

  def grouped(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4
    )

  assert count(grouped, (1, 6, 6, 8), (3, 3, 2, 12)) == 6 * 6 * 12 * 3 * 3 * 2
  # Inside a jitted function too.
  product = jax.jit(lambda a, b: jnp.einsum("bij,bjk->bik", a, b))
  assert count(product, (7, 2, 3), (7, 3, 5)) == 7 * 2 * 3 * 5
  with pytest.raises(ValueError, match="scan"):
    count(lambda x: jax.lax.scan(lambda c, y: (c, y @ y), 0, x), (3, 2, 2))


# step.py ----------------------------------------------------------------------


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


# predict.py -------------------------------------------------------------------


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


def test_flops_are_counted_where_the_compiler_of_the_device_does_not_tell(monkeypatch):
  """As those of GPUs and TPUs do not."""
  matrix = jax.ShapeDtypeStruct((8, 8), jnp.float32)
  lowered = jax.jit(lambda a, b: jnp.tanh(a @ b)).lower(matrix, matrix)
  assert record.count_flops(lowered) == 2 * 8**3
  monkeypatch.setattr(type(lowered), "cost_analysis", lambda self: None)
  assert record.count_flops(lowered) == 2 * 8**3


# step_torch.py ----------------------------------------------------------------


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


# localise.py ------------------------------------------------------------------


def localised(seed: int, gt_known: float, **changed) -> dict:
  config = {"seed": seed, "loss": {"mask_weight": 1.0, **changed}, "eval_batch_size": seed}
  scores = {"gt_known": gt_known, "max_box_acc_v2": 0.25}
  return {"config": config, "maps": {"cam": scores}, "whole_image": scores}


def test_runs_that_differ_in_the_seed_alone_share_a_row():
  runs = [localised(0, 0.5), localised(1, 0.6), localised(0, 0.9, mask_weight=0.0)]
  for own in runs:
    own["variant"] = localise.variant(own["config"], runs[0]["config"])
  first, whole, other, _ = table_rows(localise.table(runs))
  assert first == ["as first", "2", "cam", "55.0 +- 7.1", "25.0 +- 0.0"]  # sqrt(50)
  assert whole[2] == "whole image"
  assert other == ["loss.mask_weight=0.0", "1", "cam", "90.0", "25.0"]


def test_whole_image_is_right_where_the_object_fills_as_much():
  sides = np.array([32, 23, 22, 18, 17, 5])  # of 32: shares 1, 0.52, 0.47, 0.32, 0.28, 0.02
  boxes = np.stack([0 * sides, 0 * sides, sides, sides], 1).astype(np.int32)
  info = DatasetInfo(("a",), mean=(0.5,) * 3, std=(0.5,) * 3)
  images, labels = np.zeros((6, 32, 32, 3), np.uint8), np.zeros(6, np.int32)
  found = localise.whole_image(ArraySource(images, labels, info, boxes))
  assert found["gt_known"] == pytest.approx(2 / 6)
  # Sides one longer, but that of the whole image at its border: 0.94, 0.56, 0.52, 0.35, 0.32, 0.04.
  assert found["max_box_acc_v2"] == pytest.approx((5 + 3 + 1) / 6 / 3)


# Bad input --------------------------------------------------------------------


def test_a_mistake_is_one_message_and_leaves_nothing(tmp_path):
  path = tmp_path / "heads.json"
  code, output = call("heads.py", "--networks", "resnet51:32:10", f"--output={path}")
  assert code == 2
  assert output.startswith("error: ")
  assert "resnet51" in output
  assert len(output.splitlines()) == 1
  assert not path.exists()


@pytest.mark.parametrize(
  ("module", "arguments", "message"),
  [
    (step, ["--backbone=resnet51"], "resnet51"),
    (step, ["--batch_size=6", "--dtype=float16"], "float16"),
    (step, ["--batch_size=3"], "batch_size=3"),
    (step, ["--image_size=4"], "4 x 4"),
    (step, ["--output={folder}"], "--output="),
    (step, ["--output={folder}/file/step.json"], "--output="),
    (input, ["--photos=.", "--images=4", "--batch_size=8"], "--batch_size=8"),
    (heads, ["--networks", "resnet18:224"], "'resnet18:224'"),
    (heads, ["--networks", "resnet18:0:10"], "'resnet18:0:10'"),
  ],
)
def test_bad_input_is_named(monkeypatch, tmp_path, module, arguments, message):
  (tmp_path / "file").write_text("a file where a folder is wanted")
  if not any("--output" in argument for argument in arguments):
    arguments = [*arguments, "--output={folder}/result.json"]
  arguments = [argument.format(folder=tmp_path) for argument in arguments]
  monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
  with pytest.raises(UserError) as error:
    module.main()
  assert message in str(error.value)
  assert not (tmp_path / "result.json").exists()


def test_result_files_are_whole(tmp_path):
  path = tmp_path / "result.json"
  path.write_text("{}")
  with pytest.raises(TypeError):
    record.write(path, {"number": object()})
  assert path.read_text() == "{}"
  record.write(path, {"median": statistics.median([1.0, 2.0])})
  assert json.loads(path.read_text()) == {"median": 1.5}
  assert list(tmp_path.iterdir()) == [path]


# accelerator.py ---------------------------------------------------------------


def test_a_session_on_an_accelerator_goes_on_with_what_is_missing(tmp_path, capsys):
  """With real measurements of tiny sizes, one of which cannot be, and one that has no time left."""
  heads = f"heads.py --networks resnet8:{PIXELS}:{CLASSES}"
  measurements = {
    "heads": accelerator.Measurement(heads, 300),
    "wrong": accelerator.Measurement("heads.py --networks=none", 300),
    "slow": accelerator.Measurement(heads, 0.1),
    "long": accelerator.Measurement(heads, 1e6),
  }
  accelerator.measure(measurements, tmp_path, deadline=time.monotonic() + 1000)
  outcomes = {row[0]: row[1] for row in table_rows(capsys.readouterr().out)}
  assert outcomes["heads"] == "done"
  assert outcomes["wrong"].startswith("failed with code ")
  assert outcomes["wrong"].endswith("see wrong.txt")
  assert outcomes["slow"] == "killed after 0 s, see slow.txt"
  assert outcomes["long"].startswith("not begun: ")
  assert json.loads((tmp_path / "heads.json").read_text())["networks"]
  before = (tmp_path / "heads.json").read_bytes()
  accelerator.measure(measurements, tmp_path, deadline=time.monotonic() + 1000)
  assert "was there" in capsys.readouterr().out
  assert (tmp_path / "heads.json").read_bytes() == before


@pytest.mark.parametrize("name", accelerator.MEASUREMENTS)
def test_the_measurements_of_an_accelerator_are_command_lines_that_can_be(monkeypatch, name):
  script, *arguments = shlex.split(accelerator.MEASUREMENTS[name].command)
  module = importlib.import_module(f"benchmarks.{script.removesuffix('.py')}")
  monkeypatch.setattr(sys, "argv", [script, *arguments, "--output=x.json"])
  options = module.parse()
  assert options.output == pathlib.Path("x.json")
  fields = parse_fields(getattr(options, "set", []))
  config = default_config()
  set_fields(config, fields)
  assert ("--set" in arguments) == bool(fields)
  assert resolve(config) is not config  # what cannot be is refused


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("deterministic=maybe", "--set deterministic=maybe; expected a value like False"),
    ("batch_size=1.5", "--set batch_size=1.5; expected a value like 128"),
    ("data.colour=1", "--set data.colour: no such field"),
    ("paint.colour=1", "--set paint.colour: no such field"),
  ],
)
def test_fields_that_cannot_be_set_are_named(text, message):
  with pytest.raises(UserError, match=message):
    set_fields(default_config(), parse_fields([text]))


def test_fields_are_set_as_on_the_command_line_of_main():
  config = default_config()
  fields = ["deterministic=true", "data.mean=(0.5,0.4,0.3)", "model.name=resnet8", "batch_size=8"]
  set_fields(config, parse_fields(fields))
  assert config.deterministic is True
  assert config.data.mean == (0.5, 0.4, 0.3)
  assert (config.model.name, config.batch_size) == ("resnet8", 8)
