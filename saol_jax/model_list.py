"""`--mode=list`: every backbone with its stages, and what it costs with either head."""

import dataclasses
import fnmatch
import logging

import jax
from flax import nnx

from saol_jax.arithmetic import Cost, cost, image
from saol_jax.backbones import create_backbone, list_backbones
from saol_jax.errors import UserError
from saol_jax.heads import SAOL, GapFC
from saol_jax.model import LIGHT_HEAD
from saol_jax.pretrained_names import namings_of

logger = logging.getLogger(__name__)

# Where the last stage divides the side by less than 16, a network is made for CIFAR's images.
_SMALL = (32, 100)
_LARGE = (224, 1000)


class _OneKey:
  """In place of `nnx.Rngs`, whose counting takes most of the time where no number is drawn."""

  def __init__(self):
    self._key = jax.random.key(0)

  def params(self) -> jax.Array:
    return self._key

  dropout = params


@dataclasses.dataclass(frozen=True)
class Entry:
  """A backbone in the list.

  Attributes:
    name: of the backbone.
    image_size: pixels a side, of the costs.
    num_classes: likewise.
    stages: stride and channels of each stage map, coarse last.
    libraries: whose names of pretrained tensors are known for it.
    gap: cost of the backbone with GAP-FC.
    saol: cost of the backbone with SAOL at its default sizes as it predicts: without the mask
      branch and without GAP-FC beside it.
    light: likewise, with the light SAOL.
  """

  name: str
  image_size: int
  num_classes: int
  stages: tuple[tuple[int, int], ...]
  libraries: tuple[str, ...]
  gap: Cost
  saol: Cost
  light: Cost


def describe(name: str) -> Entry:
  """Counts the cost of a backbone with either head; nothing is computed.

  Raises:
    UserError: unknown name.
  """
  backbone = nnx.eval_shape(lambda: create_backbone(name, rngs=_OneKey()))
  strides, channels = backbone.stage_strides, backbone.stage_channels
  size, classes = _SMALL if strides[-1] < 16 else _LARGE
  below, maps = cost(backbone, lambda module, x: module(x, train=False), image(size))
  gap = nnx.eval_shape(lambda: GapFC(channels[-1], classes, rngs=_OneKey()))

  def with_saol(**options) -> Cost:
    saol = nnx.eval_shape(
      lambda: SAOL(channels, classes, mask_branch=False, rngs=_OneKey(), **options)
    )
    return below + cost(saol, lambda module, maps: module(maps, train=False), maps)[0]

  return Entry(
    name=name,
    image_size=size,
    num_classes=classes,
    stages=tuple(zip(strides, channels, strict=True)),
    libraries=tuple(
      dict.fromkeys(
        naming.library for naming in namings_of(backbone) if not naming.objection(backbone)
      )
    ),
    gap=below + cost(gap, lambda module, maps: module(maps[-1]), maps)[0],
    saol=with_saol(),
    light=with_saol(**LIGHT_HEAD),
  )


def list_command(pattern: str) -> None:
  """Prints a line for each backbone, as soon as it is known.

  Args:
    pattern: of the names, with `*` and `?`.

  Raises:
    UserError: no name matches.
  """
  names = fnmatch.filter(list_backbones(), pattern)
  if not names:
    raise UserError(
      f"--backbones={pattern!r} matches none of {', '.join(list_backbones())}; `*` is any text"
    )
  columns = (
    f"{{:{max(8, *map(len, names))}}}  {{:>4}} {{:>5}} {{:>9}} {{:>8}} {{:>16}} {{:>15}}  {{}}"
  )
  logger.info(
    "Parameters in millions (M), multiply-adds in thousands of millions (G) for one image of that\n"
    "many pixels a side (px) and that many classes (K); SAOL at its default sizes, over GAP-FC\n"
  )
  heads = ("GAP-FC, M", "G", "SAOL, M", "G")
  logger.info("%s", columns.format("backbone", "px", "K", *heads, "stages: channels/stride"))
  for name in names:
    entry = describe(name)
    gap, saol = entry.gap, entry.saol
    line = columns.format(
      name,
      entry.image_size,
      entry.num_classes,
      f"{gap.parameters / 1e6:.3f}",
      f"{gap.multiply_adds / 1e9:.3f}",
      f"{saol.parameters / 1e6:.3f} {saol.parameters / gap.parameters - 1:+7.1%}",
      f"{saol.multiply_adds / 1e9:.3f} {saol.multiply_adds / gap.multiply_adds - 1:+7.1%}",
      " ".join(f"{channels}/{stride}" for stride, channels in entry.stages),
    )
    logger.info("%s", line)
