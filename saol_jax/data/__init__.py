"""Data: sources with random access, the loader, and augmentation on the device."""

import dataclasses
from collections.abc import Callable

import numpy as np

from saol_jax.data.decode import Geometry
from saol_jax.data.encoded import BadImages, EncodedSource
from saol_jax.data.records import NoTestSplit, Records
from saol_jax.data.source import (
  IN_MEMORY,
  ArraySource,
  Batch,
  DatasetInfo,
  Source,
  train_or_validation,
)
from saol_jax.errors import UserError

__all__ = [
  "ArraySource",
  "BadImages",
  "Batch",
  "DatasetInfo",
  "EncodedSource",
  "Geometry",
  "NoTestSplit",
  "Reading",
  "Source",
  "is_registered",
  "list_datasets",
  "load_source",
  "open_records",
  "register",
]

_SPLITS = ("train", "validation", "test")
_REGISTERED: dict[str, Callable[[str], ArraySource]] = {}
# Of ImageNet's training images; what nearly all pretrained weights expect.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Reading:
  """How images are read that do not live in memory, and how the pixels of any are normalised.

  Attributes:
    geometry: of the images; None for a data set that lives in memory.
    bad_images: what happens with those that cannot be decoded.
    threads: images decoded at once; 0 for as many as there are cores.
    mean, std: three each, as a share of 255; () for the data set's own, or ImageNet's.
    train_split, test_split, image_field, label_field, box_field: of TFDS, see `TfdsRecords`.
  """

  geometry: Geometry | None = None
  bad_images: BadImages = dataclasses.field(default_factory=BadImages)
  threads: int = 0
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  train_split: str = "train"
  test_split: str = "auto"
  image_field: str = "image"
  label_field: str = "label"
  box_field: str = "auto"


def register(load: Callable[[str], ArraySource]) -> Callable[[str], ArraySource]:
  """Decorator: makes a data set in memory known, as a `data.name`, under the function's name.

  The function is called with "train" or "test" and returns an `ArraySource`, always the same one;
  where there are no test images it raises `NoTestSplit`. `data.validation` holds out a share of
  train.

  Raises:
    ValueError: there is another data set of that name, or the function has none.
  """
  name = getattr(load, "__name__", "")
  if not name.isidentifier():
    raise ValueError(f"{load} has no name to register it under; expected a function made by def")
  if name in list_datasets():
    raise ValueError(
      f"two data sets are called {name!r}; give the function another name, or restart the kernel "
      "where a cell of a notebook was run again (an imported module registers once)"
    )
  _REGISTERED[name] = load
  return load


def is_registered(name: str) -> bool:
  """Whether a data set was registered, by a recipe, which then has to be named again."""
  return name in _REGISTERED


def list_datasets() -> tuple[str, ...]:
  """The names that `load_source` knows, beside those of TFDS's own data sets."""
  return (*IN_MEMORY, "folder", *_REGISTERED)


def load_source(
  name: str,
  split: str,
  *,
  data_dir: str | None = None,
  validation: float = 0.0,
  reading: Reading | None = None,
) -> Source:
  """Opens one split of a data set.

  With `validation` > 0 that share of the training examples is held out: it is the validation split,
  and the rest is the train split. Which examples are held out is fixed (it does not depend on the
  run's seed), so numbers from different seeds are comparable, and nothing chosen on validation has
  been trained on. The share is equal in every class where the labels are known beforehand, which
  they are not for a TFDS data set of files. The test split is never touched by it.

  Args:
    name: one of `list_datasets()`, or a data set that TFDS has prepared, such as imagenet2012.
    split: "train", "validation" or "test".
    data_dir: the folder of images, or where TFDS data sets are prepared; None for TFDS's own
      default. `digit_scenes` needs none.
    validation: in [0, 1), the share of train held out.
    reading: how images are read; None for the data sets in memory.

  Returns:
    The split. The order of its examples is always the same.

  Raises:
    NoTestSplit: the data set has no test images.
    UserError: unknown name or split, `validation` out of range or zero where the validation split
      is asked for, an image size where none can be chosen or none where one is needed, or a data
      set that is not prepared.
  """
  reading = reading or Reading()
  if split not in _SPLITS:
    raise UserError(f"split {split!r} does not exist; expected one of {', '.join(_SPLITS)}")
  if not 0 <= validation < 1:
    raise UserError(
      f"data.validation={validation} is not a share of train; expected 0 <= data.validation < 1, "
      "such as --config.data.validation=0.1"
    )
  if split == "validation" and validation == 0:
    raise UserError(
      f"{name} has no validation split while data.validation=0; hold out a share of train with "
      "--config.data.validation=0.1"
    )
  if name in IN_MEMORY or name in _REGISTERED:
    if reading.geometry is not None:
      raise UserError(
        f"data.image_size={reading.geometry.size}: {name} has images of one size; leave it at 0"
      )
    source = _load_in_memory(name, split, data_dir, validation)
    info = source.info
    mean, std = reading.mean or info.mean, reading.std or info.std
    return dataclasses.replace(source, info=dataclasses.replace(info, mean=mean, std=std))
  return _open_encoded(name, split, data_dir, validation, reading)


def _load_in_memory(name: str, split: str, data_dir: str | None, validation: float) -> ArraySource:
  if name in _REGISTERED:
    source = _REGISTERED[name]("test" if split == "test" else "train")
    if not isinstance(source, ArraySource):
      raise UserError(
        f"data.name={name!r}: its function returned {type(source).__name__}; expected a "
        "saol_jax.data.ArraySource"
      )
    if split == "test" or not validation:
      return source
    return source.part(train_or_validation(source.labels, split, validation))
  # Imported when asked for: scikit-learn and TFDS are slow to import.
  if name == "digit_scenes":
    from saol_jax.data import digit_scenes

    return digit_scenes.load(split, validation=validation)
  from saol_jax.data import cifar

  return cifar.load(name, split, data_dir=data_dir, validation=validation)


def open_records(
  name: str, split: str, data_dir: str | None, reading: Reading | None = None
) -> Records:
  """The encoded images of a split, "train" or "test", of a folder or of a TFDS data set.

  Raises:
    UserError: see `load_source`.
  """
  if name == "folder":
    from saol_jax.data.folder import FolderRecords

    if not data_dir:
      raise UserError("data.name='folder' needs the folder: --config.data.data_dir=DIR")
    return FolderRecords(data_dir, split)
  if name == "digit_scenes" or name in _REGISTERED:
    raise UserError(f"{name} is made in memory: it has no encoded images")
  from saol_jax.data.tfds_records import TfdsRecords

  reading = reading or Reading()
  return TfdsRecords(
    name,
    split,
    data_dir=data_dir,
    train_split=reading.train_split,
    test_split=reading.test_split,
    image_field=reading.image_field,
    label_field=reading.label_field,
    box_field=reading.box_field,
  )


def _open_encoded(
  name: str, split: str, data_dir: str | None, validation: float, reading: Reading
) -> EncodedSource:
  stored = "test" if split == "test" else "train"
  records = open_records(name, stored, data_dir, reading)
  if reading.geometry is None:
    raise UserError(
      f"data.name={name!r} has images of many sizes: choose one with --config.data.image_size=224"
    )
  examples = None
  if validation and stored == "train":
    labels = np.zeros(len(records), np.int32) if records.labels is None else records.labels
    examples = np.flatnonzero(train_or_validation(labels, split, validation))
  info = DatasetInfo(records.class_names, reading.mean or _MEAN, reading.std or _STD)
  return EncodedSource(
    records,
    info,
    reading.geometry,
    reading.bad_images,
    examples=examples,
    threads=reading.threads,
  )
