import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from saol_jax.backbones import create_backbone, layers, list_backbones, register
from saol_jax.backbones.resnet import ResidualBlock, ResNet, bottleneck_plan
from saol_jax.backbones.wide_resnet import PreActivationResNet
from saol_jax.errors import UserError
from saol_jax.norm import GhostBatchNorm
from tests.backbones.counts import PARAMETERS
from tests.backbones.numerics import (
  abstract,
  assert_gradient_reaches_every_parameter,
  assert_maps_agree,
  build,
  changes_statistics,
  count,
  forward,
  images,
  leaves,
  map_shapes,
  numpy_conv,
  numpy_max_pool,
  numpy_norm,
  relu,
  unused_parameters,
)

# Channels and strides of the stages, from the papers' tables.
STAGES = {
  "convnext_small": ((96, 192, 384, 768), (4, 8, 16, 32)),
  "convnext_tiny": ((96, 192, 384, 768), (4, 8, 16, 32)),
  "densenet121": ((256, 512, 1024, 1024), (4, 8, 16, 32)),
  "densenet_bc_100_12": ((216, 300, 342), (1, 2, 4)),
  "efficientnet_b0": ((24, 40, 112, 1280), (4, 8, 16, 32)),
  "efficientnet_b1": ((24, 40, 112, 1280), (4, 8, 16, 32)),
  "efficientnet_b2": ((24, 48, 120, 1408), (4, 8, 16, 32)),
  "efficientnet_b3": ((32, 48, 136, 1536), (4, 8, 16, 32)),
  "efficientnet_b4": ((32, 56, 160, 1792), (4, 8, 16, 32)),
  "mobilenet_v2": ((24, 32, 96, 1280), (4, 8, 16, 32)),
  "nasnet_mobile": ((44, 264, 528, 1056), (4, 8, 16, 32)),
  "pyramidnet110_a64": ((148, 236, 320), (1, 2, 4)),
  "pyramidnet200_a240": ((384, 704, 1024), (1, 2, 4)),
  "resnet8": ((32, 64, 64), (2, 4, 4)),
  "resnet18": ((64, 128, 256, 512), (4, 8, 16, 32)),
  "resnet20": ((16, 32, 64), (1, 2, 4)),
  "resnet34": ((64, 128, 256, 512), (4, 8, 16, 32)),
  "resnet50": ((256, 512, 1024, 2048), (4, 8, 16, 32)),
  "resnet50_dcn": ((256, 512, 1024, 2048), (4, 8, 16, 32)),
  "resnet56": ((16, 32, 64), (1, 2, 4)),
  "resnet101": ((256, 512, 1024, 2048), (4, 8, 16, 32)),
  "resnet110": ((16, 32, 64), (1, 2, 4)),
  "resnet152": ((256, 512, 1024, 2048), (4, 8, 16, 32)),
  "resnet200": ((256, 512, 1024, 2048), (4, 8, 16, 32)),
  "resnext29_8x64d": ((256, 512, 1024), (1, 2, 4)),
  "resnext50_32x4d": ((256, 512, 1024, 2048), (4, 8, 16, 32)),
  "resnext101_32x4d": ((256, 512, 1024, 2048), (4, 8, 16, 32)),
  "tf_efficientnet_b0": ((24, 40, 112, 1280), (4, 8, 16, 32)),
  "tf_efficientnet_b1": ((24, 40, 112, 1280), (4, 8, 16, 32)),
  "tf_efficientnet_b2": ((24, 48, 120, 1408), (4, 8, 16, 32)),
  "tf_efficientnet_b3": ((32, 48, 136, 1536), (4, 8, 16, 32)),
  "tf_efficientnet_b4": ((32, 56, 160, 1792), (4, 8, 16, 32)),
  "tf_mobilenet_v2": ((24, 32, 96, 1280), (4, 8, 16, 32)),
  "vgg16_gap": ((64, 128, 256, 512, 1024), (1, 2, 4, 8, 16)),
  "vit_base_16": ((768, 768, 768), (16, 16, 16)),
  "vit_small_16": ((384, 384, 384), (16, 16, 16)),
  "wide_resnet50_2": ((256, 512, 1024, 2048), (4, 8, 16, 32)),
  "wrn_16_4": ((64, 128, 256), (1, 2, 4)),
  "wrn_28_10": ((160, 320, 640), (1, 2, 4)),
  "wrn_40_2": ((32, 64, 128), (1, 2, 4)),
}
# The sides of the maps of 75x97 pixels where they are not all rounded up, as in the references.
SIDES = {
  "convnext_small": ((18, 24), (9, 12), (4, 6), (2, 3)),
  "convnext_tiny": ((18, 24), (9, 12), (4, 6), (2, 3)),
  "densenet121": ((19, 25), (9, 12), (4, 6), (2, 3)),
  "densenet_bc_100_12": ((75, 97), (37, 48), (18, 24)),
  "nasnet_mobile": ((19, 24), (10, 12), (5, 6), (3, 3)),
  "vgg16_gap": ((75, 97), (37, 48), (18, 24), (9, 12), (4, 6)),
  "vit_base_16": ((4, 6),) * 3,
  "vit_small_16": ((4, 6),) * 3,
}
# One a class of networks: the others differ in numbers only.
LAST_STRIDE = (
  "convnext_tiny",
  "densenet_bc_100_12",
  "efficientnet_b0",
  "mobilenet_v2",
  "pyramidnet110_a64",
  "resnet8",
  "resnet18",
  "resnet20",
  "resnet50",
  "vgg16_gap",
  "wrn_16_4",
)
# Dropout of values, in every block; of whole branches and ShakeDrop, more often the deeper a block.
WITH_DROPOUT = ("densenet121", "densenet_bc_100_12", "resnet8", "wrn_16_4", "wrn_28_10", "wrn_40_2")
WITH_DROP_PATH = (
  "convnext_small",
  "convnext_tiny",
  "vit_base_16",
  "vit_small_16",
  *(f"efficientnet_b{i}" for i in range(5)),
  *(f"tf_efficientnet_b{i}" for i in range(5)),
)
WITH_SHAKE_DROP = ("pyramidnet110_a64", "pyramidnet200_a240")

every_backbone = pytest.mark.parametrize("name", list_backbones())


def tiny_resnet(*, bottleneck, depths=(2, 1, 1, 1), last_stride=2):
  return ResNet(depths, bottleneck=bottleneck, width=4, last_stride=last_stride, rngs=nnx.Rngs(0))


# Counts and shapes.


def test_every_backbone_is_in_the_tables():
  assert set(PARAMETERS) == set(STAGES) == set(list_backbones())
  assert list(list_backbones()) == sorted(list_backbones())


@every_backbone
def test_parameter_count(name):
  classes, expected = PARAMETERS[name]
  model = abstract(name)
  assert count(model) + model.stage_channels[-1] * classes + classes == expected


@pytest.mark.parametrize(("depth", "widen"), [(16, 4), (40, 2), (28, 10)])
def test_wide_resnet_counts_by_arithmetic(depth, widen):
  total, channels = 3 * 9 * 16, 16
  for width in (16 * widen, 32 * widen, 64 * widen):
    total += channels * width  # one projection a group: the first block always widens
    for _ in range((depth - 4) // 6):
      total += 9 * channels * width + 9 * width * width + 2 * channels + 2 * width
      channels = width
  assert count(abstract(f"wrn_{depth}_{widen}")) == total + 2 * channels


def assert_stages(model, channels, strides, sides=None):
  assert model.stage_channels == channels
  assert model.stage_strides == strides
  # 75 and 97 divide by no stride, so that a padding on the wrong side would change a shape.
  height, width = 75, 97
  sides = sides or [(-(-height // s), -(-width // s)) for s in strides]
  assert [x.shape for x in map_shapes(model, height, width)] == [
    (2, *side, c) for c, side in zip(channels, sides, strict=True)
  ]


@every_backbone
def test_stage_shapes(name):
  assert_stages(abstract(name), *STAGES[name], SIDES.get(name))


@every_backbone
def test_the_last_map_depends_on_every_parameter(name):
  assert unused_parameters(abstract(name), 75, 97) == []


@every_backbone
def test_evaluation_leaves_the_statistics_alone(name):
  assert not changes_statistics(abstract(name), 75, 97)


def other_stride(name):
  return 2 if name == "resnet8" else 1


@pytest.mark.parametrize("name", LAST_STRIDE)
def test_last_stride(name):
  stride = other_stride(name)
  channels, strides = STAGES[name]
  strides = (*strides[:-1], strides[-2] * stride)
  sides = SIDES.get(name)
  sides = sides and (*sides[:-1], sides[-2])
  assert_stages(abstract(name, last_stride=stride), channels, strides, sides)


def test_grids_that_the_design_names():
  assert map_shapes(abstract("resnet8"), 32, 32)[-1].shape == (2, 8, 8, 64)
  assert map_shapes(abstract("resnet50"), 224, 224)[-1].shape == (2, 7, 7, 2048)
  assert map_shapes(abstract("resnet50", last_stride=1), 224, 224)[-1].shape == (2, 14, 14, 2048)
  assert map_shapes(abstract("nasnet_mobile"), 224, 224)[-1].shape == (2, 7, 7, 1056)
  assert map_shapes(abstract("vgg16_gap"), 224, 224)[-1].shape == (2, 14, 14, 1024)


@pytest.mark.parametrize("name", LAST_STRIDE)
def test_last_stride_leaves_the_parameters_alone(name):
  def shapes(**options):
    state = nnx.state(abstract(name, **options), nnx.Param)
    return {path: v.shape for path, v in nnx.to_flat_state(state)}

  plain, other = shapes(), shapes(last_stride=other_stride(name))
  if name == "resnet8":  # its last stage changes shape only when strided, and then projects
    assert set(other) - set(plain) == {("stages", 2, 0, "shortcut", "kernel")}
  else:
    assert plain == other


@pytest.mark.parametrize(
  "name",
  [
    "resnet8",
    "wrn_16_4",
    "resnet18",
    "resnet50",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_small_16",
  ],
)
def test_bfloat16_maps_with_float32_state(name):
  def run(model, x):
    maps = model(x, train=True)
    return maps, nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))

  model = abstract(name, dtype=jnp.bfloat16)
  maps, state = nnx.eval_shape(run, model, jax.ShapeDtypeStruct((16, 32, 32, 3), jnp.float32))
  assert {x.dtype for x in maps} == {jnp.dtype(jnp.bfloat16)}
  assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}


def test_bfloat16_is_close_to_float32():
  maps = {}
  for dtype in (jnp.float32, jnp.bfloat16):
    model = build(lambda dtype=dtype: create_backbone("resnet8", rngs=nnx.Rngs(0), dtype=dtype))
    maps[dtype] = [
      np.asarray(x, np.float32) for x in forward(model, jnp.asarray(images()), train=False)
    ]
  for exact, rounded in zip(*maps.values(), strict=True):
    error = np.linalg.norm(exact - rounded) / np.linalg.norm(exact)
    assert 0 < error < 0.02  # bf16 keeps 8 bits: 0.4 % a rounding


# Values, against NumPy in float64.


def numpy_resnet(x, state, depths, *, bottleneck, last_stride):
  """He et al. 2016 as torchvision writes it, from the parameters alone."""
  x = relu(numpy_norm(numpy_conv(x, state["stem/kernel"], 2), state, "norm"))
  x = numpy_max_pool(x)
  maps = []
  for stage, depth in enumerate(depths):
    for block in range(depth):
      path = f"stages/{stage}/{block}"
      stride = (1, 2, 2, last_stride)[stage] if block == 0 else 1
      strides = (1, stride, 1) if bottleneck else (stride, 1)
      y = x
      for i, s in enumerate(strides):
        y = numpy_norm(
          numpy_conv(y, state[f"{path}/convs/{i}/kernel"], s), state, f"{path}/norms/{i}"
        )
        y = relu(y) if i < len(strides) - 1 else y
      if stride != 1 or x.shape[-1] != y.shape[-1]:
        x = numpy_conv(x, state[f"{path}/shortcut_conv/kernel"], stride)
        x = numpy_norm(x, state, f"{path}/shortcut_norm")
      x = relu(x + y)
    maps.append(x)
  return maps


def numpy_preactivation(x, state, strides, depth, *, stem_stride):
  """Zagoruyko & Komodakis 2016 as the authors' code has it, from the parameters alone."""
  x = numpy_conv(x, state["stem/kernel"], stem_stride)
  maps = []
  for stage, stage_stride in enumerate(strides):
    for block in range(depth):
      path = f"stages/{stage}/{block}"
      stride = stage_stride if block == 0 else 1
      a = relu(numpy_norm(x, state, f"{path}/norm1"))
      y = numpy_conv(a, state[f"{path}/conv1/kernel"], stride)
      y = relu(numpy_norm(y, state, f"{path}/norm2"))
      y = numpy_conv(y, state[f"{path}/conv2/kernel"], 1)
      changes = stride != 1 or x.shape[-1] != y.shape[-1]
      x = y + (numpy_conv(a, state[f"{path}/shortcut/kernel"], stride) if changes else x)
    maps.append(x)
  maps[-1] = relu(numpy_norm(x, state, "norm"))
  return maps


@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("side", [8, 9])
def test_convolution_pads_like_pytorch(kernel_size, stride, side):
  layer = layers.conv(3, 5, kernel_size, stride, rngs=nnx.Rngs(0))
  x = images(height=side, width=side + 3)
  expected = numpy_conv(x, np.asarray(layer.kernel[...]), stride)
  np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)
  assert layer.bias is None


@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(6, 4, 2), (6, 6, 6)])
def test_grouped_convolution_is_a_convolution_a_group(inputs, outputs, groups):
  layer = layers.conv(inputs, outputs, 3, 2, groups=groups, rngs=nnx.Rngs(0))
  x = np.random.default_rng(0).normal(size=(2, 7, 6, inputs)).astype(np.float32)
  pairs = zip(
    np.split(x, groups, -1), np.split(np.asarray(layer.kernel[...]), groups, -1), strict=True
  )
  expected = np.concatenate([numpy_conv(part, kernel, 2) for part, kernel in pairs], -1)
  np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)


def test_a_bias_is_there_where_it_is_asked_for():
  layer = layers.conv(2, 3, 3, use_bias=True, rngs=nnx.Rngs(0))
  layer.bias[...] = jnp.arange(3, dtype=jnp.float32)
  zeros = jnp.zeros((1, 2, 2, 2), jnp.float32)
  np.testing.assert_array_equal(layer(zeros), np.broadcast_to([0.0, 1.0, 2.0], (1, 2, 2, 3)))


@pytest.mark.parametrize(("bottleneck", "last_stride"), [(False, 2), (True, 2), (True, 1)])
def test_resnet_equals_numpy(bottleneck, last_stride):
  depths = (2, 1, 1, 1)
  model = build(lambda: tiny_resnet(bottleneck=bottleneck, depths=depths, last_stride=last_stride))
  x = images(height=75, width=50)
  expected = numpy_resnet(x, leaves(model), depths, bottleneck=bottleneck, last_stride=last_stride)
  assert_maps_agree(forward(model, jnp.asarray(x), train=False), expected)


@pytest.mark.parametrize("stem_stride", [1, 2])
def test_preactivation_network_equals_numpy(stem_stride):
  model = build(
    lambda: PreActivationResNet(
      4, (4, 8, 8), (1, 2, 2), depth=2, stem_stride=stem_stride, rngs=nnx.Rngs(0)
    )
  )
  x = images()
  expected = numpy_preactivation(x, leaves(model), (1, 2, 2), 2, stem_stride=stem_stride)
  assert_maps_agree(forward(model, jnp.asarray(x), train=False), expected)
  assert min(x.min() for x in expected[:-1]) < 0 <= expected[-1].min()


def test_kernels_start_as_he_fan_out():
  kernel = np.asarray(layers.conv(16, 128, 3, rngs=nnx.Rngs(0)).kernel[...])
  std = math.sqrt(2 / (9 * 128))
  assert kernel.std() == pytest.approx(std, rel=0.02)  # 18,432 draws: 0.5 % of error
  assert np.abs(kernel).max() > 3 * std  # not truncated at 2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_relu_and_its_gradient_are_those_of_jax(dtype):
  x = jnp.asarray([-2.0, -0.0, 0.0, 1e-3, 3.0, jnp.inf, -jnp.inf], dtype)
  found, expected = (jax.vjp(relu, x) for relu in (layers.relu, nnx.relu))
  np.testing.assert_array_equal(found[0], expected[0])
  np.testing.assert_array_equal(found[1](x + 1)[0], expected[1](x + 1)[0])
  assert found[0].dtype == found[1](x)[0].dtype == dtype
  # The gradient looks at the result, not at x.
  program = jax.make_jaxpr(lambda x: jax.jvp(layers.relu, (x,), (x,)))(x).jaxpr
  (compared,) = (e.invars[0] for e in program.eqns if e.primitive.name == "ne")
  assert compared is not program.invars[0]
  assert compared is program.outvars[0]


def test_a_fresh_residual_block_is_its_shortcut():
  block = ResidualBlock(6, bottleneck_plan(6, 4)(1), rngs=nnx.Rngs(0))
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 4, 6)).astype(np.float32))
  np.testing.assert_array_equal(block(x, train=True), nnx.relu(x))


# Training: gradients, statistics, dropout.


@pytest.mark.parametrize(
  "make",
  [
    lambda: create_backbone("resnet8", rngs=nnx.Rngs(0)),
    lambda: tiny_resnet(bottleneck=False),
    lambda: tiny_resnet(bottleneck=True),
  ],
  ids=["resnet8", "basic", "bottleneck"],
)
def test_the_last_map_sends_a_gradient_to_every_parameter(make):
  model = build(make)
  x = jnp.asarray(images(batch=4, height=64, width=48))
  assert_gradient_reaches_every_parameter(model, x)


@pytest.mark.parametrize(
  "make",
  [lambda: create_backbone("resnet8", rngs=nnx.Rngs(0)), lambda: tiny_resnet(bottleneck=True)],
  ids=["resnet8", "resnet"],
)
def test_only_training_updates_the_statistics(make):
  model = build(make)
  x = jnp.asarray(images(batch=4, height=64, width=48))
  before = leaves(model)
  forward(model, x, train=False)
  for path, value in leaves(model).items():
    np.testing.assert_array_equal(value, before[path], err_msg=path)
  forward(model, x, train=True)
  for path, value in leaves(model, nnx.BatchStat).items():
    assert (value != before[path]).any(), path
  for path, value in leaves(model, nnx.Param).items():
    np.testing.assert_array_equal(value, before[path], err_msg=path)


@every_backbone
def test_norm_group_reaches_every_norm(name):
  nodes = [n for _, n in nnx.iter_graph(abstract(name))]
  norms = [n for n in nodes if isinstance(n, GhostBatchNorm)]
  assert {n.group for n in norms} <= {16}


def test_dropout_acts_in_training_only_and_follows_the_reseed():
  # nnx.Rngs(0) has only the default stream: reseed must find the dropout layers even so.
  model = create_backbone("resnet8", rngs=nnx.Rngs(0), dropout=0.5)
  plain = create_backbone("resnet8", rngs=nnx.Rngs(0))
  nnx.update(plain, nnx.state(model, nnx.Param))
  x = jnp.asarray(images(batch=4))

  def last_map(seed, *, train=True):
    nnx.reseed(model, dropout=jax.random.key(seed))
    return np.asarray(forward(model, x, train=train)[-1])

  np.testing.assert_array_equal(last_map(1, train=False), last_map(2, train=False))
  np.testing.assert_array_equal(last_map(1, train=False), forward(plain, x, train=False)[-1])
  np.testing.assert_array_equal(last_map(1), last_map(1))
  assert (last_map(1) != last_map(2)).any()
  assert (last_map(1) != np.asarray(forward(plain, x, train=True)[-1])).any()


@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_dropout_is_in_every_block_at_its_rate_or_nowhere(name):
  def rates(**options):
    nodes = nnx.iter_graph(abstract(name, **options))
    return [n.rate for _, n in nodes if isinstance(n, nnx.Dropout)]

  blocks = sum(len(stage) for stage in abstract(name).stages)
  assert rates(dropout=0.3) == [0.3] * blocks
  assert rates() == []


def test_each_block_drops_values_of_its_own():
  model = create_backbone("resnet8", rngs=nnx.Rngs(0), dropout=0.5)
  nnx.reseed(model, dropout=jax.random.key(7))
  ones = jnp.ones((1, 8, 8, 64), jnp.float32)
  second, third = (np.asarray(model.stages[i][0].dropout(ones)) for i in (1, 2))
  assert (second != third).any()
  assert (second == 0).mean() == pytest.approx(0.5, abs=0.05)
  assert set(np.unique(second)) == {0.0, 2.0}


# Mistakes.


def test_unknown_name_suggests_and_lists():
  with pytest.raises(UserError, match="'resnet_50' is unknown") as error:
    create_backbone("resnet_50", rngs=nnx.Rngs(0))
  assert "Did you mean 'resnet50'?" in str(error.value)
  assert all(name in str(error.value) for name in list_backbones())
  assert "registered first: give --config" in str(error.value)


def test_unknown_name_without_a_close_one():
  with pytest.raises(UserError, match="Choose one of") as error:
    create_backbone("qqq", rngs=nnx.Rngs(0))
  assert "Did you mean" not in str(error.value)


def test_dropout_where_there_is_none():
  able = {*WITH_DROPOUT, *WITH_DROP_PATH, *WITH_SHAKE_DROP}
  for name in sorted(set(list_backbones()) - able):
    with pytest.raises(UserError, match=rf"'{name}' has no dropout, so dropout=0\.1") as error:
      create_backbone(name, rngs=nnx.Rngs(0), dropout=0.1)
    assert ", ".join(sorted(able)) in str(error.value)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 50, math.nan])
def test_dropout_out_of_range(dropout):
  with pytest.raises(UserError, match="out of range"):
    create_backbone("resnet8", rngs=nnx.Rngs(0), dropout=dropout)


@pytest.mark.parametrize("last_stride", [0, 3, -1, "1"])
@pytest.mark.parametrize("name", ["resnet8", "wrn_16_4", "resnet18"])
def test_last_stride_other_than_1_or_2(name, last_stride):
  with pytest.raises(UserError, match="choose 1 or 2"):
    create_backbone(name, rngs=nnx.Rngs(0), last_stride=last_stride)


@pytest.mark.parametrize("name", ["vit_small_16", "vit_base_16"])
def test_last_stride_where_there_is_none(name):
  with pytest.raises(UserError, match=f"'{name}' has one stride for all stages"):
    create_backbone(name, rngs=nnx.Rngs(0), last_stride=1)


@pytest.mark.parametrize(("name", "least"), [("convnext_tiny", 32), ("vit_small_16", 16)])
def test_images_of_which_no_patch_is_left(name, least):
  with pytest.raises(UserError, match=f"images of 64 x {least - 1} pixels.* needs {least}"):
    map_shapes(abstract(name), 64, least - 1)


def test_a_name_can_be_registered_once():
  def resnet18(**options):
    return options

  with pytest.raises(ValueError, match="two backbones are registered as 'resnet18'; give"):
    register(resnet18)
