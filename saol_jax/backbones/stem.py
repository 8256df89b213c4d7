"""The convolution that networks for ImageNet begin with."""

import jax
import jax.numpy as jnp
from flax import nnx

from saol_jax.backbones.layers import HE_FAN_OUT, pad_channels

_SIDE = 7
_BLOCKS = 4  # that a kernel of 7, and a row and column of zeros, covers each way
_CHANNELS = 16  # of a block, 2 * 2 * 3 and four of zeros: what a GPU reads at a time


class Stem(nnx.Conv):
  """7x7 pixels at stride 2, without bias.

  Attributes:
    in_blocks: compute it as 4x4 blocks of 2x2 pixels at stride 1, whose channels are those of all
      four pixels. Libraries for GPUs are made for channels in multiples of eight, and fill three up
      with zeros, one pixel after the other. The values are the same but for rounding. XLA then
      counts 1.7 times as many FLOPs for this layer.
  """

  def __init__(self, features: int, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32):
    """Makes the layer; its kernel is (7, 7, 3, features) in either way, as `layers.conv` has it."""
    super().__init__(
      3,
      features,
      (_SIDE, _SIDE),
      strides=2,
      padding=_SIDE // 2,
      use_bias=False,
      kernel_init=HE_FAN_OUT,
      dtype=dtype,
      param_dtype=jnp.float32,
      rngs=rngs,
    )
    self.in_blocks = False

  def __call__(self, images: jax.Array) -> jax.Array:
    """(B, H, W, 3) to (B, ceil(H / 2), ceil(W / 2), features)."""
    if not self.in_blocks or self.bias is not None:  # it has one where a norm was fused
      return super().__call__(images)
    return jax.lax.conv_general_dilated(
      _image_blocks(images.astype(self.dtype)),
      _kernel_blocks(self.kernel[...].astype(self.dtype)),
      window_strides=(1, 1),
      padding="VALID",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def read_in_blocks(model: nnx.Module) -> nnx.Module:
  """Sets `in_blocks` of every `Stem` of a model, for GPUs; returns the model."""
  for _, module in nnx.iter_modules(model):
    if isinstance(module, Stem):
      module.in_blocks = True
  return model


def _image_blocks(images: jax.Array) -> jax.Array:
  """(B, H, W, 3) to (B, h + 3, w + 3, 16), h = ceil(H / 2): the border of zeros included."""
  batch, *sides, channels = images.shape
  rows, columns = (-(-side // 2) + _BLOCKS - 1 for side in sides)
  before = 2 * (_BLOCKS // 2)
  edges = [
    (before, 2 * blocks - side - before)
    for blocks, side in zip((rows, columns), sides, strict=True)
  ]
  images = jnp.pad(images, ((0, 0), *edges, (0, 0)))
  blocks = images.reshape(batch, rows, 2, columns, 2, channels).transpose(0, 1, 3, 2, 4, 5)
  return pad_channels(blocks.reshape(batch, rows, columns, 4 * channels), _CHANNELS)


def _kernel_blocks(kernel: jax.Array) -> jax.Array:
  """(7, 7, 3, F) to (4, 4, 16, F); its first row and column, of zeros, complete the blocks."""
  _, _, channels, features = kernel.shape
  kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
  kernel = kernel.reshape(_BLOCKS, 2, _BLOCKS, 2, channels, features).transpose(0, 2, 1, 3, 4, 5)
  kernel = kernel.reshape(_BLOCKS, _BLOCKS, 4 * channels, features)
  return jnp.pad(kernel, ((0, 0), (0, 0), (0, _CHANNELS - 4 * channels), (0, 0)))
