"""Weights of other libraries: which tensor of a file belongs where in a model of ours."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from flax import nnx

from saol_jax.backbones.deformable import DeformableConv
from saol_jax.errors import UserError
from saol_jax.model import Classifier
from saol_jax.norm import GhostBatchNorm
from saol_jax.pretrained_names import NAMINGS, Naming, namings_of

Path = tuple[str | int, ...]

_NAMED = 10  # names of a list that a message shows


def _same(array: np.ndarray) -> np.ndarray:
  return array


def _conv_kernel(array: np.ndarray) -> np.ndarray:
  """(out, in / groups, height, width) to (height, width, in / groups, out); grouped or not."""
  return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array  # which then does not fit


_SCALE = (("weight", "scale", _same), ("bias", "bias", _same))
# Of each kind of layer: PyTorch's name, ours, and how its array becomes ours. PyTorch's running
# variance is the unbiased one and Flax's the biased one: it is taken as it is, since that is what
# the weights were evaluated with, and training moves it on.
_TENSORS = {
  nnx.Conv: (("weight", "kernel", _conv_kernel), ("bias", "bias", _same)),
  nnx.Linear: (("weight", "kernel", np.transpose), ("bias", "bias", _same)),
  nnx.LayerNorm: _SCALE,
  DeformableConv: (("weight", "kernel", _conv_kernel),),  # its offsets are a layer by themselves
  GhostBatchNorm: (*_SCALE, ("running_mean", "mean", _same), ("running_var", "var", _same)),
}


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """What weights give to a model.

  Attributes:
    source: where it came from.
    library: whose names its tensors have.
    prefix: what stands before them.
    values: float32 arrays by their path in the model, in the model's shapes.
    used: names of the tensors that are in `values`.
    classifier: what became of the last linear layer, a sentence.
    missing: paths of the parameters and statistics of the model that stay as they start.
    left_over: names of the tensors that nobody wanted.
    mean, std: of the channels of the images that they have seen, where that is known.
  """

  source: str
  library: str
  prefix: str
  values: dict[Path, np.ndarray]
  used: tuple[str, ...]
  classifier: str
  missing: tuple[str, ...]
  left_over: tuple[str, ...]
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()

  def __str__(self) -> str:
    prefix = f" after {self.prefix!r}" if self.prefix else ""
    return (
      f"Pretrained weights: {len(self.used)} tensors of {self.source}, named as in "
      f"{self.library}{prefix}; {self.classifier}\n"
      f"  missing there, as they start: {listed(self.missing, len(self.missing))}\n"
      f"  left over there: {listed(self.left_over, _NAMED)}"
    )


def match(model: Classifier, tensors: Mapping[str, np.ndarray], source: str) -> Pretrained:
  """Finds the tensors that belong into a model, and arranges them as the model has them.

  Args:
    model: perhaps without values (`nnx.eval_shape`).
    tensors: by the names of a library that is known for the backbone's family, see
      `pretrained_names`; all names may begin with the same prefix.
    source: for messages.

  Raises:
    UserError: the family has no known names, the tensors have other ones, the backbone has
      parameters that are not among them, a shape differs, or a number is not finite.
  """
  naming, prefix = _detect(model.backbone, tensors, source)
  if objection := naming.objection(model.backbone):
    raise UserError(f"model.pretrained={source!r} {objection}")
  slots = list(_slots(model.backbone, ("backbone",), naming.pairs(model.backbone)))
  values, used = _fill(model, slots, prefix, tensors, source)
  classifier, of_gap, names = _classifier(model, naming, prefix, tensors)
  values |= of_gap
  used |= dict.fromkeys(names if of_gap else ())
  variables = nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
  return Pretrained(
    source=source,
    library=naming.library,
    prefix=prefix,
    values=values,
    used=tuple(used),
    classifier=classifier,
    missing=tuple(joined(path) for path, _ in variables if path not in values),
    left_over=tuple(
      name
      for name in tensors
      if name not in used and name not in names and not name.endswith("num_batches_tracked")
    ),
  )


class _Slot(NamedTuple):
  """A parameter or statistic of ours, and the tensors that it comes from."""

  names: tuple[str, ...]
  path: Path
  arrange: Callable[[np.ndarray], np.ndarray]

  def found(self, prefix: str, tensors: Mapping[str, np.ndarray]) -> bool:
    return all(prefix + name in tensors for name in self.names)

  def value(self, prefix: str, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    parts = [tensors[prefix + name] for name in self.names]
    return self.arrange(parts[0] if len(parts) == 1 else np.concatenate(parts))


def _slots(root: nnx.Module, start: Path, pairs: Iterator) -> Iterator[_Slot]:
  """The tensors behind a naming's pairs; `start` leads to `root` in the whole model."""
  for theirs, ours, *arrange in pairs:
    names = (theirs,) if isinstance(theirs, str) else theirs
    path = tuple(int(part) if part.isdecimal() else part for part in ours.split("/"))
    target = walk(root, path)
    if isinstance(target, nnx.Variable):
      yield _Slot(names, (*start, *path), *(arrange or (_same,)))
      continue
    kind = next(kind for kind in _TENSORS if isinstance(target, kind))
    for suffix, attribute, arrange_it in _TENSORS[kind]:
      if getattr(target, attribute) is not None:
        suffixed = tuple(f"{name}.{suffix}" for name in names)
        yield _Slot(suffixed, (*start, *path, attribute), arrange_it)


def _detect(
  backbone: nnx.Module, tensors: Mapping[str, np.ndarray], source: str
) -> tuple[Naming, str]:
  """The naming, and what stands before its names, with which most tensors are found."""
  namings = namings_of(backbone)
  if not namings:
    known = ", ".join(kind.__name__ for kind in NAMINGS)
    raise UserError(
      f"model.pretrained={source!r}: no library's names are known for {type(backbone).__name__}, "
      f"only for {known}; choose a backbone of these, or train from random weights"
    )
  best, most = None, 0
  for naming in namings:
    slots = list(_slots(backbone, (), naming.pairs(backbone)))
    first = slots[0].names[0]
    for name in tensors:
      if name == first or name.endswith(f".{first}"):
        prefix = name.removesuffix(first)
        count = sum(slot.found(prefix, tensors) for slot in slots)
        # With as many hits, as in a file that also holds a moving average, the shorter prefix.
        if count > most or (count == most and best and len(prefix) < len(best[1])):
          best, most = (naming, prefix), count
  if best is None:
    expected = ", ".join(
      f"{next(_slots(backbone, (), naming.pairs(backbone))).names[0]!r} ({naming.library})"
      for naming in namings
    )
    raise UserError(
      f"model.pretrained={source!r} is not of a {type(backbone).__name__}: its tensors are named "
      f"{listed(tuple(tensors), 3)}, and expected was {expected}. Set model.name to the network "
      "that the weights are of"
    )
  return best


def _fill(
  model: Classifier,
  slots: list[_Slot],
  prefix: str,
  tensors: Mapping[str, np.ndarray],
  source: str,
) -> tuple[dict[Path, np.ndarray], dict[str, None]]:
  """Values of the backbone, all of them, and the names that they came from."""
  remedy = "Set model.name to the network that the weights are of"
  absent = [prefix + slot.names[0] for slot in slots if not slot.found(prefix, tensors)]
  if absent:
    raise UserError(
      f"model.pretrained={source!r} lacks {len(absent)} of the backbone's {len(slots)} tensors: "
      f"{listed(absent, 3)}. {remedy}"
    )
  values, wrong = {}, []
  for slot in slots:
    value, shape = slot.value(prefix, tensors), walk(model, slot.path).shape
    if value.shape == shape:
      values[slot.path] = _float32(value, slot.names[0], source)
    else:
      stored = " + ".join(str(tensors[prefix + name].shape) for name in slot.names)
      wrong.append(
        f"{prefix}{slot.names[0]} {stored} becomes {value.shape}, {joined(slot.path)} is {shape}"
      )
  if wrong:
    raise UserError(
      f"model.pretrained={source!r} has {len(wrong)} tensors of other shapes than model.name has: "
      f"{'; '.join(wrong[:3])}. {remedy}"
    )
  return values, {prefix + name: None for slot in slots for name in slot.names}


def _classifier(
  model: Classifier, naming: Naming, prefix: str, tensors: Mapping[str, np.ndarray]
) -> tuple[str, dict[Path, np.ndarray], tuple[str, ...]]:
  """What becomes of their last layer: a sentence, values for GAP-FC, and its tensors' names.

  Their classifier may stand beside the backbone (`module.fc` and `module.resnet.conv1`): the prefix
  is shortened until it is found.
  """
  if naming.classifier is None:
    return "GAP-FC is random: it has no counterpart there", {}, ()
  slots = list(_slots(model.gap, ("gap",), iter([(naming.classifier, "linear")])))
  parts = prefix.split(".")[:-1]
  for kept in range(len(parts), -1, -1):
    start = "".join(f"{part}." for part in parts[:kept])
    if not all(slot.found(start, tensors) for slot in slots):
      continue
    names = tuple(start + name for slot in slots for name in slot.names)
    values = {slot.path: slot.value(start, tensors) for slot in slots}
    shapes = {path: walk(model, path).shape for path in values}
    if all(value.shape == shapes[path] for path, value in values.items()):
      values = {path: _float32(value, names[0], naming.library) for path, value in values.items()}
      return f"GAP-FC is its {naming.classifier}, for as many classes", values, names
    theirs, ours = tensors[names[0]].shape, tuple(reversed(shapes[slots[0].path]))
    return f"GAP-FC is random: {names[0]} is {theirs}, and it needs {ours}", {}, names
  return f"GAP-FC is random: the file has no {naming.classifier}", {}, ()


def _float32(value: np.ndarray, name: str, source: str) -> np.ndarray:
  value = np.ascontiguousarray(value, np.float32)
  if not np.isfinite(value).all():
    raise UserError(f"model.pretrained={source!r}: {name} has numbers that are not finite")
  return value


def walk(module: nnx.Module, path: Path) -> nnx.Module | nnx.Variable:
  """What a path leads to."""
  return functools.reduce(
    lambda node, part: node[part] if isinstance(part, int) else getattr(node, part), path, module
  )


def joined(path: Path) -> str:
  """A path as one name."""
  return ".".join(map(str, path))


def listed(names: Sequence[str], most: int) -> str:
  """The first names, and how many more there are."""
  more = f" and {len(names) - most} more" if len(names) > most else ""
  return (", ".join(names[:most]) or "none") + more
