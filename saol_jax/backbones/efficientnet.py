"""EfficientNet: Tan & Le 2019, B0 to B4."""

import math

from flax import nnx

from saol_jax.backbones.inverted_residual import InvertedResidualNetwork, rounded_channels
from saol_jax.backbones.registry import register

# Table 1 of the paper, of B0: expansion ratio, kernel size, channels, blocks.
_ROWS = (
  (1, 3, 16, 1),
  (6, 3, 24, 2),
  (6, 5, 40, 2),
  (6, 3, 80, 3),
  (6, 5, 112, 3),
  (6, 5, 192, 4),
  (6, 3, 320, 1),
)


def _efficientnet(width: float, depth: float, *, tensorflow: bool = False, **options):
  """B0 with `width` times the channels and `depth` times the blocks.

  As in torchvision, whose weights it takes, and timm's `efficientnet_b0` to `b4`. With
  `tensorflow` as the authors' code, timm's `tf_efficientnet_b0` and the weights of
  `google/efficientnet-b0`: padding at the far side first, epsilon 1e-3 and momentum 0.99 in the
  normalisation. The output layers have no dropout before them, unlike the reference's classifier.
  The paper trains with `dropout` 0.2: stochastic depth that grows with the depth of the block.
  """
  rows = [
    (ratio, kernel_size, rounded_channels(width * channels), math.ceil(depth * blocks))
    for ratio, kernel_size, channels, blocks in _ROWS
  ]
  return InvertedResidualNetwork(
    rounded_channels(width * 32),
    rows,
    rounded_channels(width * 1280),
    activation=nnx.silu,
    squeeze_excite=True,
    tensorflow=tensorflow,
    epsilon=1e-3 if tensorflow else 1e-5,
    momentum=0.99 if tensorflow else 0.9,
    **options,
  )


@register
def efficientnet_b0(*, dropout: float = 0.0, **options) -> InvertedResidualNetwork:
  """EfficientNet-B0; the paper's images have 224 pixels a side."""
  return _efficientnet(1.0, 1.0, dropout=dropout, **options)


@register
def efficientnet_b1(*, dropout: float = 0.0, **options) -> InvertedResidualNetwork:
  """EfficientNet-B1; the paper's images have 240 pixels a side."""
  return _efficientnet(1.0, 1.1, dropout=dropout, **options)


@register
def efficientnet_b2(*, dropout: float = 0.0, **options) -> InvertedResidualNetwork:
  """EfficientNet-B2; the paper's images have 260 pixels a side."""
  return _efficientnet(1.1, 1.2, dropout=dropout, **options)


@register
def efficientnet_b3(*, dropout: float = 0.0, **options) -> InvertedResidualNetwork:
  """EfficientNet-B3; the paper's images have 300 pixels a side."""
  return _efficientnet(1.2, 1.4, dropout=dropout, **options)


@register
def efficientnet_b4(*, dropout: float = 0.0, **options) -> InvertedResidualNetwork:
  """EfficientNet-B4; the paper's images have 380 pixels a side."""
  return _efficientnet(1.4, 1.8, dropout=dropout, **options)


@register
def tf_efficientnet_b0(*, dropout: float = 0.0, **options) -> InvertedResidualNetwork:
  """EfficientNet-B0 as in TensorFlow; the paper's images have 224 pixels a side."""
  return _efficientnet(1.0, 1.0, tensorflow=True, dropout=dropout, **options)


@register
def tf_efficientnet_b1(*, dropout: float = 0.0, **options) -> InvertedResidualNetwork:
  """EfficientNet-B1 as in TensorFlow; the paper's images have 240 pixels a side."""
  return _efficientnet(1.0, 1.1, tensorflow=True, dropout=dropout, **options)


@register
def tf_efficientnet_b2(*, dropout: float = 0.0, **options) -> InvertedResidualNetwork:
  """EfficientNet-B2 as in TensorFlow; the paper's images have 260 pixels a side."""
  return _efficientnet(1.1, 1.2, tensorflow=True, dropout=dropout, **options)


@register
def tf_efficientnet_b3(*, dropout: float = 0.0, **options) -> InvertedResidualNetwork:
  """EfficientNet-B3 as in TensorFlow; the paper's images have 300 pixels a side."""
  return _efficientnet(1.2, 1.4, tensorflow=True, dropout=dropout, **options)


@register
def tf_efficientnet_b4(*, dropout: float = 0.0, **options) -> InvertedResidualNetwork:
  """EfficientNet-B4 as in TensorFlow; the paper's images have 380 pixels a side."""
  return _efficientnet(1.4, 1.8, tensorflow=True, dropout=dropout, **options)
