"""The vision transformer against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from saol_jax.backbones import VisionTransformer
from saol_jax.backbones.vit import resize_positions
from tests.backbones.numerics import (
  abstract,
  assert_gradient_reaches_every_parameter,
  assert_maps_agree,
  build,
  forward,
  images,
  leaves,
  numpy_gelu,
  numpy_layer_norm,
  numpy_linear,
  numpy_patches,
)

HEADS, DEPTH = 2, 4


def tiny(**options):
  return VisionTransformer(
    8, HEADS, depth=DEPTH, patch_size=8, image_size=32, rngs=nnx.Rngs(0), **options
  )


def numpy_attention(x, state, path):
  """Softmax attention, one example and head at a time."""
  qkv = numpy_linear(x, state, f"{path}/qkv")
  channels = x.shape[-1]
  size = channels // HEADS
  y = np.empty_like(x)
  for b in range(len(x)):
    for head in range(HEADS):
      at = slice(head * size, (head + 1) * size)
      q, k, v = (qkv[b, :, i * channels : (i + 1) * channels][:, at] for i in range(3))
      weights = np.exp(q @ k.T / np.sqrt(size))
      y[b, :, at] = weights / weights.sum(-1, keepdims=True) @ v
  return numpy_linear(y, state, f"{path}/project")


def numpy_vit(x, state):
  """Dosovitskiy et al. 2021, from the parameters alone, at the size of the learnt positions."""
  patches = numpy_patches(x, state, "patches")
  x = patches.reshape(len(x), -1, patches.shape[-1])
  x = np.concatenate([np.broadcast_to(state["class_token"], (len(x), 1, x.shape[-1])), x], axis=1)
  x = x + state["positions"]
  maps = []
  for i in range(DEPTH):
    path = f"blocks/{i}"
    x = x + numpy_attention(numpy_layer_norm(x, state, f"{path}/norm1"), state, path)
    y = numpy_linear(numpy_layer_norm(x, state, f"{path}/norm2"), state, f"{path}/expand")
    x = x + numpy_linear(numpy_gelu(y), state, f"{path}/contract")
    maps.append(x)
  maps.append(numpy_layer_norm(maps.pop(), state, "norm"))
  return [y[:, 1:].reshape(patches.shape) for y in maps[-3:]]


@pytest.fixture(scope="module")
def model():
  return build(lambda: tiny(dropout=0.5))


def test_equals_numpy(model):
  x = images(height=38, width=32)  # six rows of pixels are left out
  assert_maps_agree(
    forward(model, jnp.asarray(x), train=False), numpy_vit(x[:, :32], leaves(model))
  )


def test_gradient_reaches_every_parameter():
  assert_gradient_reaches_every_parameter(build(tiny), jnp.asarray(images(height=24, width=40)))


def test_drop_path_acts_in_training_only_and_follows_the_reseed(model):
  block = model.blocks[-1]
  x = np.random.default_rng(0).normal(size=(16, 5, 8)).astype(np.float32)

  def dropped(seed, *, train):
    nnx.reseed(block, dropout=jax.random.key(seed))
    return (np.asarray(forward(block, jnp.asarray(x), train=train)) == x).all((1, 2)).tolist()

  assert not any(dropped(1, train=False))
  assert dropped(1, train=True) == dropped(1, train=True)
  assert len({tuple(dropped(seed, train=True)) for seed in range(8)}) > 1


def test_deeper_blocks_drop_more_often():
  blocks = abstract("vit_small_16", dropout=0.1).blocks
  for part in ("drop_path1", "drop_path2"):
    layers = [getattr(block, part) for block in blocks]
    rates = [layer.rate if layer else 0.0 for layer in layers]
    np.testing.assert_allclose(rates, np.linspace(0, 0.1, 12))


def test_positions_of_the_same_size_are_kept():
  positions = jnp.asarray(images(1, 1, 10)[0, 0])
  assert resize_positions(positions, (3, 3)) is positions


def test_resized_positions_keep_constants_the_class_token_and_the_axes():
  rng = np.random.default_rng(0)
  token, grid = rng.normal(size=(1, 2)), rng.normal(size=(3, 3, 2))
  grid[..., 0] = 5.0

  def resize(grid, size):
    positions = np.concatenate([token, grid.reshape(9, 2)]).astype(np.float32)
    resized = np.asarray(resize_positions(jnp.asarray(positions), size))
    np.testing.assert_array_equal(resized[0], positions[0])
    return resized[1:].reshape(*size, 2)

  wide = resize(grid, (2, 7))
  np.testing.assert_allclose(wide[..., 0], 5.0, rtol=1e-6)
  tall = resize(grid.swapaxes(0, 1), (7, 2))
  np.testing.assert_allclose(tall.swapaxes(0, 1), wide, rtol=1e-5, atol=1e-6)
  assert wide[..., 1].std() > 0.1


def test_bicubic_weights_are_pytorchs():
  # F.interpolate(..., mode="bicubic") as its documentation's source has it: a = -0.75, i.e. a + 2
  # and a + 3 below.
  def weight(distance):
    d = abs(distance)
    if d <= 1:
      return 1.25 * d**3 - 2.25 * d**2 + 1
    return -0.75 * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0

  positions = np.zeros((17, 1), np.float32)
  positions[1 + 2 * 4 : 1 + 3 * 4] = 1  # the third of four rows
  resized = np.asarray(resize_positions(jnp.asarray(positions), (8, 4)))[1:].reshape(8, 4)
  expected = [weight((i + 0.5) / 2 - 0.5 - 2) for i in range(8)]
  expected[-1] = weight(0.25 + 1)  # at the border the last row is repeated, not the third
  np.testing.assert_allclose(resized, np.repeat(np.array(expected)[:, None], 4, 1), atol=1e-6)
