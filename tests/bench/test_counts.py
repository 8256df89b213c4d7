"""heads.py and scaling.py: what they count, against counts by hand."""

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import heads, scaling
from saol_jax import create_model
from saol_jax.arithmetic import multiply_adds
from saol_jax.model import FunctionalModel
from tests.bench.calls import (
  CLASSES,
  PIXELS,
  QUICK_COMPILATION,
  WIDTH,
  call,
  check_description,
  parameters,
)
from tests.support import table_rows


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
