import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from saol_jax.backbones import layers
from saol_jax.backbones.deformable import DeformableConv, sample
from saol_jax.backbones.resnet import ResNet
from tests.backbones.numerics import abstract, assert_trains, build, count, leaves, numpy_conv


def maps(batch=2, height=5, width=4, channels=3, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(batch, height, width, channels)).astype(np.float32)


def numpy_sample(x, y_place, x_place):
  """Bilinear interpolation in one map (H, W, C), 0 outside, as torchvision's CUDA kernel has it."""
  height, width, channels = x.shape
  if y_place <= -1 or y_place >= height or x_place <= -1 or x_place >= width:
    return np.zeros(channels)
  value = np.zeros(channels)
  for y in (math.floor(y_place), math.floor(y_place) + 1):
    for column in (math.floor(x_place), math.floor(x_place) + 1):
      if 0 <= y < height and 0 <= column < width:
        value += (1 - abs(y_place - y)) * (1 - abs(x_place - column)) * x[y, column]
  return value


def numpy_deformable_conv(x, kernel, offset_kernel, offset_bias, stride):
  """torchvision.ops.deform_conv2d by plain loops, with mmcv's split of what is predicted."""
  predicted = numpy_conv(x, offset_kernel, stride) + offset_bias
  batch, height, width, _ = predicted.shape
  y = np.zeros((batch, height, width, kernel.shape[-1]))
  for b, i, j in np.ndindex(batch, height, width):
    for k in range(9):
      dy, dx = predicted[b, i, j, 2 * k : 2 * k + 2]
      mask = 1 / (1 + np.exp(-predicted[b, i, j, 18 + k]))
      value = numpy_sample(x[b], stride * i - 1 + k // 3 + dy, stride * j - 1 + k % 3 + dx)
      y[b, i, j] += mask * value @ kernel[k // 3, k % 3].astype(np.float64)
  return y


@pytest.mark.parametrize("stride", [1, 2])
def test_deformable_convolution_equals_plain_loops(stride):
  layer = build(lambda: DeformableConv(3, 4, stride, rngs=nnx.Rngs(0)))
  state, x = leaves(layer), maps()
  predicted = numpy_conv(x, state["offset/kernel"], stride)
  assert np.abs(predicted[..., :18]).max() > 2  # it does leave its cells, and the map
  expected = numpy_deformable_conv(
    x, state["kernel"], state["offset/kernel"], state["offset/bias"], stride
  )
  np.testing.assert_allclose(nnx.jit(layer)(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-4)


def test_it_starts_as_half_a_plain_convolution():
  layer = DeformableConv(3, 4, 2, rngs=nnx.Rngs(0))
  x = maps(height=6, width=7)
  expected = 0.5 * numpy_conv(x, np.asarray(layer.kernel[...]), 2)
  np.testing.assert_allclose(nnx.jit(layer)(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)
  same = layers.conv(3, 4, 3, 2, rngs=nnx.Rngs(0))
  np.testing.assert_array_equal(layer.kernel[...], same.kernel[...])


@jax.jit
def value_and_slopes(x, place):
  def value(x, place):
    return sample(x, place[None, None], jnp.ones((1, 1), jnp.float32)).sum()

  return value(x, place), *jax.grad(value, argnums=(0, 1))(x, place)


@pytest.mark.parametrize(
  "place", [(1.3, 2.6), (-0.4, 1.5), (4.25, 3.7), (-1.5, 1.0), (2.0, 1.0), (1e30, -1e30)]
)
def test_sampling_and_its_slopes_equal_finite_differences(place):
  x = maps(batch=1)
  value, dx, slope = value_and_slopes(jnp.asarray(x), jnp.array(place, jnp.float32))

  def exact(y_place, x_place):
    return numpy_sample(x[0].astype(np.float64), y_place, x_place).sum()

  np.testing.assert_allclose(value, exact(*place), rtol=1e-4, atol=1e-5)
  step = 1e-4  # ahead: on a cell's centre the slope is that to the next cell
  slopes = [
    (exact(place[0] + step, place[1]) - exact(*place)) / step,
    (exact(place[0], place[1] + step) - exact(*place)) / step,
  ]
  np.testing.assert_allclose(slope, slopes, rtol=1e-2, atol=1e-3)
  # The map gets back the shares by which it was read.
  share = np.zeros_like(x)
  for i, j in np.ndindex(x.shape[1:3]):
    share[0, i, j] = max(0, 1 - abs(place[0] - i)) * max(0, 1 - abs(place[1] - j))
  np.testing.assert_allclose(dx, share, atol=1e-5)


def primitives(jaxpr):
  for equation in jaxpr.eqns:
    inner = [value.jaxpr for value in equation.params.values() if hasattr(value, "jaxpr")]
    for part in inner:
      yield from primitives(part)
    if not inner:
      yield equation.primitive.name


def test_sampling_is_four_gathers_of_fixed_shape():
  # What accelerators compile well: no loop, no sort, nothing whose shape depends on the offsets.
  layer = build(lambda: DeformableConv(3, 4, rngs=nnx.Rngs(0)))
  names = list(primitives(jax.make_jaxpr(layer)(jnp.asarray(maps())).jaxpr))
  assert names.count("gather") == 4
  assert not {"while", "scan", "sort", "cond"} & set(names)


def test_training():
  assert_trains(
    lambda **options: ResNet(
      (1, 1, 1, 1), bottleneck=True, width=4, deformable_stages=3, rngs=nnx.Rngs(0), **options
    )
  )


def test_resnet50_dcn_adds_the_offsets_alone():
  # 9 * inside * 27 + 27 for each of 4, 6 and 3 blocks with 128, 256 and 512 channels inside.
  added = sum(n * (243 * inside + 27) for n, inside in ((4, 128), (6, 256), (3, 512)))
  assert added == 871_263
  assert count(abstract("resnet50_dcn")) - count(abstract("resnet50")) == added
  kinds = [
    {isinstance(block.convs[1], DeformableConv) for block in stage}
    for stage in abstract("resnet50_dcn").stages
  ]
  assert kinds == [{False}, {True}, {True}, {True}]
