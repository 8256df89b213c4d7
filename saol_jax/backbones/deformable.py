"""Deformable convolution, version 2: Zhu et al. 2019, "Deformable ConvNets v2"."""

import jax
import jax.numpy as jnp
from flax import nnx

from saol_jax.backbones import layers


class DeformableConv(nnx.Module):
  """A 3x3 convolution whose samples are shifted and weighed, both as the input says.

    y(p) = sum_k w_k x(p + p_k + offset_k(p)) mask_k(p)        p_k: the 3x3 cells around p

  A plain convolution of the same size predicts the nine offsets and, before a sigmoid, the nine
  masks. It starts at 0: no shift, masks of 1/2 (the paper, section 3.2). x is read by bilinear
  interpolation and is 0 outside the map.

  `ModulatedDeformConv2dPack` of mmcv with one deformable group, which calls what
  `torchvision.ops.deform_conv2d` computes: nine pairs (y, x) of offsets, then the masks.
  """

  def __init__(
    self,
    in_channels: int,
    out_channels: int,
    stride: int = 1,
    *,
    rngs: nnx.Rngs,
    dtype: jnp.dtype = jnp.float32,
  ):
    """Makes the layer.

    Args:
      in_channels: channels of the input.
      out_channels: channels of the result.
      stride: 1 or 2.
      rngs: for the kernel.
      dtype: of the computation; places and weights of the samples are float32.
    """
    self.kernel = layers.conv(in_channels, out_channels, 3, rngs=rngs).kernel
    self.offset = nnx.Conv(
      in_channels,
      3 * 9,
      (3, 3),
      strides=stride,
      padding=1,
      kernel_init=nnx.initializers.zeros,
      dtype=dtype,
      param_dtype=jnp.float32,
      rngs=rngs,
    )
    self.stride = stride
    self.dtype = dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    """(B, H, W, in_channels) -> (B, ceil(H / stride), ceil(W / stride), out_channels)."""
    x = x.astype(self.dtype)
    predicted = self.offset(x).astype(jnp.float32)
    offsets, mask = predicted[..., :18], nnx.sigmoid(predicted[..., 18:])
    places = offsets.reshape(*offsets.shape[:-1], 9, 2) + window_places(
      *offsets.shape[1:3], self.stride
    )
    samples = sample(x, places, mask)
    kernel = self.kernel[...].astype(self.dtype).reshape(9, *self.kernel.shape[2:])
    return jnp.einsum("bhwkc,kco->bhwo", samples, kernel)


def window_places(height: int, width: int, stride: int) -> jax.Array:
  """Where a 3x3 convolution with padding 1 reads: (1, height, width, 9, 2) float32, y before x."""
  cells = _grid(stride * jnp.arange(height), stride * jnp.arange(width))
  shifts = _grid(jnp.arange(-1, 2), jnp.arange(-1, 2)).reshape(1, 1, 9, 2)
  return (cells[:, :, None] + shifts)[None].astype(jnp.float32)


def _grid(y: jax.Array, x: jax.Array) -> jax.Array:
  """All pairs of y and x: (len(y), len(x), 2)."""
  return jnp.stack(jnp.meshgrid(y, x, indexing="ij"), -1)


def sample(x: jax.Array, places: jax.Array, weights: jax.Array) -> jax.Array:
  """Reads a map between its cells, by bilinear interpolation, as 0 outside.

  Four gathers of rows of C values from the flattened map, one a corner, with shapes that do not
  depend on the places: a corner outside is read from the nearest cell and weighed with 0.

  Args:
    x: (B, H, W, C).
    places: (B, ..., 2) float32, y and x in cells; any real numbers.
    weights: (B, ...) float32, multiplied in.

  Returns:
    (B, ..., C) of the type of x.
  """
  batch, height, width, channels = x.shape
  shape = places.shape[1:-1]
  places, weights = places.reshape(batch, -1, 2), weights.reshape(batch, -1)
  # Far outside is as good as just outside; float32 could not be turned into an index there.
  rows, columns = (_neighbours(places[..., i], side) for i, side in enumerate((height, width)))
  flat = x.reshape(batch, height * width, channels)
  total = 0
  for row, row_share in rows:
    for column, column_share in columns:
      values = jnp.take_along_axis(flat, (row * width + column)[..., None], axis=1, mode="clip")
      total += values * (row_share * column_share * weights)[..., None].astype(x.dtype)
  return total.reshape(batch, *shape, channels)


def _neighbours(place: jax.Array, side: int) -> tuple[tuple[jax.Array, jax.Array], ...]:
  """The cells before and after a place on an axis, each with its share, 0 for one outside."""
  # Far outside is as good as just outside; and far enough, float32 does not fit an index.
  place = jnp.clip(place, -1.0, side)
  floor = jnp.floor(place)
  share = place - floor
  before = floor.astype(jnp.int32)
  return tuple(
    (jnp.clip(cell, 0, side - 1), jnp.where((cell >= 0) & (cell < side), part, 0.0))
    for cell, part in ((before, 1 - share), (before + 1, share))
  )
