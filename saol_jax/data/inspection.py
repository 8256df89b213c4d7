"""What is in a split: every image is read once, decoded, and counted."""

import collections
import io
import pathlib
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from saol_jax.data.decode import Decoder, Geometry
from saol_jax.data.encoded import EncodedSource
from saol_jax.data.loader import prefetch
from saol_jax.data.records import parse_row
from saol_jax.data.source import Source
from saol_jax.image_files import EXTENSIONS, KINDS, read_image

_BATCH = 256


class _Tally:
  """Counts of one split."""

  def __init__(self, class_names: tuple[str, ...]):
    self._class_names = class_names
    self._labels = np.zeros(len(class_names), int)
    self._sizes: list[np.ndarray] = []
    self._levels = np.zeros((3, 256), int)  # how often each channel has each value
    self.kinds, self.modes = collections.Counter(), collections.Counter()
    self.broken: dict[str, str] = {}
    self.mislabelled: dict[str, str] = {}
    self.beyond: list[str] = []
    self.boxes = 0

  def add(self, labels: np.ndarray, sizes: np.ndarray, images: np.ndarray) -> None:
    """Counts images (n, S, S, 3), their labels (n,) and the sizes (n, 2) of the originals."""
    self._labels += np.bincount(labels, minlength=len(self._class_names))
    self._sizes.append(sizes)
    for levels, channel in zip(self._levels, np.moveaxis(images, -1, 0), strict=True):
      levels += np.bincount(channel.ravel(), minlength=256)

  def report(self, count: int) -> dict[str, Any]:
    """All of it, for JSON."""
    sizes = np.concatenate(self._sizes) if self._sizes else np.zeros((0, 2), int)
    shares, values = self._levels / max(self._levels[0].sum(), 1), np.arange(256) / 255
    mean = shares @ values
    std = np.sqrt(np.maximum(shares @ values**2 - mean**2, 0))
    return {
      "images": count,
      "per_class": dict(zip(self._class_names, self._labels.tolist(), strict=True)),
      "height": _spread(sizes[:, 0].tolist()),
      "width": _spread(sizes[:, 1].tolist()),
      "kinds": dict(self.kinds.most_common()),
      "modes": dict(self.modes.most_common()),
      "boxes": self.boxes,
      "boxes_beyond_the_border": self.beyond,
      "mean": mean.round(4).tolist(),
      "std": std.round(4).tolist(),
      "broken": self.broken,
      "mislabelled": self.mislabelled,
    }


def inspect_split(source: Source, advance: Callable[[int], None]) -> dict[str, Any]:
  """Reads all images of a split.

  Args:
    source: of them; those that are decoded as they are read may be broken.
    advance: called with a number of images each time that so many have been read.

  Returns:
    For JSON:

      images                   their number
      per_class                how many of them can be decoded, by class
      height, width            of upright originals: least, median, most
      kinds, modes             JPEG, PNG, ... and RGB, L, CMYK, ... by number; of encoded images
      mislabelled              name to kind, of files whose extension belongs to another kind
      broken                   name to reason
      boxes                    how many are known
      boxes_beyond_the_border  names
      mean, std                of the channels, as shares of 255, over the decodable images, each
                               resized whole to the size that the network gets: all count the same

  Raises:
    UserError: a label is no class.
  """
  tally = _Tally(source.info.class_names)
  if isinstance(source, EncodedSource):
    steps = _encoded(source, tally)
  else:
    steps = _in_memory(source, tally)
  for count in steps:
    advance(count)
  return tally.report(len(source))


def _in_memory(source: Source, tally: _Tally) -> Iterator[int]:
  tally.boxes = len(source.boxed)
  for start in range(0, len(source), _BATCH):
    batch = source[np.arange(start, min(start + _BATCH, len(source)))]
    count = len(batch["label"])
    tally.add(batch["label"], np.tile(source.image_shape[:2], (count, 1)), batch["image"])
    yield count


def _encoded(source: EncodedSource, tally: _Tally) -> Iterator[int]:
  records, rows = source.records, source.examples
  decoder = Decoder(
    Geometry(source.geometry.size, eval_crop=0), records.parse, train=False, threads=0
  )

  def look(start: int):
    indices = rows[start : start + _BATCH]
    read = records.read(indices)
    decoded = decoder(
      read.records,
      read.orientations,
      read_odd=lambda encoded: np.asarray(read_image(encoded, upright=records.upright)),
    )
    broken = {**decoded.broken, **read.failures}
    whole = [place for place in range(len(indices)) if place not in broken]
    looks = [_kind_and_mode(parse_row(records.parse, read.records[i])["image"]) for i in whole]
    labels = decoded.labels if records.labels is None else records.labels[indices]
    source.check_labels(start + np.arange(len(indices)), labels, broken)
    return indices, labels, decoded, broken, whole, looks

  for indices, labels, decoded, broken, whole, looks in prefetch(look, range(0, len(rows), _BATCH)):
    boxes = decoded.boxes * np.tile(decoded.sizes, 2)
    boxes = boxes if records.boxes is None else records.boxes[indices]
    tally.add(labels[whole], decoded.sizes[whole], decoded.images[whole])
    tally.boxes += int((~np.isnan(boxes[whole, 0])).sum())
    tally.broken |= {records.key(indices[place]): why for place, why in sorted(broken.items())}
    beyond = (boxes < -0.5).any(1) | (boxes > np.tile(decoded.sizes, 2) + 0.5).any(1)
    tally.beyond += [records.key(indices[place]) for place in whole if beyond[place]]
    for place, (kind, mode) in zip(whole, looks, strict=True):
      tally.kinds[kind] += 1
      tally.modes[mode] += 1
      name = records.key(indices[place])
      extension = pathlib.PurePath(name).suffix.lower()
      if extension in EXTENSIONS and extension not in KINDS.get(kind, ()):
        tally.mislabelled[name] = kind
    yield len(indices)


def _kind_and_mode(encoded: bytes) -> tuple[str, str]:
  """As Pillow calls them; unknown for the few that TensorFlow alone can read."""
  try:
    with Image.open(io.BytesIO(encoded)) as image:
      return image.format, image.mode
  except Exception:  # any exception of a decoder
    return "unknown", "unknown"


def _spread(values: list[int]) -> dict[str, float]:
  values = values or [0]  # not one could be decoded
  return {"least": min(values), "median": statistics.median(values), "most": max(values)}
