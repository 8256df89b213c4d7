"""ResNets for ImageNet: He et al. 2016, in the form called v1.5."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from saol_jax.backbones import layers
from saol_jax.backbones.registry import register
from saol_jax.norm import GhostBatchNorm


class ResidualBlock(nnx.Module):
  """A post-activation block: y = relu(branch(x) + shortcut(x)).

  The branch is a chain of conv-norm pairs with ReLU between them; the scale of its last norm starts
  at 0, so that the block starts as its shortcut (Goyal et al. 2017). torchvision has that as the
  option `zero_init_residual`. The shortcut is x itself, or a 1x1 conv and a norm where the shape
  changes.
  """

  def __init__(
    self,
    in_channels: int,
    plan: Sequence[tuple[int, int, int]],
    *,
    rngs: nnx.Rngs,
    dtype: jnp.dtype = jnp.float32,
    norm_group: int | None = None,
  ):
    """Makes the block.

    Args:
      in_channels: channels of the input.
      plan: kernel size, stride and channels of each convolution of the branch.
      rngs: for the kernels.
      dtype: of the computation.
      norm_group: examples a group of the normalisation.
    """
    options = {"rngs": rngs, "dtype": dtype}
    norm_options = {"group": norm_group, "dtype": dtype}
    self.convs, self.norms = nnx.List(), nnx.List()
    channels, total_stride = in_channels, 1
    for i, (kernel_size, stride, width) in enumerate(plan):
      self.convs.append(layers.conv(channels, width, kernel_size, stride, **options))
      last = i == len(plan) - 1
      self.norms.append(GhostBatchNorm(width, zero_scale=last, **norm_options))
      channels, total_stride = width, total_stride * stride
    projects = total_stride != 1 or in_channels != channels
    self.shortcut_conv = (
      layers.conv(in_channels, channels, 1, total_stride, **options) if projects else None
    )
    self.shortcut_norm = GhostBatchNorm(channels, **norm_options) if projects else None

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """(B, H, W, in_channels) -> (B, ceil(H / stride), ceil(W / stride), last width of the plan)."""
    y = x
    for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
      y = norm(conv(nnx.relu(y) if i else y), train=train)
    if self.shortcut_conv:
      x = self.shortcut_norm(self.shortcut_conv(x), train=train)
    return nnx.relu(x + y)


class ResNet(nnx.Module):
  """ResNet with a 7x7 stride-2 stem, max-pooling and four stages; torchvision's architecture.

  The bottleneck's stride is on its 3x3 convolution ("v1.5"; He et al. had it on the first 1x1):
  about half a point better on ImageNet by NVIDIA's account, and what torchvision's weights expect.

  Stage maps: the outputs of the four stages, c2 to c5, all after ReLU. `last_stride=1` keeps c5 at
  the resolution of c4 (14x14 at 224 pixels), as weakly supervised localisation wants it; no kernel
  is dilated to make up for it, so that pretrained weights load but see a smaller context in c5.

  Attributes:
    stage_channels: channels of each stage map.
    stage_strides: total stride of each stage map.
  """

  def __init__(
    self,
    depths: Sequence[int],
    *,
    bottleneck: bool,
    width: int = 64,
    last_stride: int = 2,
    rngs: nnx.Rngs,
    dtype: jnp.dtype = jnp.float32,
    norm_group: int | None = None,
  ):
    """Makes the network.

    Args:
      depths: blocks of each of the four stages.
      bottleneck: blocks of 1x1, 3x3, 1x1 with four times the channels; else of two 3x3.
      width: channels of the stem; the stages have 1, 2, 4 and 8 times as many inside.
      last_stride: stride of the last stage, 1 or 2.
      rngs: for the kernels.
      dtype: of the computation and of the stage maps.
      norm_group: examples a group of the normalisation.
    """
    self.stem = layers.conv(3, width, 7, 2, rngs=rngs, dtype=dtype)
    self.norm = GhostBatchNorm(width, group=norm_group, dtype=dtype)
    self.stages = nnx.List()
    stage_channels = []
    channels = width
    strides = (1, 2, 2, last_stride)
    for stage, (depth, stage_stride) in enumerate(zip(depths, strides, strict=True)):
      inner = width * 2**stage
      blocks = nnx.List()
      for i in range(depth):
        stride = stage_stride if i == 0 else 1
        plan = (
          ((1, 1, inner), (3, stride, inner), (1, 1, 4 * inner))
          if bottleneck
          else ((3, stride, inner), (3, 1, inner))
        )
        blocks.append(ResidualBlock(channels, plan, rngs=rngs, dtype=dtype, norm_group=norm_group))
        channels = plan[-1][-1]
      self.stages.append(blocks)
      stage_channels.append(channels)
    self.stage_channels = tuple(stage_channels)
    self.stage_strides = (4, 8, 16, 16 * last_stride)
    self.dtype = dtype

  def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
    """Computes the stage maps.

    Args:
      images: (B, H, W, 3), normalised, of any floating type.
      train: normalise by the batch and update the running statistics.

    Returns:
      Four (B, h, w, c) maps in `dtype`, coarse last; h = ceil(H / stage stride), likewise w.
    """
    x = self.stem(images.astype(self.dtype))
    x = layers.max_pool(nnx.relu(self.norm(x, train=train)))
    maps = []
    for blocks in self.stages:
      for block in blocks:
        x = block(x, train=train)
      maps.append(x)
    return tuple(maps)


@register
def resnet18(**options) -> ResNet:
  """ResNet-18."""
  return ResNet((2, 2, 2, 2), bottleneck=False, **options)


@register
def resnet34(**options) -> ResNet:
  """ResNet-34."""
  return ResNet((3, 4, 6, 3), bottleneck=False, **options)


@register
def resnet50(**options) -> ResNet:
  """ResNet-50 v1.5."""
  return ResNet((3, 4, 6, 3), bottleneck=True, **options)


@register
def resnet101(**options) -> ResNet:
  """ResNet-101 v1.5."""
  return ResNet((3, 4, 23, 3), bottleneck=True, **options)


@register
def resnet152(**options) -> ResNet:
  """ResNet-152 v1.5."""
  return ResNet((3, 8, 36, 3), bottleneck=True, **options)
