"""What every data set looks like to the rest of the code: random access to one split."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from saol_jax.errors import UserError

IN_MEMORY = ("cifar10", "cifar100", "digit_scenes")  # data sets that are read whole

# Not the run's seed: every run of a study must hold out the same examples.
_HOLD_OUT_SEED = 20200619


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
  """What is true of a whole data set.

  Attributes:
    class_names: K names, by label.
    mean: three channel means of the training images, as a share of 255.
    std: three channel standard deviations, likewise.

  Arrays and lists become tuples of Python's own numbers and strings.

  Raises:
    UserError: mean or std are not three shares of 255.
  """

  class_names: tuple[str, ...]
  mean: tuple[float, float, float]
  std: tuple[float, float, float]

  def __post_init__(self):
    object.__setattr__(self, "class_names", tuple(map(str, self.class_names)))
    for name, least in (("mean", "0"), ("std", "above 0")):
      values = tuple(np.ravel(np.asarray(getattr(self, name), float)).tolist())
      if len(values) != 3 or not all(0 <= x <= 1 and (x or name == "mean") for x in values):
        raise UserError(
          f"{name}={values} of the channels; expected three numbers, {least} to 1: shares of 255"
        )
      object.__setattr__(self, name, values)


Batch = Mapping[str, np.ndarray]


class Source(Protocol):
  """Random access to the examples of one split.

  A batch maps names to arrays of n examples:

    image     (n, H, W, 3) uint8
    label     (n,) int32, in [0, K)
    box       (n, 4) int32, y_min, x_min, y_max, x_max in pixels of `image`, max exclusive; zeros
              where unknown; absent where no example has one
    object_mask  (n, H, W) uint8, 1 object, 0 background, 255 neither; absent where no example has
              one
    replaced  (n,) float32, 1 where another example stands in for a broken one; only from `sample`,
              and only of a source that decodes images as it reads them
    broken    (n,) bool, where `image` means nothing; only from `source[indices]`, likewise

  Attributes:
    info: of the data set.
    image_shape: (H, W, 3).
    boxed: (m,) int64, the examples whose box is known, rising; where only reading them tells, all.
  """

  info: DatasetInfo

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """H, W, 3."""

  @property
  def boxed(self) -> np.ndarray:
    """The examples whose box is known."""

  def __len__(self) -> int:
    """Number of examples."""

  def __getitem__(self, indices: np.ndarray) -> Batch:
    """The examples at `indices` (n,) as evaluation sees them: always the same."""

  def sample(self, indices: np.ndarray, seed: int, place: int) -> Batch:
    """The examples at `indices` (n,) as training sees them.

    What is random on the host, the crop, is a function of `seed` and of the example's place in the
    endless row of all epochs: `place` for the first, and one more for each that follows.
    """


@dataclasses.dataclass(frozen=True)
class ArraySource:
  """A split that lives in memory, see `Source`.

  Attributes:
    images: (N, H, W, 3) uint8.
    labels: (N,) int32, in [0, K).
    info: the data set's.
    boxes: (N, 4) int32, y_min, x_min, y_max, x_max in pixels, max exclusive; None where unknown.
    object_masks: (N, H, W) uint8, 1 object, 0 background, 255 neither; None where unknown.

  Raises:
    UserError: an array has another shape or dtype, or a label or a box is out of range.
  """

  images: np.ndarray
  labels: np.ndarray
  info: DatasetInfo
  boxes: np.ndarray | None = None
  object_masks: np.ndarray | None = None

  def __post_init__(self):
    n = len(self.images)
    _check_array("images", self.images, "(N, H, W, 3)", np.uint8)
    if self.images.ndim != 4 or self.images.shape[3] != 3:
      raise UserError(f"images have shape {self.images.shape}, expected (N, H, W, 3)")
    _check_array("labels", self.labels, (n,), np.int32)
    _check_labels(self.labels, len(self.info.class_names))
    if self.boxes is not None:
      _check_array("boxes", self.boxes, (n, 4), np.int32)
      _check_boxes(self.boxes, *self.images.shape[1:3])
    if self.object_masks is not None:
      _check_array("object_masks", self.object_masks, self.images.shape[:3], np.uint8)
      _check_masks(self.object_masks)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """H, W, 3."""
    return self.images.shape[1:]

  @property
  def boxed(self) -> np.ndarray:
    """The examples whose box is known: all or none."""
    return np.arange(0 if self.boxes is None else len(self))

  def __len__(self) -> int:
    return len(self.images)

  def __getitem__(self, indices: np.ndarray) -> Batch:
    """The examples at `indices` (n,)."""
    batch = {"image": self.images[indices], "label": self.labels[indices]}
    if self.boxes is not None:
      batch["box"] = self.boxes[indices]
    if self.object_masks is not None:
      batch["object_mask"] = self.object_masks[indices]
    return batch

  def sample(self, indices: np.ndarray, seed: int, place: int) -> Batch:
    """The same: nothing is random on the host."""
    del seed, place
    return self[indices]

  def part(self, keep: np.ndarray) -> "ArraySource":
    """The examples for which `keep` (N,) is True."""
    arrays = ("images", "labels", "boxes", "object_masks")
    values = {name: getattr(self, name) for name in arrays}
    kept = {name: value[keep] for name, value in values.items() if value is not None}
    return dataclasses.replace(self, **kept)


def held_out(labels: np.ndarray, share: float) -> np.ndarray:
  """Picks the examples that validation takes from a training split.

  The same share of every class (rounded), by a permutation of fixed seed: the choice depends on
  `labels` and `share` alone, never on the run's seed, and a larger share contains a smaller one.

  Args:
    labels: (N,) integers.
    share: in [0, 1).

  Returns:
    (N,) bool, True where held out.
  """
  rng = np.random.default_rng(_HOLD_OUT_SEED)
  mask = np.zeros(len(labels), bool)
  for label in np.unique(labels):
    members = rng.permutation(np.flatnonzero(labels == label))
    mask[members[: round(share * len(members))]] = True
  return mask


def train_or_validation(labels: np.ndarray, split: str, validation: float) -> np.ndarray:
  """Tells which training examples belong to a split once `validation` of them is held out.

  Args:
    labels: (N,) integers, of all training examples.
    split: "train" or "validation".
    validation: the share of train held out.

  Returns:
    (N,) bool.

  Raises:
    UserError: `validation` is positive and leaves one of the two splits empty.
  """
  mask = held_out(labels, validation)
  if validation > 0 and (not mask.any() or mask.all()):
    raise UserError(
      f"data.validation={validation} of {len(labels)} training examples holds out {mask.sum()} of "
      "them; choose a share that leaves both train and validation something, such as "
      "--config.data.validation=0.1"
    )
  return mask if split == "validation" else ~mask


def _check_array(name: str, array: np.ndarray, shape: tuple[int, ...] | str, dtype: type):
  if array.dtype != dtype:
    raise UserError(f"{name} have dtype {array.dtype}, expected {np.dtype(dtype)}")
  if not isinstance(shape, str) and array.shape != shape:
    raise UserError(f"{name} have shape {array.shape}, expected {shape}, one for each image")


def _check_labels(labels: np.ndarray, num_classes: int):
  bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
  if bad.size:
    raise UserError(
      f"example {bad[0]} has the label {labels[bad[0]]}, but there are {num_classes} classes: "
      f"labels must lie in 0..{num_classes - 1}. {bad.size} of {labels.size} examples are outside."
    )


def _check_masks(masks: np.ndarray):
  odd = masks[(masks > 1) & (masks < 255)]
  if odd.size:
    raise UserError(
      f"object_masks hold the value {odd[0]}; expected 0 background, 1 object, 255 neither"
    )


def _check_boxes(boxes: np.ndarray, height: int, width: int):
  y_min, x_min, y_max, x_max = boxes.T
  inside = (y_min >= 0) & (x_min >= 0) & (y_max <= height) & (x_max <= width)
  bad = np.flatnonzero(~(inside & (y_min < y_max) & (x_min < x_max)))
  if bad.size:
    raise UserError(
      f"example {bad[0]} has the box {boxes[bad[0]].tolist()}, expected y_min < y_max <= {height} "
      f"and x_min < x_max <= {width}, in pixels. {bad.size} of {len(boxes)} boxes are wrong."
    )
