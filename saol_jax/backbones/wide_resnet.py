"""Pre-activation residual networks, and the wide ResNets for 32x32 images."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from saol_jax.backbones import layers
from saol_jax.backbones.registry import register
from saol_jax.norm import GhostBatchNorm


class PreActivationBlock(nnx.Module):
  """norm-ReLU-conv3x3, norm-ReLU-dropout-conv3x3, plus a shortcut.

    a = relu(norm1(x));  y = conv2(dropout(relu(norm2(conv1(a))))) + shortcut

  The shortcut is x itself, or, where the shape changes, a 1x1 convolution of the activated a that
  both branches then share (Zagoruyko & Komodakis 2016, the authors' code). No norm ends the
  branch, so there is no scale to initialise with zero, unlike in `resnet.py`.
  """

  def __init__(
    self,
    in_channels: int,
    channels: int,
    stride: int = 1,
    *,
    rngs: nnx.Rngs,
    dtype: jnp.dtype = jnp.float32,
    norm_group: int | None = None,
    dropout: float = 0.0,
  ):
    """Makes the block.

    Args:
      in_channels: channels of the input.
      channels: channels of the result.
      stride: of the first convolution and of the shortcut, 1 or 2.
      rngs: for the kernels and the dropout.
      dtype: of the computation.
      norm_group: examples a group of the normalisation.
      dropout: share of the values dropped between the convolutions, in [0, 1).
    """
    options = {"rngs": rngs, "dtype": dtype}
    self.norm1 = GhostBatchNorm(in_channels, group=norm_group, dtype=dtype)
    self.conv1 = layers.conv(in_channels, channels, 3, stride, **options)
    self.norm2 = GhostBatchNorm(channels, group=norm_group, dtype=dtype)
    self.dropout = layers.dropout(dropout, rngs=rngs)
    self.conv2 = layers.conv(channels, channels, 3, **options)
    projects = stride != 1 or in_channels != channels
    self.shortcut = layers.conv(in_channels, channels, 1, stride, **options) if projects else None

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """(B, H, W, in_channels) -> (B, ceil(H / stride), ceil(W / stride), channels)."""
    activated = nnx.relu(self.norm1(x, train=train))
    shortcut = self.shortcut(activated) if self.shortcut else x
    y = nnx.relu(self.norm2(self.conv1(activated), train=train))
    if self.dropout:
      y = self.dropout(y, deterministic=not train)
    return shortcut + self.conv2(y)


class PreActivationResNet(nnx.Module):
  """A 3x3 convolution, then stages of pre-activation blocks, then norm and ReLU.

  Stage maps: the last one is after the final norm and ReLU, hence not negative. The earlier ones
  are the plain residual sums that the next stage's first norm reads: neither normalised nor
  activated.

  Attributes:
    stage_channels: channels of each stage map.
    stage_strides: total stride of each stage map.
  """

  def __init__(
    self,
    stem_channels: int,
    widths: Sequence[int],
    strides: Sequence[int],
    *,
    depth: int = 1,
    stem_stride: int = 1,
    rngs: nnx.Rngs,
    dtype: jnp.dtype = jnp.float32,
    norm_group: int | None = None,
    dropout: float = 0.0,
  ):
    """Makes the network.

    Args:
      stem_channels: channels after the first convolution.
      widths: channels of each stage.
      strides: stride of each stage's first block, 1 or 2.
      depth: blocks a stage.
      stem_stride: stride of the first convolution.
      rngs: for the kernels and the dropout.
      dtype: of the computation and of the stage maps.
      norm_group: examples a group of the normalisation.
      dropout: share of the values dropped inside each block in training, in [0, 1).
    """
    self.stem = layers.conv(3, stem_channels, 3, stem_stride, rngs=rngs, dtype=dtype)
    self.stages = nnx.List()
    totals = []
    channels, total = stem_channels, stem_stride
    for width, stride in zip(widths, strides, strict=True):
      blocks = nnx.List()
      for i in range(depth):
        blocks.append(
          PreActivationBlock(
            channels,
            width,
            stride if i == 0 else 1,
            rngs=rngs,
            dtype=dtype,
            norm_group=norm_group,
            dropout=dropout,
          )
        )
        channels = width
      self.stages.append(blocks)
      total *= stride
      totals.append(total)
    self.norm = GhostBatchNorm(channels, group=norm_group, dtype=dtype)
    self.stage_channels = tuple(widths)
    self.stage_strides = tuple(totals)
    self.dtype = dtype

  def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
    """Computes the stage maps.

    Args:
      images: (B, H, W, 3), normalised, of any floating type.
      train: normalise by the batch, update the running statistics, drop values.

    Returns:
      One (B, h, w, c) map a stage in `dtype`, coarse last; h = ceil(H / stage stride), likewise w.
    """
    x = self.stem(images.astype(self.dtype))
    maps = []
    for blocks in self.stages:
      for block in blocks:
        x = block(x, train=train)
      maps.append(x)
    maps[-1] = nnx.relu(self.norm(x, train=train))
    return tuple(maps)


def _wide_resnet(depth: int, widen: int, *, last_stride: int = 2, **options) -> PreActivationResNet:
  """WRN-depth-widen of Zagoruyko & Komodakis 2016; depth counts the 3x3 convolutions (6n + 4)."""
  return PreActivationResNet(
    16,
    (16 * widen, 32 * widen, 64 * widen),
    (1, 2, last_stride),
    depth=(depth - 4) // 6,
    **options,
  )


@register
def wrn_16_4(*, dropout: float = 0.0, **options) -> PreActivationResNet:
  """WRN-16-4."""
  return _wide_resnet(16, 4, dropout=dropout, **options)


@register
def wrn_40_2(*, dropout: float = 0.0, **options) -> PreActivationResNet:
  """WRN-40-2."""
  return _wide_resnet(40, 2, dropout=dropout, **options)


@register
def wrn_28_10(*, dropout: float = 0.0, **options) -> PreActivationResNet:
  """WRN-28-10; the paper drops 0.3 where it uses dropout."""
  return _wide_resnet(28, 10, dropout=dropout, **options)
