"""PyramidNets for 32x32 images: Han et al. 2017, "Deep pyramidal residual networks"."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from saol_jax.backbones import layers, pooling
from saol_jax.backbones.registry import register
from saol_jax.backbones.shake_drop import ShakeDrop
from saol_jax.norm import GhostBatchNorm


class PyramidBlock(nnx.Module):
  """A bottleneck with a norm at each end: y = shakedrop(branch(x)) + shortcut(x).

    branch: norm, conv1x1, norm, ReLU, conv3x3, norm, ReLU, conv1x1, norm

  The shortcut has no parameters: 2x2 means where the stride is 2, and zeros for the channels that x
  does not have yet.
  """

  def __init__(
    self,
    in_channels: int,
    inner: int,
    stride: int = 1,
    *,
    shake_drop: float = 0.0,
    rngs: nnx.Rngs,
    dtype: jnp.dtype = jnp.float32,
    norm_group: int | None = None,
  ):
    """Makes the block.

    Args:
      in_channels: channels of the input.
      inner: channels inside; the result has four times as many.
      stride: of the 3x3 convolution and the shortcut, 1 or 2.
      shake_drop: rate of ShakeDrop, in [0, 1).
      rngs: for the kernels and ShakeDrop.
      dtype: of the computation.
      norm_group: examples a group of the normalisation.
    """
    self.channels = 4 * inner
    self.stride = stride
    norm_options = {"group": norm_group, "dtype": dtype}
    self.first_norm = GhostBatchNorm(in_channels, **norm_options)
    self.convs, self.norms = nnx.List(), nnx.List()
    channels = in_channels
    for kernel_size, conv_stride, width in (
      (1, 1, inner),
      (3, stride, inner),
      (1, 1, self.channels),
    ):
      self.convs.append(
        layers.conv(channels, width, kernel_size, conv_stride, rngs=rngs, dtype=dtype)
      )
      self.norms.append(GhostBatchNorm(width, **norm_options))
      channels = width
    self.shake_drop = ShakeDrop(shake_drop, rngs=rngs) if shake_drop else None

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """(B, H, W, in_channels) -> (B, ceil(H / stride), ceil(W / stride), channels)."""
    y = self.first_norm(x, train=train)
    for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
      y = norm(conv(nnx.relu(y) if i else y), train=train)
    if self.shake_drop:
      y = self.shake_drop(y, train=train)
    if self.stride == 2:
      x = pooling.average_pool(x, 2, 2, "SAME")
    return y + layers.pad_channels(x, self.channels)


class PyramidNet(nnx.Module):
  """A 3x3 convolution and a norm, then blocks that widen by the same amount each, then norm, ReLU.

  Stage maps: the last one is after the final norm and ReLU, hence not negative. The earlier ones
  are the plain residual sums that the next stage's first norm reads.

  The authors' dyhan0920/PyramidNet-PyTorch, which CutMix's code has too, with their rounding of the
  widths. Its kernels start as ours do.

  Attributes:
    stage_channels: channels of each stage map.
    stage_strides: total stride of each stage map.
  """

  def __init__(
    self,
    depth: int,
    alpha: float,
    *,
    stem_channels: int = 16,
    strides: Sequence[int] = (1, 2, 2),
    dropout: float = 0.0,
    rngs: nnx.Rngs,
    dtype: jnp.dtype = jnp.float32,
    norm_group: int | None = None,
  ):
    """Makes the network.

    Args:
      depth: blocks a stage.
      alpha: channels inside the last bottleneck, less those of the stem.
      stem_channels: channels after the first convolution.
      strides: of each stage, 1 or 2.
      dropout: rate of ShakeDrop in the last block, in [0, 1); block l of L has l / L of it.
      rngs: for the kernels and ShakeDrop.
      dtype: of the computation and of the stage maps.
      norm_group: examples a group of the normalisation.
    """
    options = {"rngs": rngs, "dtype": dtype, "norm_group": norm_group}
    self.stem = layers.conv(3, stem_channels, 3, rngs=rngs, dtype=dtype)
    self.norm = GhostBatchNorm(stem_channels, group=norm_group, dtype=dtype)
    self.stages = nnx.List()
    totals = []
    blocks = depth * len(strides)
    channels, inner, made, total = stem_channels, float(stem_channels), 0, 1
    for stride in strides:
      stage = nnx.List()
      for i in range(depth):
        inner += alpha / blocks  # summed up, as there: rounding is part of the architecture
        made += 1
        stage.append(
          PyramidBlock(
            channels,
            round(inner),
            1 if i else stride,
            shake_drop=dropout * made / blocks,
            **options,
          )
        )
        channels = stage[-1].channels
      self.stages.append(stage)
      total *= stride
      totals.append(total)
    self.final_norm = GhostBatchNorm(channels, group=norm_group, dtype=dtype)
    self.stage_channels = tuple(stage[-1].channels for stage in self.stages)
    self.stage_strides = tuple(totals)
    self.dtype = dtype

  def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
    """Computes the stage maps.

    Args:
      images: (B, H, W, 3), normalised, of any floating type.
      train: normalise by the batch, update the running statistics, disturb the branches.

    Returns:
      One (B, h, w, c) map a stage in `dtype`, coarse last; h = ceil(H / stage stride), likewise w.
    """
    x = self.norm(self.stem(images.astype(self.dtype)), train=train)
    maps = []
    for blocks in self.stages:
      for block in blocks:
        x = block(x, train=train)
      maps.append(x)
    maps[-1] = nnx.relu(self.final_norm(x, train=train))
    return tuple(maps)


@register
def pyramidnet110_a64(*, dropout: float = 0.0, last_stride: int = 2, **options) -> PyramidNet:
  """PyramidNet-110, alpha 64, of bottlenecks: the one with 1.7 M parameters in the CutMix paper.

  `dropout` is the rate of ShakeDrop in the last block.
  """
  return PyramidNet(12, 64, strides=(1, 2, last_stride), dropout=dropout, **options)


@register
def pyramidnet200_a240(*, dropout: float = 0.0, last_stride: int = 2, **options) -> PyramidNet:
  """PyramidNet-200, alpha 240, of bottlenecks.

  `dropout` is the rate of ShakeDrop in the last block: 0.5 in the papers of ShakeDrop and CutMix.
  """
  return PyramidNet(22, 240, strides=(1, 2, last_stride), dropout=dropout, **options)
