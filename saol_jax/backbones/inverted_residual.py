"""Networks of inverted residual blocks, which MobileNetV2 and EfficientNet share."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from saol_jax.backbones import layers
from saol_jax.norm import GhostBatchNorm

# Of the first block of each of the seven rows, in the tables of both papers; the sixth can be 1.
ROW_STRIDES = (1, 2, 2, 2, 1, 2, 1)
# The last rows at strides 4, 8 and 16.
_STAGE_ENDS = (1, 2, 4)


class InvertedResidual(nnx.Module):
  """1x1 conv to more channels, depthwise conv, gate, 1x1 conv to few; and a shortcut.

    y = norm(project(gate(act(norm(depthwise(act(norm(expand(x)))))))) + x

  Without `expand` where the ratio is 1, without a gate in MobileNetV2, and without the shortcut
  where the shape changes. The result is not activated (a "linear bottleneck").
  """

  def __init__(
    self,
    in_channels: int,
    channels: int,
    stride: int,
    *,
    ratio: int,
    kernel_size: int,
    activation: Callable[[jax.Array], jax.Array],
    squeeze_excite: bool,
    drop_rate: float,
    tensorflow: bool,
    norm_options: dict,
    rngs: nnx.Rngs,
    dtype: jnp.dtype,
  ):
    """Makes the block.

    Args:
      in_channels: channels of the input.
      channels: channels of the result.
      stride: of the depthwise convolution, 1 or 2.
      ratio: channels inside, as a multiple of `in_channels`.
      kernel_size: side of the depthwise kernel.
      activation: follows the first two convolutions.
      squeeze_excite: gate the channels by way of in_channels / 4.
      drop_rate: share of the examples whose branch is dropped in training, where it has a shortcut.
      tensorflow: pad the depthwise convolution as TensorFlow does.
      norm_options: keywords of GhostBatchNorm.
      rngs: for the kernels and the dropping.
      dtype: of the computation.
    """
    options = {"rngs": rngs, "dtype": dtype}
    inner = ratio * in_channels
    expands = ratio != 1
    self.expand = layers.conv(in_channels, inner, 1, **options) if expands else None
    self.expand_norm = GhostBatchNorm(inner, **norm_options) if expands else None
    self.depthwise = layers.conv(
      inner, inner, kernel_size, stride, groups=inner, tensorflow=tensorflow, **options
    )
    self.depthwise_norm = GhostBatchNorm(inner, **norm_options)
    reduced = max(1, in_channels // 4)
    self.gate = layers.SqueezeExcite(inner, reduced, **options) if squeeze_excite else None
    self.project = layers.conv(inner, channels, 1, **options)
    self.project_norm = GhostBatchNorm(channels, **norm_options)
    self.activation = activation
    self.has_shortcut = stride == 1 and in_channels == channels
    self.drop_path = layers.drop_path(drop_rate if self.has_shortcut else 0.0, rngs=rngs)

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """(B, H, W, in_channels) -> (B, ceil(H / stride), ceil(W / stride), channels)."""
    y = x
    if self.expand:
      y = self.activation(self.expand_norm(self.expand(y), train=train))
    y = self.activation(self.depthwise_norm(self.depthwise(y), train=train))
    if self.gate:
      y = self.gate(y)
    y = self.project_norm(self.project(y), train=train)
    if self.drop_path:
      y = self.drop_path(y, deterministic=not train)
    return x + y if self.has_shortcut else y


class InvertedResidualNetwork(nnx.Module):
  """A 3x3 stride-2 convolution, seven rows of inverted residual blocks, a 1x1 convolution.

  Stage maps: the last outputs at strides 4, 8 and 16, linear, neither normalised nor activated
  after their sum; and the final 1x1 convolution, after its norm and activation, at stride 32.
  `last_stride=1` keeps the last two rows at stride 16; no kernel is dilated to make up for it.

  Attributes:
    stage_channels: channels of each stage map.
    stage_strides: total stride of each stage map.
    has_gates: the blocks have squeeze-and-excitation.
    tensorflow: strided convolutions are padded as in TensorFlow.
  """

  def __init__(
    self,
    stem_channels: int,
    rows: Sequence[tuple[int, int, int, int]],
    head_channels: int,
    *,
    activation: Callable[[jax.Array], jax.Array],
    squeeze_excite: bool,
    tensorflow: bool,
    epsilon: float,
    momentum: float,
    last_stride: int = 2,
    dropout: float = 0.0,
    rngs: nnx.Rngs,
    dtype: jnp.dtype = jnp.float32,
    norm_group: int | None = None,
  ):
    """Makes the network.

    Args:
      stem_channels: channels after the first convolution.
      rows: seven times: expansion ratio, kernel size, channels, blocks.
      head_channels: channels after the last convolution.
      activation: of the whole network.
      squeeze_excite: whether the blocks have gates.
      tensorflow: pad strided convolutions as TensorFlow does.
      epsilon, momentum: of the normalisation.
      last_stride: stride of the sixth row, 1 or 2.
      dropout: block i of n drops its branch for a share dropout * i / n of the examples.
      rngs: for the kernels and the dropping.
      dtype: of the computation and of the stage maps.
      norm_group: examples a group of the normalisation.
    """
    norm_options = {"group": norm_group, "epsilon": epsilon, "momentum": momentum, "dtype": dtype}
    self.stem = layers.conv(3, stem_channels, 3, 2, tensorflow=tensorflow, rngs=rngs, dtype=dtype)
    self.stem_norm = GhostBatchNorm(stem_channels, **norm_options)
    self.rows = nnx.List()
    total = sum(depth for *_, depth in rows)
    index, in_channels = 0, stem_channels
    strides = (*ROW_STRIDES[:5], last_stride, *ROW_STRIDES[6:])
    for (ratio, kernel_size, channels, depth), row_stride in zip(rows, strides, strict=True):
      blocks = nnx.List()
      for i in range(depth):
        block = InvertedResidual(
          in_channels,
          channels,
          row_stride if i == 0 else 1,
          ratio=ratio,
          kernel_size=kernel_size,
          activation=activation,
          squeeze_excite=squeeze_excite,
          drop_rate=dropout * index / total,
          tensorflow=tensorflow,
          norm_options=norm_options,
          rngs=rngs,
          dtype=dtype,
        )
        blocks.append(block)
        index, in_channels = index + 1, channels
      self.rows.append(blocks)
    self.head = layers.conv(in_channels, head_channels, 1, rngs=rngs, dtype=dtype)
    self.head_norm = GhostBatchNorm(head_channels, **norm_options)
    self.activation = activation
    self.has_gates = squeeze_excite
    self.tensorflow = tensorflow
    self.stage_channels = (*(rows[end][2] for end in _STAGE_ENDS), head_channels)
    self.stage_strides = (4, 8, 16, 16 * last_stride)
    self.dtype = dtype

  def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
    """Computes the stage maps.

    Args:
      images: (B, H, W, 3), normalised, of any floating type.
      train: normalise by the batch, update the running statistics, drop branches.

    Returns:
      Four (B, h, w, c) maps in `dtype`, coarse last; h = ceil(H / stage stride), likewise w.
    """
    x = self.stem(images.astype(self.dtype))
    x = self.activation(self.stem_norm(x, train=train))
    maps = []
    for row, blocks in enumerate(self.rows):
      for block in blocks:
        x = block(x, train=train)
      if row in _STAGE_ENDS:
        maps.append(x)
    maps.append(self.activation(self.head_norm(self.head(x), train=train)))
    return tuple(maps)


def rounded_channels(channels: float) -> int:
  """The nearest multiple of 8 that is not below 90 % of `channels`, as both references round."""
  rounded = max(8, int(channels + 4) // 8 * 8)
  return rounded + 8 if rounded < 0.9 * channels else rounded
