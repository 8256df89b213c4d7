"""NASNet-A: Zoph et al. 2018, "Learning transferable architectures for scalable recognition"."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from saol_jax.backbones import layers, pooling
from saol_jax.backbones.registry import register
from saol_jax.norm import GhostBatchNorm

_norm = functools.partial(GhostBatchNorm, epsilon=1e-3)


class Separable(nnx.Module):
  """Twice ReLU, depthwise convolution, 1x1 convolution, norm; the first time with the stride."""

  def __init__(
    self,
    in_channels: int,
    channels: int,
    kernel_size: int,
    stride: int = 1,
    *,
    rngs: nnx.Rngs,
    dtype: jnp.dtype,
    norm_group: int | None,
  ):
    """Makes the layers; `channels` come out of the first 1x1 convolution and of the second."""
    options = {"rngs": rngs, "dtype": dtype}
    self.depthwise, self.pointwise, self.norms = nnx.List(), nnx.List(), nnx.List()
    for inputs, conv_stride in ((in_channels, stride), (channels, 1)):
      self.depthwise.append(
        layers.conv(
          inputs, inputs, kernel_size, conv_stride, groups=inputs, tensorflow=True, **options
        )
      )
      self.pointwise.append(layers.conv(inputs, channels, 1, **options))
      self.norms.append(_norm(channels, group=norm_group, dtype=dtype))

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """(B, H, W, in_channels) -> (B, ceil(H / stride), ceil(W / stride), channels)."""
    for depthwise, pointwise, norm in zip(self.depthwise, self.pointwise, self.norms, strict=True):
      x = norm(pointwise(depthwise(nnx.relu(x))), train=train)
    return x


class Squeeze(nnx.Module):
  """ReLU, 1x1 convolution, norm: gives a cell's input the cell's number of channels."""

  def __init__(
    self,
    in_channels: int,
    channels: int,
    *,
    rngs: nnx.Rngs,
    dtype: jnp.dtype,
    norm_group: int | None,
  ):
    """Makes the layers."""
    self.conv = layers.conv(in_channels, channels, 1, rngs=rngs, dtype=dtype)
    self.norm = _norm(channels, group=norm_group, dtype=dtype)

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """(B, H, W, in_channels) -> (B, H, W, channels)."""
    return self.norm(self.conv(nnx.relu(x)), train=train)


class FactorizedReduction(nnx.Module):
  """A `Squeeze` that also brings the map of a cell before a reduction to the size after it.

  Half of the channels see every stride-th cell, the other half the cells below and right of those,
  with zeros beyond the border. With a stride of 1 both halves see the same.
  """

  def __init__(
    self,
    in_channels: int,
    channels: int,
    stride: int,
    *,
    rngs: nnx.Rngs,
    dtype: jnp.dtype,
    norm_group: int | None,
  ):
    """Makes the layers; a stride of 1 or 2, an even number of channels."""
    self.conv1 = layers.conv(in_channels, channels // 2, 1, rngs=rngs, dtype=dtype)
    self.conv2 = layers.conv(in_channels, channels // 2, 1, rngs=rngs, dtype=dtype)
    self.norm = _norm(channels, group=norm_group, dtype=dtype)
    self.stride = stride

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """(B, H, W, in_channels) -> (B, ceil(H / stride), ceil(W / stride), channels)."""
    x = shifted = nnx.relu(x)
    if self.stride == 2:
      shifted = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1::2, 1::2]
      x = x[:, ::2, ::2]
    return self.norm(jnp.concatenate([self.conv1(x), self.conv2(shifted)], -1), train=train)


def _max(x: jax.Array, stride: int) -> jax.Array:
  return pooling.max_pool(x, 3, stride, pooling.same_padding(x.shape, 3, stride))


def _mean(x: jax.Array, stride: int = 1) -> jax.Array:
  return pooling.average_pool(x, 3, stride, "SAME")


class NormalCell(nnx.Module):
  """The cell of figure 4, left: five sums of pairs, put together with the adjusted `before`."""

  def __init__(self, x: nnx.Module, before: nnx.Module, filters: int, **options):
    """Makes the cell.

    Args:
      x, before: layers that give the two inputs `filters` channels and the same size.
      filters: channels of each part of the result, which has 6.
      **options: of `Separable`.
    """
    self.x, self.before = x, before
    self.branches = nnx.List(
      Separable(filters, filters, kernel_size, **options) for kernel_size in (5, 3, 5, 3, 3)
    )
    self.channels = 6 * filters

  def __call__(self, x: jax.Array, before: jax.Array, *, train: bool) -> jax.Array:
    """Two inputs, the last cell's and the one's before it, to (B, h, w, channels)."""
    x, before = self.x(x, train=train), self.before(before, train=train)
    inputs = (x, before, before, before, x)
    y = [b(i, train=train) for b, i in zip(self.branches, inputs, strict=True)]
    parts = [before, y[0] + y[1], y[2] + y[3], _mean(x) + before, 2 * _mean(before), y[4] + x]
    return jnp.concatenate(parts, -1)


class ReductionCell(nnx.Module):
  """The cell of figure 4, right: halves the map."""

  def __init__(
    self,
    x: nnx.Module,
    before: nnx.Module | None,
    before_channels: int,
    filters: int,
    stride: int,
    **options,
  ):
    """Makes the cell.

    Args:
      x, before: layers that give the inputs the same size, and x `filters` channels; without
        `before`, that input is used as it is.
      before_channels: channels of the second input as it is used.
      filters: channels of each part of the result, which has 4.
      stride: 2, or 1 for a cell that does not reduce.
      **options: of `Separable`.
    """
    self.x, self.before = x, before
    self.branches = nnx.List(
      Separable(inputs, filters, kernel_size, branch_stride, **options)
      for inputs, kernel_size, branch_stride in (
        (filters, 5, stride),
        (before_channels, 7, stride),
        (before_channels, 7, stride),
        (before_channels, 5, stride),
        (filters, 3, 1),
      )
    )
    self.stride = stride
    self.channels = 4 * filters

  def __call__(self, x: jax.Array, before: jax.Array, *, train: bool) -> jax.Array:
    """Two inputs, the last cell's and the one's before it, to (B, h, w, channels)."""
    x = self.x(x, train=train)
    if self.before:
      before = self.before(before, train=train)
    inputs = (x, before, before, before)
    y = [b(i, train=train) for b, i in zip(self.branches, inputs, strict=False)]
    first = y[0] + y[1]
    second = _max(x, self.stride) + y[2]
    third = _mean(x, self.stride) + y[3]
    fifth = self.branches[4](first, train=train) + _max(x, self.stride)
    return jnp.concatenate([second, third, _mean(first) + second, fifth], -1)


class NASNet(nnx.Module):
  """NASNet-A for ImageNet: a convolution, two reduction cells, then stages of normal cells.

  Every cell reads the two maps before it; a reduction cell stands between two stages and doubles
  the filters. Stage maps: the first reduction's result, and those of the last cells of the three
  stages, of which the last is after ReLU and the others are plain.

  The code of slim and Keras (`NASNetMobile`), and Cadene's translation for PyTorch, agree where the
  sides are even between reductions, as from 224 pixels; elsewhere this pads as slim does ('SAME').
  There is no dropout before the classifier, as in none of our networks, and no auxiliary one. Our
  running statistics have the momentum 0.9 of the translation, not the 0.9997 of the original.

  Attributes:
    stage_channels: channels of each stage map.
    stage_strides: total stride of each stage map.
  """

  def __init__(
    self,
    filters: int,
    *,
    cells: int = 4,
    stem_channels: int = 32,
    last_stride: int = 2,
    rngs: nnx.Rngs,
    dtype: jnp.dtype = jnp.float32,
    norm_group: int | None = None,
  ):
    """Makes the network.

    Args:
      filters: of the first stage's cells, divisible by 4.
      cells: normal cells a stage.
      stem_channels: channels after the first convolution.
      last_stride: stride of the last stage, 1 or 2.
      rngs: for the kernels.
      dtype: of the computation and of the stage maps.
      norm_group: examples a group of the normalisation.
    """
    options = {"rngs": rngs, "dtype": dtype, "norm_group": norm_group}
    self.stem = nnx.Conv(
      3,
      stem_channels,
      (3, 3),
      strides=2,
      padding="VALID",
      use_bias=False,
      kernel_init=layers.HE_FAN_OUT,
      dtype=dtype,
      param_dtype=jnp.float32,
      rngs=rngs,
    )
    self.norm = _norm(stem_channels, group=norm_group, dtype=dtype)
    stem_filters = filters // 4
    first = ReductionCell(
      Squeeze(stem_channels, stem_filters, **options),
      None,
      stem_channels,
      stem_filters,
      2,
      **options,
    )
    self.stages = nnx.List([nnx.List([first])])
    before, channels = stem_channels, first.channels
    strides = (2, 2, last_stride)
    for i, stride in enumerate(strides):
      width = filters * 2**i
      # The second cell of the stem has half the filters of the cells that it leads to.
      reduced = width // 2 if i == 0 else width
      adjust = (
        FactorizedReduction(before, reduced, 2, **options)
        if i == 0
        else Squeeze(before, reduced, **options)
      )
      squeeze = Squeeze(channels, reduced, **options)
      stage = nnx.List([ReductionCell(squeeze, adjust, reduced, reduced, stride, **options)])
      before, channels = channels, stage[-1].channels
      for cell in range(cells):
        adjust = (
          Squeeze(before, width, **options)
          if cell
          else FactorizedReduction(before, width, stride, **options)
        )
        squeeze = Squeeze(channels, width, **options)
        stage.append(NormalCell(squeeze, adjust, width, **options))
        before, channels = channels, stage[-1].channels
      self.stages.append(stage)
    self.stage_channels = tuple(stage[-1].channels for stage in self.stages)
    self.stage_strides = (4, 8, 16, 16 * last_stride)
    self.dtype = dtype

  def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
    """Computes the stage maps.

    Args:
      images: (B, H, W, 3), normalised, of any floating type.
      train: normalise by the batch and update the running statistics.

    Returns:
      Four (B, h, w, c) maps in `dtype`, coarse last; the first convolution rounds down, (H - 1) //
      2, the others up.
    """
    x = self.norm(self.stem(images.astype(self.dtype)), train=train)
    before = x
    maps = []
    for stage in self.stages:
      for cell in stage:
        before, x = x, cell(x, before, train=train)
      maps.append(x)
    maps[-1] = nnx.relu(x)
    return tuple(maps)


@register
def nasnet_mobile(**options) -> NASNet:
  """NASNet-A (4 @ 1056), the mobile one; Cadene's weights call it `nasnetamobile`."""
  return NASNet(44, **options)
