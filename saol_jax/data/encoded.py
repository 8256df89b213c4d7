"""A split whose images are decoded when they are read."""

import dataclasses
import logging
import threading
from collections.abc import Container

import numpy as np

from saol_jax.data.decode import Decoded, Decoder, Geometry, crop_draws
from saol_jax.data.records import Records
from saol_jax.data.source import Batch, DatasetInfo
from saol_jax.errors import UserError
from saol_jax.image_files import printable, read_image

logger = logging.getLogger(__name__)

_NAMED = 20  # broken images that an error names


@dataclasses.dataclass(frozen=True)
class BadImages:
  """What happens with images that cannot be decoded.

  In training another image stands in for each, always the same one. In evaluation nothing is passed
  over in silence.

  Attributes:
    max_fraction: share of the training images that may be broken; a run that finds more ends with
      a list.
    in_evaluation: "fail" ends the run at the first; "count" leaves them out of the scores and says
      how many.
  """

  max_fraction: float = 0.001
  in_evaluation: str = "fail"


class EncodedSource:
  """A split of encoded images, see `Source`.

  Attributes:
    info: of the data set.
    geometry: how originals become images of S x S.
    records: the encoded images.
    examples: (N,) the records that the split consists of.
    broken: index -> reason, of the broken images that were met so far.
  """

  def __init__(
    self,
    records: Records,
    info: DatasetInfo,
    geometry: Geometry,
    bad_images: BadImages,
    *,
    examples: np.ndarray | None = None,
    threads: int = 0,
  ):
    """Makes a source; reads nothing.

    Args:
      records: the encoded images.
      info: of the data set.
      geometry: of the images.
      bad_images: what happens with those that cannot be decoded.
      examples: (N,) the records that the split consists of; None for all.
      threads: images decoded at once; 0 for as many as there are cores.
    """
    self.info, self.geometry = info, geometry
    self.broken: dict[int, str] = {}
    self.records, self._bad_images = records, bad_images
    self.examples = np.arange(len(records)) if examples is None else examples
    self._decoders = {
      train: Decoder(geometry, records.parse, train=train, threads=threads)
      for train in (True, False)
    }
    self._lock = threading.Lock()
    self._warned_of_boxes = False

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """S, S, 3."""
    return self.geometry.size, self.geometry.size, 3

  @property
  def boxed(self) -> np.ndarray:
    """The examples whose box is known; where only the records know, all that may have one."""
    if not self.records.has_boxes:
      return np.arange(0)
    if self.records.boxes is None:
      return np.arange(len(self))
    return np.flatnonzero(~np.isnan(self.records.boxes[self.examples, 0]))

  def __len__(self) -> int:
    return len(self.examples)

  def name(self, index: int) -> str:
    """What a person finds example `index` by."""
    return self.records.name(int(self.examples[index]))

  def __getitem__(self, indices: np.ndarray) -> Batch:
    """The examples at `indices` (n,), in evaluation's geometry.

    Raises:
      UserError: an image is broken, and `BadImages` does not allow it.
    """
    decoded, labels, boxes = self._read(indices, draws=None)
    if decoded.broken and self._bad_images.in_evaluation == "fail":
      raise UserError(
        f"{self._list({int(indices[place]): why for place, why in decoded.broken.items()})}\n"
        "A score without them would not be comparable. Mend or remove them, or leave them out of "
        "the score, counted, with --config.data.bad_in_evaluation=count"
      )
    broken = np.zeros(len(indices), bool)
    broken[list(decoded.broken)] = True
    return self._batch(decoded.images, labels, boxes) | {"broken": broken}

  def sample(self, indices: np.ndarray, seed: int, place: int) -> Batch:
    """The examples at `indices` (n,), cropped at random by (seed, place).

    For a broken image the one at the next index stands in, with its own label, or the one after
    that: whichever can be decoded first.

    Raises:
      UserError: more images are broken than `BadImages` allows.
    """
    draws = crop_draws(seed, place, len(indices))
    decoded, labels, boxes = self._read(indices, draws)
    images, replaced = decoded.images, np.zeros(len(indices), np.float32)
    wanted, places = indices.copy(), np.array(sorted(decoded.broken), int)
    replaced[places] = 1
    while places.size:
      wanted[places] = (wanted[places] + 1) % len(self)
      again, labels[places], boxes[places] = self._read(wanted[places], draws[places])
      images[places] = again.images
      places = places[sorted(again.broken)]
    return self._batch(images, labels, boxes) | {"replaced": replaced}

  def _read(
    self, indices: np.ndarray, draws: np.ndarray | None
  ) -> tuple[Decoded, np.ndarray, np.ndarray]:
    """Decodes examples; notes the broken ones.

    Returns:
      What was decoded, the labels (n,) int32, and the boxes (n, 4) int32 in the images.
    """
    rows = self.examples[indices]
    read = self.records.read(rows)
    decoded = self._decoders[draws is not None](
      read.records,
      read.orientations,
      draws,
      lambda encoded: np.asarray(read_image(encoded, upright=self.records.upright)),
    )
    labels = decoded.labels if self.records.labels is None else self.records.labels[rows]
    if self.records.boxes is None:
      boxes = decoded.boxes * np.tile(decoded.sizes, 2)
    else:
      boxes = self.records.boxes[rows]
    self._note_boxes(indices, boxes, decoded.sizes)
    self.check_labels(indices, labels, decoded.broken)
    self._note_broken(indices, {**decoded.broken, **read.failures}, train=draws is not None)
    return decoded, labels, boxes_in_window(boxes, decoded.windows, self.geometry.size)

  def _batch(self, images: np.ndarray, labels: np.ndarray, boxes: np.ndarray) -> dict:
    batch = {"image": images, "label": labels}
    return batch | {"box": boxes} if self.records.has_boxes else batch

  def check_labels(self, indices: np.ndarray, labels: np.ndarray, broken: Container[int]) -> None:
    """Raises UserError at a label that is no class: -1 is what a test split without labels has."""
    for place in np.flatnonzero((labels < 0) | (labels >= len(self.info.class_names))).tolist():
      if place not in broken:
        raise UserError(
          f"{printable(self.name(int(indices[place])))} has the label {labels[place]}, expected 0 "
          f"to {len(self.info.class_names) - 1}; choose splits that have labels with "
          "--config.data.train_split and --config.data.test_split"
        )

  def _note_broken(self, indices: np.ndarray, broken: dict[int, str], *, train: bool) -> None:
    """Names new broken images in the log; in training, ends the run when they are too many."""
    with self._lock:
      for place, reason in sorted(broken.items()):
        index = int(indices[place])
        if index not in self.broken:
          self.broken[index] = reason
          logger.warning("Broken image: %s: %s", printable(self.name(index)), printable(reason))
      count, most = len(self.broken), self._bad_images.max_fraction
    if train and broken and (count > most * len(self) or count == len(self)):
      raise UserError(
        f"{self._list(self.broken)}\nMore than data.max_bad_fraction={most} of {len(self)} images "
        "are broken. Mend or remove them (--mode=inspect lists all), or allow more, such as "
        f"--config.data.max_bad_fraction={min(2 * count / len(self), 1):.2g}"
      )

  def _list(self, broken: dict[int, str]) -> str:
    lines = [f"{len(broken)} image(s) cannot be decoded:"]
    for index in sorted(broken)[:_NAMED]:
      lines.append(f"  {printable(self.name(index))}: {printable(broken[index])}")
    if len(broken) > _NAMED:
      lines.append(f"  and {len(broken) - _NAMED} more")
    return "\n".join(lines)

  def _note_boxes(self, indices: np.ndarray, boxes: np.ndarray, sizes: np.ndarray) -> None:
    """Warns, once, of a box that reaches beyond its image."""
    outside = (boxes < -0.5).any(1) | (boxes > np.tile(sizes, 2) + 0.5).any(1)
    outside &= sizes[:, 0] > 0
    if outside.any() and not self._warned_of_boxes:
      self._warned_of_boxes = True
      place = np.flatnonzero(outside)[0]
      logger.warning(
        "%s has %d x %d pixels, but its box (y_min, x_min, y_max, x_max) is %s: boxes are cut off "
        "at the border; this is said once",
        printable(self.name(int(indices[place]))),
        *sizes[place],
        boxes[place].tolist(),
      )


def boxes_in_window(boxes: np.ndarray, windows: np.ndarray, size: int) -> np.ndarray:
  """Boxes of originals as boxes of the images that were cut out of them and resized.

  Args:
    boxes: (n, 4) y_min, x_min, y_max, x_max in pixels of the originals; NaN where unknown.
    windows: (n, 4) y, x, height and width of the window.
    size: S, pixels a side of the images.

  Returns:
    (n, 4) int32 in pixels of the images, rounded, cut off at the border, and at least one pixel
    wide and high: of a box that lies outside, the nearest pixel is left. Zeros where unknown.
  """
  start, side = np.tile(windows[:, :2], 2), np.tile(windows[:, 2:], 2)
  moved = np.round((boxes - start) * size / np.maximum(side, 1))
  low = np.clip(moved[:, :2], 0, size - 1)
  high = np.clip(moved[:, 2:], low + 1, size)
  return np.nan_to_num(np.concatenate([low, high], 1)).astype(np.int32)
