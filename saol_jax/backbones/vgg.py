"""VGG-16 for weakly supervised localisation: Simonyan & Zisserman 2015, Zhou et al. 2016."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from saol_jax.backbones import layers, pooling
from saol_jax.backbones.registry import register


class VGG(nnx.Module):
  """Stages of 3x3 convolutions with bias and ReLU; 2x2 maxima at stride 2 between them.

  Stage maps: the outputs of the stages, all after ReLU.

  Attributes:
    stage_channels: channels of each stage map.
    stage_strides: total stride of each stage map.
  """

  def __init__(
    self,
    widths: Sequence[Sequence[int]],
    *,
    last_stride: int = 2,
    rngs: nnx.Rngs,
    dtype: jnp.dtype = jnp.float32,
    norm_group: int | None = None,
  ):
    """Makes the network.

    Args:
      widths: channels of each convolution of each stage.
      last_stride: stride of the last stage; with 1, nothing is pooled before it.
      rngs: for the kernels.
      dtype: of the computation and of the stage maps.
      norm_group: nothing here is normalised; taken because every backbone takes it.
    """
    del norm_group
    self.stages = nnx.List()
    channels = 3
    for stage in widths:
      convs = nnx.List()
      for width in stage:
        convs.append(layers.conv(channels, width, 3, use_bias=True, rngs=rngs, dtype=dtype))
        channels = width
      self.stages.append(convs)
    self.last_stride = last_stride
    self.stage_channels = tuple(stage[-1] for stage in widths)
    strides = [2**i for i in range(len(widths))]
    self.stage_strides = (*strides[:-1], strides[-2] * last_stride)
    self.dtype = dtype

  def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
    """Computes the stage maps.

    Args:
      images: (B, H, W, 3), normalised, of any floating type.
      train: changes nothing: there is neither a norm nor dropout.

    Returns:
      One (B, h, w, c) map a stage in `dtype`, coarse last. Pooling rounds an odd side down.
    """
    del train
    x = images.astype(self.dtype)
    maps = []
    for i, convs in enumerate(self.stages):
      if i and (i < len(self.stages) - 1 or self.last_stride == 2):
        x = pooling.max_pool(x, size=2, stride=2, padding=((0, 0), (0, 0)))
      for conv in convs:
        x = layers.relu(conv(x))
      maps.append(x)
    return tuple(maps)


@register
def vgg16_gap(**options) -> VGG:
  """VGG-16 whose last pooling and dense layers gave way to a convolution with 1024 channels.

  The `VggCam` of clovaai/wsolevaluation: the convolutions of torchvision's VGG-16, whose weights
  fit, and `conv6`. 224 pixels give a 14x14 grid; `last_stride=1` is their `large_feature_map`,
  28x28. It has no norm, so that it is hard to train without pretrained weights.
  """
  widths = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512, 512, 512, 1024))
  return VGG(widths, **options)
