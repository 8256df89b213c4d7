"""A small network for the demo and the tests: quick on a CPU, with a grid fine enough for boxes."""

from saol_jax.backbones.registry import register
from saol_jax.backbones.wide_resnet import PreActivationResNet


@register
def resnet8(*, dropout: float = 0.0, last_stride: int = 1, **options) -> PreActivationResNet:
  """Three pre-activation blocks with 32, 64 and 64 channels: 32x32 pixels give an 8x8 grid.

  The stem has stride 2, the stages 1, 2 and `last_stride`: few channels at high resolution use a
  CPU badly. Our own design, not one of the literature's ResNets with 8 layers.
  """
  return PreActivationResNet(
    32, (32, 64, 64), (1, 2, last_stride), stem_stride=2, dropout=dropout, **options
  )
