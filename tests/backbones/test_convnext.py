"""ConvNeXt against NumPy."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from saol_jax.backbones import ConvNeXt
from saol_jax.backbones.convnext import ConvNeXtBlock, PooledLayerNorm
from saol_jax.heads import GapFC
from tests.backbones.numerics import (
  abstract,
  assert_gradient_reaches_every_parameter,
  assert_maps_agree,
  build,
  forward,
  images,
  leaves,
  numpy_conv,
  numpy_gelu,
  numpy_layer_norm,
  numpy_linear,
  numpy_patches,
)

DEPTHS, WIDTHS = (1, 2, 1, 1), (4, 6, 8, 10)


def tiny(**options):
  return ConvNeXt(DEPTHS, WIDTHS, rngs=nnx.Rngs(0), **options)


def numpy_convnext(x, state):
  """Liu et al. 2022, from the parameters alone; the last map before the last norm.

  The last 2x2 convolution has stride 1, which is ours.
  """
  x = numpy_layer_norm(numpy_patches(x, state, "stem"), state, "stem_norm")
  maps = []
  for stage, depth in enumerate(DEPTHS):
    if stage:
      x = numpy_layer_norm(x, state, f"downsample_norms/{stage - 1}")
      if stage == 3:
        padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        kernel, bias = (state[f"downsamples/2/{name}"] for name in ("kernel", "bias"))
        h, w = x.shape[1:3]
        x = bias + sum(
          padded[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(2) for j in range(2)
        )
      else:
        x = numpy_patches(x, state, f"downsamples/{stage - 1}")
    for block in range(depth):
      path = f"stages/{stage}/{block}"
      y = numpy_conv(x, state[f"{path}/depthwise/kernel"], 1) + state[f"{path}/depthwise/bias"]
      y = numpy_linear(numpy_layer_norm(y, state, f"{path}/norm"), state, f"{path}/expand")
      y = numpy_linear(numpy_gelu(y), state, f"{path}/contract")
      x = x + y * state[f"{path}/scale"]
    maps.append(x)
  return maps


def test_equals_numpy():
  model = build(lambda: tiny(last_stride=1))
  x, state = images(height=75, width=50), leaves(model)
  *expected, last = numpy_convnext(x, state)
  *maps, got = forward(model, jnp.asarray(x), train=False)
  assert_maps_agree(maps, expected)
  # The reference's order: pool, then normalise.
  pooled = numpy_layer_norm(last.mean((1, 2)), state, "norm")
  np.testing.assert_allclose(np.asarray(got).mean((1, 2)), pooled, rtol=1e-4, atol=1e-4)
  assert got.shape == last.shape


def test_the_last_norm_scales_and_shifts_channels_the_same_in_every_cell():
  norm = build(lambda: PooledLayerNorm(6))
  x = np.random.default_rng(0).normal(1, 2, size=(2, 3, 4, 6)).astype(np.float32)
  y = np.asarray(norm(jnp.asarray(x)))
  slopes = (y[:, 1:] - y[:, :-1]) / (x[:, 1:] - x[:, :-1])
  np.testing.assert_allclose(slopes, np.broadcast_to(slopes[:, :1, :1], slopes.shape), rtol=1e-3)


def test_gap_fc_on_the_last_map_is_the_references_classifier():
  norm, gap = build(lambda: PooledLayerNorm(6)), GapFC(6, 3, rngs=nnx.Rngs(0))
  x = np.random.default_rng(0).normal(1, 2, size=(2, 3, 4, 6)).astype(np.float32)
  pooled = numpy_layer_norm(x.astype(np.float64).mean((1, 2)), leaves(norm), "")
  expected = numpy_linear(pooled, leaves(gap), "linear")
  np.testing.assert_allclose(gap(norm(jnp.asarray(x))), expected, rtol=1e-4, atol=1e-5)


def test_gradient_reaches_every_parameter():
  model = build(tiny)
  x = jnp.asarray(images(batch=2, height=64, width=48))
  assert_gradient_reaches_every_parameter(model, x)


def test_deeper_blocks_drop_more_often():
  blocks = [block for stage in abstract("convnext_tiny", dropout=0.1).stages for block in stage]
  rates = [block.drop_path.rate if block.drop_path else 0.0 for block in blocks]
  np.testing.assert_allclose(rates, np.linspace(0, 0.1, 18))


def test_a_fresh_block_is_nearly_the_identity():
  block = ConvNeXtBlock(8, drop_rate=0.0, rngs=nnx.Rngs(0))
  np.testing.assert_array_equal(block.scale[...], np.full(8, 1e-6, np.float32))
