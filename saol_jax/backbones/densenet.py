"""DenseNets with bottlenecks and compression: Huang et al. 2017, DenseNet-BC."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from saol_jax.backbones import layers, pooling
from saol_jax.backbones.registry import register
from saol_jax.backbones.stem import Stem
from saol_jax.norm import GhostBatchNorm


class DenseLayer(nnx.Module):
  """Appends `growth` channels to what came before: [x, branch(x)].

  branch: norm, ReLU, conv1x1 to 4 growth channels, norm, ReLU, conv3x3, dropout
  """

  def __init__(
    self,
    in_channels: int,
    growth: int,
    *,
    dropout: float = 0.0,
    rngs: nnx.Rngs,
    dtype: jnp.dtype = jnp.float32,
    norm_group: int | None = None,
  ):
    """Makes the layer.

    Args:
      in_channels: channels of the input.
      growth: channels that are appended.
      dropout: share of the new values dropped in training, in [0, 1).
      rngs: for the kernels and the dropout.
      dtype: of the computation.
      norm_group: examples a group of the normalisation.
    """
    self.norm1 = GhostBatchNorm(in_channels, group=norm_group, dtype=dtype)
    self.conv1 = layers.conv(in_channels, 4 * growth, 1, rngs=rngs, dtype=dtype)
    self.norm2 = GhostBatchNorm(4 * growth, group=norm_group, dtype=dtype)
    self.conv2 = layers.conv(4 * growth, growth, 3, rngs=rngs, dtype=dtype)
    self.dropout = layers.dropout(dropout, rngs=rngs)

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """(B, H, W, in_channels) -> (B, H, W, in_channels + growth)."""
    y = self.conv1(nnx.relu(self.norm1(x, train=train)))
    y = self.conv2(nnx.relu(self.norm2(y, train=train)))
    if self.dropout:
      y = self.dropout(y, deterministic=not train)
    return jnp.concatenate([x, y], -1)


class Transition(nnx.Module):
  """Between two stages: norm, ReLU, conv1x1 to half the channels, and 2x2 means at stride 2."""

  def __init__(
    self,
    in_channels: int,
    stride: int,
    *,
    rngs: nnx.Rngs,
    dtype: jnp.dtype = jnp.float32,
    norm_group: int | None = None,
  ):
    """Makes the layer; with a stride of 1 it does not take means."""
    self.stride = stride
    self.norm = GhostBatchNorm(in_channels, group=norm_group, dtype=dtype)
    self.conv = layers.conv(in_channels, in_channels // 2, 1, rngs=rngs, dtype=dtype)

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """(B, H, W, C) -> (B, H // stride, W // stride, C // 2)."""
    x = self.conv(nnx.relu(self.norm(x, train=train)))
    return pooling.average_pool(x, 2, 2, "VALID") if self.stride == 2 else x


class DenseNet(nnx.Module):
  """DenseNet-BC: stages of dense layers with transitions between them.

  Stage maps: the last one is after the final norm and ReLU, hence not negative. The earlier ones
  are what a stage has gathered, before its transition: neither normalised nor activated.

  Attributes:
    stage_channels: channels of each stage map.
    stage_strides: total stride of each stage map.
  """

  def __init__(
    self,
    depths: Sequence[int],
    growth: int,
    *,
    imagenet_stem: bool,
    last_stride: int = 2,
    dropout: float = 0.0,
    rngs: nnx.Rngs,
    dtype: jnp.dtype = jnp.float32,
    norm_group: int | None = None,
  ):
    """Makes the network.

    Args:
      depths: dense layers of each stage.
      growth: channels that a dense layer appends; the stem has twice as many.
      imagenet_stem: start with a 7x7 convolution at stride 2, norm, ReLU and max-pooling; else with
        a 3x3 convolution alone.
      last_stride: stride of the last stage, 1 or 2.
      dropout: share of the values dropped in each dense layer in training, in [0, 1).
      rngs: for the kernels and the dropout.
      dtype: of the computation and of the stage maps.
      norm_group: examples a group of the normalisation.
    """
    options = {"rngs": rngs, "dtype": dtype}
    channels = 2 * growth
    if imagenet_stem:
      self.stem = Stem(channels, **options)
      self.norm = GhostBatchNorm(channels, group=norm_group, dtype=dtype)
    else:
      self.stem = layers.conv(3, channels, 3, **options)
      self.norm = None
    options["norm_group"] = norm_group
    self.stages, self.transitions = nnx.List(), nnx.List()
    stage_channels, stage_strides = [], [4 if imagenet_stem else 1]
    for i, depth in enumerate(depths):
      if i:
        stride = last_stride if i == len(depths) - 1 else 2
        self.transitions.append(Transition(channels, stride, **options))
        channels //= 2
        stage_strides.append(stage_strides[-1] * stride)
      stage = nnx.List()
      for _ in range(depth):
        stage.append(DenseLayer(channels, growth, dropout=dropout, **options))
        channels += growth
      self.stages.append(stage)
      stage_channels.append(channels)
    self.final_norm = GhostBatchNorm(channels, group=norm_group, dtype=dtype)
    self.stage_channels = tuple(stage_channels)
    self.stage_strides = tuple(stage_strides)
    self.dtype = dtype

  def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
    """Computes the stage maps.

    Args:
      images: (B, H, W, 3), normalised, of any floating type.
      train: normalise by the batch, update the running statistics, drop values.

    Returns:
      One (B, h, w, c) map a stage in `dtype`, coarse last. A transition rounds an odd side down.
    """
    x = self.stem(images.astype(self.dtype))
    if self.norm:
      x = pooling.max_pool(nnx.relu(self.norm(x, train=train)))
    maps = []
    for i, stage in enumerate(self.stages):
      if i:
        x = self.transitions[i - 1](x, train=train)
      for layer in stage:
        x = layer(x, train=train)
      maps.append(x)
    maps[-1] = nnx.relu(self.final_norm(x, train=train))
    return tuple(maps)


@register
def densenet_bc_100_12(*, dropout: float = 0.0, **options) -> DenseNet:
  """DenseNet-BC-100-12 for CIFAR, as in gpleiss/efficient_densenet_pytorch, by an author.

  The paper drops 0.2 where it trains without augmentation.
  """
  return DenseNet((16, 16, 16), 12, imagenet_stem=False, dropout=dropout, **options)


@register
def densenet121(*, dropout: float = 0.0, **options) -> DenseNet:
  """DenseNet-121, torchvision's; its kernels start as He et al. count over the inputs, not ours."""
  return DenseNet((6, 12, 24, 16), 32, imagenet_stem=True, dropout=dropout, **options)
