"""Where encoded images come from, as `encoded.EncodedSource` needs it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from saol_jax.errors import UserError

# From a record, a TensorFlow string, to `image` (its encoded bytes), and where the record has them
# `label` (int64 scalar) and `box` ((4,) float32: y_min, x_min, y_max, x_max, shares of the image).
Parse = Callable[[Any], dict[str, Any]]


class NoTestSplit(UserError):
  """A data set has no test images; a share of train may be held out in their place."""


@dataclasses.dataclass(frozen=True)
class Read:
  """n records as they are stored.

  Attributes:
    records: n; b"" where one could not be read.
    orientations: (n,) int32, EXIF's 1 to 8: how each image is to be turned.
    failures: place -> reason, of those that could not be read.
  """

  records: list[bytes]
  orientations: np.ndarray
  failures: Mapping[int, str]


class Records(Protocol):
  """Random access to encoded images.

  Attributes:
    class_names: K names, by label.
    labels: (N,) int32; None where they are known only once a record is decoded.
    boxes: (N, 4) float32, y_min, x_min, y_max, x_max in pixels of the upright original, max
      exclusive, NaN where unknown; None where they are known only once a record is decoded.
    has_boxes: some example may have one.
    upright: images are turned as their EXIF data says.
  """

  class_names: tuple[str, ...]
  labels: np.ndarray | None
  boxes: np.ndarray | None
  has_boxes: bool
  upright: bool

  def __len__(self) -> int:
    """Number of examples."""

  def read(self, indices: np.ndarray) -> Read:
    """The records at `indices` (n,); may be called from several threads."""

  def parse(self, record: Any) -> dict[str, Any]:
    """What a record holds, see `Parse`."""

  def key(self, index: int) -> str:
    """A short name of an example, which no other has."""

  def name(self, index: int) -> str:
    """What a person finds an example by, wherever the data set lies."""


def parse_row(parse: Parse, record: bytes) -> dict[str, Any]:
  """One record as bytes and NumPy arrays: `image`, and perhaps `label` and `box`."""
  row = parse(record)
  return {name: getattr(value, "numpy", lambda value=value: value)() for name, value in row.items()}
