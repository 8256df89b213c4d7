"""A network of your own, and a recipe that trains it with all that main.py can do.

python main.py --config=examples/own_recipe.py --workdir=runs/own
"""

import jax
from flax import nnx

from configs.digits_saol import get_config as digits
from saol_jax.backbones import register
from saol_jax.norm import GhostBatchNorm


class Plain(nnx.Module):
  """Three convolutions, each with half of the resolution of the one before."""

  stage_channels, stage_strides = (16, 32, 64), (2, 4, 8)

  def __init__(self, *, rngs, dtype, norm_group):
    self.convs, self.norms = nnx.List(), nnx.List()
    for inputs, outputs in zip((3, 16, 32), self.stage_channels, strict=True):
      self.convs.append(
        nnx.Conv(inputs, outputs, (3, 3), strides=2, use_bias=False, dtype=dtype, rngs=rngs)
      )
      self.norms.append(GhostBatchNorm(outputs, group=norm_group, dtype=dtype))

  def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
    """(B, H, W, 3) to a map (B, h, w, c) of each stage, coarse last."""
    maps = [images]
    for conv, norm in zip(self.convs, self.norms, strict=True):
      maps.append(nnx.relu(norm(conv(maps[-1]), train=train)))
    return tuple(maps[1:])


@register
def plain(*, rngs, dtype, norm_group):
  """The function's name is the network's; float32 or bfloat16 is what it should compute in."""
  return Plain(rngs=rngs, dtype=dtype, norm_group=norm_group)


def get_config(arg: str = ""):
  """The demo's recipe with this network; any field of saol_jax/config.py may be set here."""
  config = digits(arg)
  config.model.name = "plain"
  return config
