"""MobileNetV2: Sandler et al. 2018."""

from flax import nnx

from saol_jax.backbones.inverted_residual import InvertedResidualNetwork
from saol_jax.backbones.registry import register

# Table 2 of the paper: expansion ratio, kernel size, channels, blocks.
_ROWS = (
  (1, 3, 16, 1),
  (6, 3, 24, 2),
  (6, 3, 32, 3),
  (6, 3, 64, 4),
  (6, 3, 96, 3),
  (6, 3, 160, 3),
  (6, 3, 320, 1),
)


@register
def mobilenet_v2(**options) -> InvertedResidualNetwork:
  """MobileNetV2 as in torchvision, whose weights it takes; timm calls it `mobilenetv2_100`.

  The reference's dropout of 0.2 before the classifier is left out: our output layers have none.
  """
  return _mobilenet_v2(tensorflow=False, epsilon=1e-5, momentum=0.9, **options)


@register
def tf_mobilenet_v2(**options) -> InvertedResidualNetwork:
  """MobileNetV2 as in TensorFlow, for the weights of `google/mobilenet_v2_1.0_224`.

  Padding at the far side first, epsilon 1e-3 and momentum 0.997 in the normalisation.
  """
  return _mobilenet_v2(tensorflow=True, epsilon=1e-3, momentum=0.997, **options)


def _mobilenet_v2(**options) -> InvertedResidualNetwork:
  return InvertedResidualNetwork(
    32, _ROWS, 1280, activation=nnx.relu6, squeeze_excite=False, **options
  )
