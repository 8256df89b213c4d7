"""ResNets for 32x32 images: He et al. 2016, section 4.2."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from saol_jax.backbones import layers
from saol_jax.backbones.registry import register
from saol_jax.backbones.resnet import ConvPlan, basic_plan, residual_stage
from saol_jax.norm import GhostBatchNorm


class CifarResNet(nnx.Module):
  """A 3x3 convolution, norm and ReLU, then stages of post-activation blocks.

  Stage maps: the outputs of the stages, all after ReLU.

  Attributes:
    stage_channels: channels of each stage map.
    stage_strides: total stride of each stage map.
  """

  def __init__(
    self,
    stem_channels: int,
    plans: Sequence[Callable[[int], Sequence[ConvPlan]]],
    strides: Sequence[int],
    *,
    depth: int,
    project: bool = True,
    rngs: nnx.Rngs,
    dtype: jnp.dtype = jnp.float32,
    norm_group: int | None = None,
  ):
    """Makes the network.

    Args:
      stem_channels: channels after the first convolution.
      plans: for each stage, from a block's stride to its convolutions.
      strides: of each stage, 1 or 2.
      depth: blocks a stage.
      project: shortcut option B where the shape changes; else option A. See `ResidualBlock`.
      rngs: for the kernels.
      dtype: of the computation and of the stage maps.
      norm_group: examples a group of the normalisation.
    """
    self.stem = layers.conv(3, stem_channels, 3, rngs=rngs, dtype=dtype)
    self.norm = GhostBatchNorm(stem_channels, group=norm_group, dtype=dtype)
    options = {"project": project, "rngs": rngs, "dtype": dtype, "norm_group": norm_group}
    self.stages = nnx.List()
    totals = []
    channels, total = stem_channels, 1
    for plan, stride in zip(plans, strides, strict=True):
      self.stages.append(residual_stage(channels, plan, stride, depth, **options))
      channels, total = self.stages[-1][-1].channels, total * stride
      totals.append(total)
    self.stage_channels = tuple(blocks[-1].channels for blocks in self.stages)
    self.stage_strides = tuple(totals)
    self.dtype = dtype

  def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
    """Computes the stage maps.

    Args:
      images: (B, H, W, 3), normalised, of any floating type.
      train: normalise by the batch and update the running statistics.

    Returns:
      One (B, h, w, c) map a stage in `dtype`, coarse last; h = ceil(H / stage stride), likewise w.
    """
    x = nnx.relu(self.norm(self.stem(images.astype(self.dtype)), train=train))
    maps = []
    for blocks in self.stages:
      for block in blocks:
        x = block(x, train=train)
      maps.append(x)
    return tuple(maps)


def _resnet(depth: int, *, last_stride: int = 2, **options) -> CifarResNet:
  """ResNet-depth of He et al.; depth counts all layers but the shortcuts' (6n + 2).

  Two 3x3 convolutions a block, and shortcut option A, as the paper has it for CIFAR. The zeros come
  after the channels, as in fb.resnet.torch; the paper does not say where. CutMix's code has other
  networks under these names: option B, and from its flag bottlenecks.
  """
  plans = [basic_plan(channels) for channels in (16, 32, 64)]
  return CifarResNet(
    16, plans, (1, 2, last_stride), depth=(depth - 2) // 6, project=False, **options
  )


@register
def resnet20(**options) -> CifarResNet:
  """ResNet-20 for CIFAR."""
  return _resnet(20, **options)


@register
def resnet56(**options) -> CifarResNet:
  """ResNet-56 for CIFAR."""
  return _resnet(56, **options)


@register
def resnet110(**options) -> CifarResNet:
  """ResNet-110 for CIFAR; He et al. warm it up with a learning rate of 0.01."""
  return _resnet(110, **options)
