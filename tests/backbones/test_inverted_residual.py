"""MobileNetV2's and EfficientNet's network against NumPy; squeeze-and-excitation; drop path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from saol_jax.backbones import InvertedResidualNetwork, layers
from saol_jax.backbones.inverted_residual import rounded_channels
from saol_jax.norm import GhostBatchNorm
from tests.backbones.numerics import (
  abstract,
  assert_gradient_reaches_every_parameter,
  assert_maps_agree,
  build,
  forward,
  images,
  leaves,
  numpy_conv,
  numpy_norm,
  relu,
)

# Expansion ratio, kernel size, channels, blocks: with and without expansion, shortcut and 5x5.
ROWS = (
  (1, 3, 4, 1),
  (2, 3, 6, 2),
  (2, 5, 8, 1),
  (2, 3, 8, 1),
  (2, 5, 8, 1),
  (2, 3, 10, 1),
  (2, 3, 10, 1),
)
MOBILENET = {"activation": nnx.relu6, "squeeze_excite": False, "tensorflow": False}
EFFICIENTNET = {"activation": nnx.silu, "squeeze_excite": True, "tensorflow": True}


def tiny(kind, **options):
  # Epsilon and momentum that are nobody's default.
  return InvertedResidualNetwork(
    4, ROWS, 12, epsilon=0.01, momentum=0.7, rngs=nnx.Rngs(0), **kind, **options
  )


def silu(x):
  return x / (1 + np.exp(-x))


def numpy_gate(x, state, path):
  """Hu et al. 2018, from the parameters alone."""
  pooled = x.mean((1, 2))
  hidden = silu(pooled @ state[f"{path}/reduce/kernel"][0, 0] + state[f"{path}/reduce/bias"])
  logits = hidden @ state[f"{path}/expand/kernel"][0, 0] + state[f"{path}/expand/bias"]
  return x * (1 / (1 + np.exp(-logits)))[:, None, None]


def numpy_network(x, state, kind, strides):
  """The papers' tables, from the parameters alone."""
  act = silu if kind["squeeze_excite"] else lambda x: np.minimum(relu(x), 6)
  pads = {"tensorflow": kind["tensorflow"]}

  def norm(x, path):
    return numpy_norm(x, state, path, epsilon=0.01)

  x = act(norm(numpy_conv(x, state["stem/kernel"], 2, **pads), "stem_norm"))
  maps = []
  for row, ((ratio, _, _, depth), row_stride) in enumerate(zip(ROWS, strides, strict=True)):
    for block in range(depth):
      path, stride = f"rows/{row}/{block}", row_stride if block == 0 else 1
      y = x
      if ratio > 1:
        y = act(norm(numpy_conv(y, state[f"{path}/expand/kernel"], 1), f"{path}/expand_norm"))
      y = numpy_conv(y, state[f"{path}/depthwise/kernel"], stride, **pads)
      y = act(norm(y, f"{path}/depthwise_norm"))
      if kind["squeeze_excite"]:
        y = numpy_gate(y, state, f"{path}/gate")
      y = norm(numpy_conv(y, state[f"{path}/project/kernel"], 1), f"{path}/project_norm")
      x = x + y if x.shape == y.shape else y
    if row in (1, 2, 4):
      maps.append(x)
  return [*maps, act(norm(numpy_conv(x, state["head/kernel"], 1), "head_norm"))]


def test_mobilenet_equals_numpy():
  model = build(lambda: tiny(MOBILENET, last_stride=1))
  x = images(height=75, width=50)
  expected = numpy_network(x, leaves(model), MOBILENET, (1, 2, 2, 2, 1, 1, 1))
  assert_maps_agree(forward(model, jnp.asarray(x), train=False), expected)


def test_efficientnet_equals_numpy():
  efficientnet = build(lambda: tiny(EFFICIENTNET))
  x = images(height=75, width=50)
  expected = numpy_network(x, leaves(efficientnet), EFFICIENTNET, (1, 2, 2, 2, 1, 2, 1))
  assert_maps_agree(forward(efficientnet, jnp.asarray(x), train=False), expected)


def test_gradient_reaches_every_parameter():
  model = build(lambda: tiny(EFFICIENTNET))
  x = jnp.asarray(images(batch=4, height=64, width=48))
  # By the running statistics: the batch's would take out the biases of the linear bottlenecks.
  assert_gradient_reaches_every_parameter(model, x, train=False)


@pytest.mark.parametrize(
  ("name", "epsilon", "momentum", "tensorflow"),
  [
    ("mobilenet_v2", 1e-5, 0.9, False),  # PyTorch's defaults, kept by torchvision
    ("efficientnet_b0", 1e-5, 0.9, False),
    ("tf_mobilenet_v2", 1e-3, 0.997, True),  # the config of google/mobilenet_v2_1.0_224
    ("tf_efficientnet_b0", 1e-3, 0.99, True),  # that of google/efficientnet-b0
  ],
)
def test_normalisation_and_padding_are_those_of_the_reference(name, epsilon, momentum, tensorflow):
  nodes = [n for _, n in nnx.iter_graph(abstract(name))]
  norms = {(n.epsilon, n.momentum) for n in nodes if isinstance(n, GhostBatchNorm)}
  assert norms == {(epsilon, momentum)}
  padded = [n for n in nodes if isinstance(n, nnx.Conv) and n.kernel_size != (1, 1)]
  assert {n.padding == "SAME" for n in padded} == {tensorflow}


# Stated in the reference implementations' tests and tables: width times channels.
@pytest.mark.parametrize(
  ("channels", "rounded"), [(32, 32), (1.1 * 32, 32), (1.4 * 24, 32), (1.2 * 40, 48), (10, 16)]
)
def test_channels_round_to_multiples_of_8(channels, rounded):
  assert rounded_channels(channels) == rounded


# Drop path.


def test_drop_path_drops_examples_and_keeps_the_mean():
  layer = layers.drop_path(0.25, rngs=nnx.Rngs(0))
  x = np.random.default_rng(0).normal(size=(4000, 2, 1, 3)).astype(np.float32)
  y = np.asarray(layer(jnp.asarray(x), deterministic=False))
  kept = (y != 0).any((1, 2, 3))
  assert kept.mean() == pytest.approx(0.75, abs=0.03)  # 4 standard errors
  np.testing.assert_allclose(y, x * kept[:, None, None, None] / 0.75, rtol=1e-6)
  np.testing.assert_array_equal(layer(jnp.asarray(x), deterministic=True), x)
  assert layers.drop_path(0.0, rngs=nnx.Rngs(0)) is None


@pytest.mark.parametrize("name", ["efficientnet_b0", "tf_efficientnet_b1"])
def test_deeper_blocks_drop_more_often(name):
  blocks = [block for row in abstract(name, dropout=0.2).rows for block in row]
  for i, block in enumerate(blocks):
    rate = block.drop_path.rate if block.drop_path else 0.0
    expected = 0.2 * i / len(blocks) if block.has_shortcut else 0.0
    assert rate == pytest.approx(expected), i
  assert sum(block.has_shortcut for block in blocks) > len(blocks) / 2
  assert not any(block.drop_path for row in abstract(name).rows for block in row)


def test_drop_path_acts_in_training_only_and_follows_the_reseed():
  # nnx.Rngs(0) has only the default stream: reseed must find the layers even so.
  model = build(lambda: tiny(EFFICIENTNET, dropout=0.5))
  block = model.rows[1][1]
  x = np.random.default_rng(0).normal(size=(8, 4, 4, 6)).astype(np.float32)

  def dropped(seed, *, train):
    nnx.reseed(block, dropout=jax.random.key(seed))
    y = np.asarray(forward(block, jnp.asarray(x), train=train))
    return (y == x).all((1, 2, 3)).tolist()

  assert not any(dropped(1, train=False))
  assert dropped(1, train=True) == dropped(1, train=True)
  seeds = [dropped(seed, train=True) for seed in range(8)]
  assert any(flags != seeds[0] for flags in seeds)
  assert any(True in flags and False in flags for flags in seeds)


def test_squeeze_excite_equals_numpy():
  model = build(lambda: layers.SqueezeExcite(6, 2, rngs=nnx.Rngs(0)))
  x = np.random.default_rng(0).normal(size=(2, 5, 4, 6)).astype(np.float32)
  state = {f"gate/{path}": value for path, value in leaves(model).items()}
  np.testing.assert_allclose(model(jnp.asarray(x)), numpy_gate(x, state, "gate"), rtol=1e-5)
