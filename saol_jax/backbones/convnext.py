"""ConvNeXt: Liu et al. 2022."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from saol_jax.backbones import layers
from saol_jax.backbones.registry import register

# The authors' trunc_normal_ cuts at +-2, a hundred standard deviations: never.
_INIT = nnx.initializers.normal(0.02)


class ConvNeXtBlock(nnx.Module):
  """7x7 depthwise conv, norm, a layer to four times the channels and one back; plus x.

    y = x + scale * contract(gelu(expand(norm(depthwise(x)))))

  GELU is the exact one. `scale`, one number a channel, starts at 1e-6 (Touvron et al. 2021), so
  that the block starts as the identity.
  """

  def __init__(
    self, channels: int, *, drop_rate: float, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32
  ):
    """Makes the block.

    Args:
      channels: C.
      drop_rate: share of the examples whose branch is dropped in training.
      rngs: for the kernels and the dropping.
      dtype: of the computation.
    """
    options = {"rngs": rngs, "dtype": dtype}
    self.depthwise = nnx.Conv(
      channels,
      channels,
      (7, 7),
      padding=3,
      feature_group_count=channels,
      kernel_init=_INIT,
      **options,
    )
    self.norm = layers.LayerNorm(channels, **options)
    self.expand = nnx.Linear(channels, 4 * channels, kernel_init=_INIT, **options)
    self.contract = nnx.Linear(4 * channels, channels, kernel_init=_INIT, **options)
    self.scale = nnx.Param(jnp.full(channels, 1e-6, jnp.float32))
    self.drop_path = layers.drop_path(drop_rate, rngs=rngs)

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """(B, H, W, C) to the same."""
    y = self.expand(self.norm(self.depthwise(x)))
    y = self.contract(nnx.gelu(y, approximate=False))
    y = y * self.scale[...].astype(y.dtype).reshape(1, 1, 1, -1)
    if self.drop_path:
      y = self.drop_path(y, deterministic=not train)
    return x + y


class PooledLayerNorm(nnx.Module):
  """Layer normalisation of the pooled features, applied to every cell.

    y_hwc = (x_hwc - mean_c(p)) / sqrt(var_c(p) + epsilon) * scale_c + bias_c,  p = mean_hw(x)

  The mean of y over the cells is the layer norm of p: where the reference pools, normalises and
  classifies, we can normalise, pool and classify, and the classifier sees the same.
  """

  def __init__(self, channels: int, *, epsilon: float = 1e-6, dtype: jnp.dtype = jnp.float32):
    """Makes the layer, for C `channels`; the result is of type `dtype`."""
    self.scale = nnx.Param(jnp.ones(channels, jnp.float32))
    self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))
    self.epsilon = epsilon
    self.dtype = dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    """(B, H, W, C) of any floating type to the same shape, computed in float32."""
    x = x.astype(jnp.float32)
    pooled = x.mean((1, 2), keepdims=True)
    mean, var = pooled.mean(-1, keepdims=True), pooled.var(-1, keepdims=True)
    scale, bias = (p[...].reshape(1, 1, 1, -1) for p in (self.scale, self.bias))
    return ((x - mean) * jax.lax.rsqrt(var + self.epsilon) * scale + bias).astype(self.dtype)


class ConvNeXt(nnx.Module):
  """4x4 patches, then four stages of blocks with a norm and 2x2 patches between them.

  The authors' architecture, which torchvision, timm and transformers share. They pool the last map,
  then normalise it, then classify; here the last norm is applied to the cells, with the statistics
  of the pooled features (`PooledLayerNorm`), so that GAP-FC computes what their classifier does.

  Stage maps: the outputs of the four stages, which are residual sums; the last one is normalised.
  Sides that the strides do not divide lose pixels at the far ends, as in the references.
  `last_stride=1` applies the last 2x2 convolution around every cell, padded at the far ends.

  Attributes:
    stage_channels: channels of each stage map.
    stage_strides: total stride of each stage map.
  """

  def __init__(
    self,
    depths: Sequence[int],
    widths: Sequence[int],
    *,
    last_stride: int = 2,
    dropout: float = 0.0,
    rngs: nnx.Rngs,
    dtype: jnp.dtype = jnp.float32,
    norm_group: int | None = None,
  ):
    """Makes the network.

    Args:
      depths: blocks of each of the four stages.
      widths: channels of each of the four stages.
      last_stride: stride of the last stage, 1 or 2.
      dropout: block i of n drops its branch for a share dropout * i / (n - 1) of the examples; the
        paper trains with 0.1 (tiny) and 0.4 (small).
      rngs: for the kernels and the dropping.
      dtype: of the computation and of the stage maps.
      norm_group: nothing here is normalised over examples; taken because every backbone takes it.
    """
    del norm_group
    options = {"rngs": rngs, "dtype": dtype}
    self.stem = layers.patches(3, widths[0], 4, kernel_init=_INIT, **options)
    self.stem_norm = layers.LayerNorm(widths[0], **options)
    self.downsample_norms = nnx.List([layers.LayerNorm(width, **options) for width in widths[:-1]])
    self.downsamples = nnx.List(
      [
        layers.patches(width, wider, 2, stride, kernel_init=_INIT, **options)
        for width, wider, stride in zip(widths, widths[1:], (2, 2, last_stride), strict=False)
      ]
    )
    self.stages = nnx.List()
    rates = iter(dropout * i / max(1, sum(depths) - 1) for i in range(sum(depths)))
    for depth, width in zip(depths, widths, strict=True):
      blocks = [ConvNeXtBlock(width, drop_rate=next(rates), **options) for _ in range(depth)]
      self.stages.append(nnx.List(blocks))
    self.norm = PooledLayerNorm(widths[-1], dtype=dtype)
    self.stage_channels = tuple(widths)
    self.stage_strides = (4, 8, 16, 16 * last_stride)
    self.dtype = dtype

  def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
    """Computes the stage maps.

    Args:
      images: (B, H, W, 3), normalised, of any floating type; H and W at least the last stride.
      train: drop branches.

    Returns:
      Four (B, h, w, c) maps in `dtype`, coarse last; h = H // stage stride, likewise w.

    Raises:
      UserError: a side is shorter than the last stride.
    """
    layers.check_size(images, self.stage_strides[-1])
    x = self.stem_norm(self.stem(images.astype(self.dtype)))
    maps = []
    for stage, blocks in enumerate(self.stages):
      if stage:
        x = self.downsamples[stage - 1](self.downsample_norms[stage - 1](x))
      for block in blocks:
        x = block(x, train=train)
      maps.append(x)
    maps[-1] = self.norm(x)
    return tuple(maps)


@register
def convnext_tiny(*, dropout: float = 0.0, **options) -> ConvNeXt:
  """ConvNeXt-T."""
  return ConvNeXt((3, 3, 9, 3), (96, 192, 384, 768), dropout=dropout, **options)


@register
def convnext_small(*, dropout: float = 0.0, **options) -> ConvNeXt:
  """ConvNeXt-S."""
  return ConvNeXt((3, 3, 27, 3), (96, 192, 384, 768), dropout=dropout, **options)
