"""ResNeXts: Xie et al. 2017, "Aggregated residual transformations for deep neural networks"."""

from saol_jax.backbones.cifar_resnet import CifarResNet
from saol_jax.backbones.registry import register
from saol_jax.backbones.resnet import ResNet, bottleneck_plan


@register
def resnext50_32x4d(**options) -> ResNet:
  """ResNeXt-50 32x4d, torchvision's: a ResNet-50 with 3x3 convolutions in 32 groups."""
  return ResNet((3, 4, 6, 3), bottleneck=True, groups=32, inner_ratio=2, **options)


@register
def resnext101_32x4d(**options) -> ResNet:
  """ResNeXt-101 32x4d: timm's, which is torchvision's code with other numbers."""
  return ResNet((3, 4, 23, 3), bottleneck=True, groups=32, inner_ratio=2, **options)


@register
def resnext29_8x64d(*, last_stride: int = 2, **options) -> CifarResNet:
  """ResNeXt-29 8x64d for 32x32 images: section 5.3 of Xie et al., shortcut option B.

  Every stage has three bottlenecks, 512, 1024 and 2048 channels wide inside, in 8 groups.
  """
  plans = [bottleneck_plan(256 * 2**i, 512 * 2**i, groups=8) for i in range(3)]
  return CifarResNet(64, plans, (1, 2, last_stride), depth=3, **options)
