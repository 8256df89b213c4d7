"""ResNets for ImageNet: He et al. 2016, in the form called v1.5; and the blocks of all ResNets."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from saol_jax.backbones import layers, pooling
from saol_jax.backbones.deformable import DeformableConv
from saol_jax.backbones.registry import register
from saol_jax.backbones.stem import Stem
from saol_jax.norm import GhostBatchNorm


class ConvPlan(NamedTuple):
  """One convolution of a residual branch: see `layers.conv`, or `DeformableConv`."""

  kernel_size: int
  stride: int
  channels: int
  groups: int = 1
  deformable: bool = False


class ResidualBlock(nnx.Module):
  """A post-activation block: y = relu(branch(x) + shortcut(x)).

  The branch is a chain of conv-norm pairs with ReLU between them; the scale of its last norm starts
  at 0, so that the block starts as its shortcut (Goyal et al. 2017). torchvision has that as the
  option `zero_init_residual`. The shortcut is x itself; where the shape changes, it is a 1x1 conv
  and a norm ("option B" of He et al.), or x at every stride-th cell, filled up with channels of
  zeros ("option A", which has no parameters).
  """

  def __init__(
    self,
    in_channels: int,
    plan: Sequence[ConvPlan],
    *,
    project: bool = True,
    rngs: nnx.Rngs,
    dtype: jnp.dtype = jnp.float32,
    norm_group: int | None = None,
  ):
    """Makes the block.

    Args:
      in_channels: channels of the input.
      plan: the convolutions of the branch.
      project: option B where the shape changes; else option A.
      rngs: for the kernels.
      dtype: of the computation.
      norm_group: examples a group of the normalisation.
    """
    options = {"rngs": rngs, "dtype": dtype}
    norm_options = {"group": norm_group, "dtype": dtype}
    self.convs, self.norms = nnx.List(), nnx.List()
    channels, self.stride = in_channels, 1
    for i, (kernel_size, stride, width, groups, deformable) in enumerate(plan):
      self.convs.append(
        DeformableConv(channels, width, stride, **options)
        if deformable
        else layers.conv(channels, width, kernel_size, stride, groups=groups, **options)
      )
      last = i == len(plan) - 1
      self.norms.append(GhostBatchNorm(width, zero_scale=last, **norm_options))
      channels, self.stride = width, self.stride * stride
    self.channels = channels
    projects = project and (self.stride != 1 or in_channels != channels)
    self.shortcut_conv = (
      layers.conv(in_channels, channels, 1, self.stride, **options) if projects else None
    )
    self.shortcut_norm = GhostBatchNorm(channels, **norm_options) if projects else None

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """(B, H, W, in_channels) -> (B, ceil(H / stride), ceil(W / stride), last width of the plan)."""
    y = x
    for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
      y = norm(conv(nnx.relu(y) if i else y), train=train)
    if self.shortcut_conv:
      x = self.shortcut_norm(self.shortcut_conv(x), train=train)
    else:
      x = layers.pad_channels(x[:, :: self.stride, :: self.stride], self.channels)
    return layers.relu(x + y)


def basic_plan(channels: int) -> Callable[[int], Sequence[ConvPlan]]:
  """From a block's stride to two 3x3 convolutions."""
  return lambda stride: (ConvPlan(3, stride, channels), ConvPlan(3, 1, channels))


def bottleneck_plan(
  channels: int, inner: int, groups: int = 1, deformable: bool = False
) -> Callable[[int], Sequence[ConvPlan]]:
  """From a block's stride to a 1x1, a 3x3 and a 1x1 convolution; `inner` channels inside."""
  return lambda stride: (
    ConvPlan(1, 1, inner),
    ConvPlan(3, stride, inner, groups, deformable),
    ConvPlan(1, 1, channels),
  )


def residual_stage(
  in_channels: int, plan: Callable[[int], Sequence[ConvPlan]], stride: int, depth: int, **options
) -> nnx.List:
  """Makes `depth` residual blocks, the first of which has the stride.

  Args:
    in_channels: channels of the input.
    plan: from a block's stride to its convolutions.
    stride: of the stage, 1 or 2.
    depth: number of blocks.
    **options: of `ResidualBlock`.
  """
  blocks = nnx.List()
  for i in range(depth):
    blocks.append(ResidualBlock(in_channels, plan(1 if i else stride), **options))
    in_channels = blocks[-1].channels
  return blocks


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
    groups: int = 1,
    inner_ratio: int = 1,
    deformable_stages: int = 0,
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
      groups: of the bottleneck's 3x3 convolution.
      inner_ratio: channels inside a bottleneck, over those of a plain ResNet.
      deformable_stages: the last stages, this many, have deformable 3x3 convolutions.
      last_stride: stride of the last stage, 1 or 2.
      rngs: for the kernels.
      dtype: of the computation and of the stage maps.
      norm_group: examples a group of the normalisation.
    """
    self.stem = Stem(width, rngs=rngs, dtype=dtype)
    self.norm = GhostBatchNorm(width, group=norm_group, dtype=dtype)
    self.stages = nnx.List()
    in_channels = width
    strides = (1, 2, 2, last_stride)
    for stage, (depth, stride) in enumerate(zip(depths, strides, strict=True)):
      channels = width * 2**stage
      deformable = stage >= len(depths) - deformable_stages
      plan = (
        bottleneck_plan(4 * channels, inner_ratio * channels, groups, deformable)
        if bottleneck
        else basic_plan(channels)
      )
      self.stages.append(
        residual_stage(
          in_channels, plan, stride, depth, rngs=rngs, dtype=dtype, norm_group=norm_group
        )
      )
      in_channels = self.stages[-1][-1].channels
    self.stage_channels = tuple(blocks[-1].channels for blocks in self.stages)
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
    x = pooling.max_pool(nnx.relu(self.norm(x, train=train)))
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


@register
def resnet200(**options) -> ResNet:
  """ResNet-200 v1.5, as timm has it; He et al. 2016b, who proposed the depths, pre-activate."""
  return ResNet((3, 24, 36, 3), bottleneck=True, **options)


@register
def wide_resnet50_2(**options) -> ResNet:
  """ResNet-50 with bottlenecks twice as wide inside: torchvision's Wide ResNet-50-2."""
  return ResNet((3, 4, 6, 3), bottleneck=True, inner_ratio=2, **options)


@register
def resnet50_dcn(**options) -> ResNet:
  """ResNet-50 with modulated deformable convolutions in its last three stages.

  Every 3x3 convolution of c3, c4 and c5 (Zhu et al. 2019; mmdetection's `r50-dconv-c3-c5`).
  """
  return ResNet((3, 4, 6, 3), bottleneck=True, deformable_stages=3, **options)
