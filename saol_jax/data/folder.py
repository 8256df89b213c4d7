"""A folder of images as a data set: `DIR/train/<class>/*` and `DIR/val/<class>/*`."""

import collections
import csv
import functools
import io
import logging
import os
import pathlib
import unicodedata
from collections.abc import Iterator
from typing import Any

import numpy as np

from saol_jax.console import counted
from saol_jax.data.records import NoTestSplit, Read
from saol_jax.errors import UserError
from saol_jax.image_files import EXTENSIONS, describe_kinds, orientation, printable

logger = logging.getLogger(__name__)

_FOLDERS = {"train": "train", "test": "val"}
# What these folders are called elsewhere.
_OTHER_NAMES = {
  "train": ("training",),
  "val": ("valid", "validation", "test", "testing", "dev", "eval"),
}
BOXES_FILE = "boxes.csv"
BOXES_HEADER = ["path", "x_min", "y_min", "x_max", "y_max"]


class FolderRecords:
  """The image files of one split, sorted by path; see `Records` for the attributes.

  The classes are the sorted names of the folders in `DIR/train` that hold an image, at any depth;
  hidden files and folders are left out, and, with a warning, files without one of
  `image_files.EXTENSIONS`. Names are sorted and compared in Unicode's form NFC: macOS may write
  letters in another form than a ZIP file has them. Images are turned upright as their EXIF data
  says: a photograph counts as it is seen.

  `DIR/boxes.csv`, where it exists, has the header `path,x_min,y_min,x_max,y_max`: paths relative to
  DIR, pixels of the upright image, max exclusive, one line an image.
  """

  upright = True

  def __init__(self, directory: str | os.PathLike, split: str):
    """Lists the files; opens none but boxes.csv.

    Args:
      directory: DIR.
      split: "train", or "test" for the images of `DIR/val`.

    Raises:
      NoTestSplit: there is no `val`, nor a folder that seems to be it.
      UserError: a folder is missing or has no image, `val` has a class that `train` lacks, or
        boxes.csv cannot be understood or names none of the images.
    """
    self._root = root = pathlib.Path(directory).expanduser()
    files = {name: _list_classes(root, name) for name in ("train", _FOLDERS[split])}
    self.class_names = tuple(sorted(files["train"], key=nfc))
    names = [nfc(name) for name in self.class_names]
    found = {nfc(name): paths for name, paths in files[_FOLDERS[split]].items()}
    unknown = sorted(set(found).difference(names))
    if unknown:
      raise UserError(
        f"{root / 'val'} has images of {len(unknown)} class(es) that {root / 'train'} lacks: "
        f"{_shorten(unknown)}. A network cannot know them: add training images, or move those "
        "folders away"
      )
    without = sorted(set(names).difference(found))
    if without:
      _warn_once(f"{root / _FOLDERS[split]} has no image of {_shorten(without)}")
    self._paths = [path for name in names for path in found.get(name, ())]
    counts = [len(found.get(name, ())) for name in names]
    self.labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    by_path = _read_boxes(root / BOXES_FILE)
    self.has_boxes = bool(by_path)
    unknown_box = (np.nan,) * 4
    boxes = [by_path.get(nfc(path), unknown_box) for path in self._paths]
    self.boxes = np.array(boxes, np.float32)
    if by_path:
      listed = (path for classes in files.values() for paths in classes.values() for path in paths)
      images = set(map(nfc, listed))
      _check_boxed_paths(root, list(by_path), images, _FOLDERS[split])

  def __len__(self) -> int:
    return len(self._paths)

  def read(self, indices: np.ndarray) -> Read:
    """The files at `indices` (n,)."""
    records, orientations, failures = [], np.ones(len(indices), np.int32), {}
    for place, index in enumerate(indices):
      try:
        record = (self._root / self._paths[index]).read_bytes()
      except OSError as error:
        record = b""
        failures[place] = error.strerror or str(error)
      else:
        orientations[place] = orientation(record)
      records.append(record)
    return Read(records, orientations, failures)

  @staticmethod
  def parse(record: Any) -> dict[str, Any]:
    """The record is the image."""
    return {"image": record}

  def key(self, index: int) -> str:
    """Its path below DIR."""
    return self._paths[index]

  def name(self, index: int) -> str:
    """Its path."""
    return str(self._root / self._paths[index])


def nfc(name: str) -> str:
  """The name in the Unicode form in which names are compared."""
  return unicodedata.normalize("NFC", name)


def _list_classes(root: pathlib.Path, split: str) -> dict[str, list[str]]:
  """Class name to the sorted paths of its images, relative to the root; empty classes left out."""
  folder = root / split
  start = len(str(folder)) - len(split)  # os.path.relpath takes ten seconds for a million files
  if not folder.is_dir():
    raise _missing(root, split)
  classes, empty, others = {}, [], collections.Counter()
  for entry in sorted(_scan(folder), key=lambda entry: entry.name):
    if entry.name.startswith(".") or not entry.is_dir():
      continue
    paths = sorted(_walk(entry.path, (), others))
    if paths:
      classes[entry.name] = [path[start:] for path in paths]
    else:
      empty.append(entry.name)
  spelled: dict[str, str] = {}
  for name in classes:
    if spelled.setdefault(nfc(name), name) != name:
      raise UserError(
        f"{folder} has two folders {name!r} whose names differ only in their Unicode form: "
        f"{spelled[nfc(name)]!a} and {name!a}; move the images of one into the other"
      )
  if others:
    _warn_once(
      f"{folder}: left out {counted(others.total(), 'file')} of other kinds: "
      f"{describe_kinds(others)}. Images among them have to be converted; these are read: "
      f"{', '.join(EXTENSIONS)}"
    )
  if empty:
    _warn_once(f"{folder}: no image in {_shorten(empty)}; left out")
  if not classes:
    raise UserError(
      f"{folder} holds no image; expected {folder}/<class>/* with one of {', '.join(EXTENSIONS)}"
    )
  return classes


def _missing(root: pathlib.Path, split: str) -> UserError:
  """What is raised where a split's folder is not there, by what is there instead."""
  message = f"data.data_dir={str(root)!r} has no folder {split!r}; "
  expected = "data.name='folder' expects DIR/train/<class>/* and DIR/val/<class>/*"
  if not root.is_dir():
    return UserError(f"data.data_dir={str(root)!r} is no folder; {expected}")
  above = root.resolve().parent
  if root.resolve().name in _FOLDERS.values() and (above / split).is_dir():
    return UserError(f"{message}{expected}: set it to {str(above)!r}, the folder above")
  folders = [entry.name for entry in _scan(root) if entry.is_dir() and entry.name[0] != "."]
  for name in _OTHER_NAMES[split]:
    if name in folders:
      return UserError(f"{message}{expected}: rename {name!r} to {split!r}")
  folders = sorted(set(folders).difference(*_OTHER_NAMES.values(), {"val"}))
  if split == "val" and "train" in folders:
    return NoTestSplit(
      f"{message}{expected}. Hold out a share of each class of train for evaluation with "
      "--config.data.validation=0.1, or move images there on which the model is tested"
    )
  if folders and "train" not in folders:
    return UserError(
      f"{message}{expected}. If {_shorten(folders)} are classes, move these folders to DIR/train, "
      "and hold out a share of their images for evaluation with --config.data.validation=0.1"
    )
  return UserError(message + expected)


@functools.cache
def _warn_once(message: str) -> None:
  """Says it once a process: a folder is listed for each of its splits."""
  logger.warning("%s", message)


def _walk(folder: str, above: tuple[str, ...], others: collections.Counter[str]) -> Iterator[str]:
  """Paths of the image files at any depth; a link back to a folder above is not followed.

  Files of other kinds are counted in `others`, by extension.
  """
  real = os.path.realpath(folder)
  if real in above:
    return
  for entry in _scan(folder):
    if entry.name.startswith("."):
      continue
    if entry.is_dir():
      yield from _walk(entry.path, (*above, real), others)
    elif entry.name.lower().endswith(EXTENSIONS):
      yield entry.path
    else:
      others[os.path.splitext(entry.name)[1].lower()] += 1


def _scan(folder: str | os.PathLike) -> list[os.DirEntry]:
  try:
    with os.scandir(folder) as entries:
      return list(entries)
  except OSError as error:
    raise UserError(
      f"{printable(folder)} cannot be listed: {error.strerror}; data.name='folder' reads all "
      "folders below DIR/train and DIR/val"
    ) from error


def _read_boxes(path: pathlib.Path) -> dict[str, tuple[float, float, float, float]]:
  """Path in NFC -> y_min, x_min, y_max, x_max; {} where there is no such file."""
  if not path.exists():
    return {}
  try:
    text = path.read_text(encoding="utf-8-sig")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(
      f"{path} cannot be read: {error}; expected a text file in UTF-8 with the header "
      f"{','.join(BOXES_HEADER)!r}"
    ) from error
  boxes: dict[str, tuple[float, float, float, float]] = {}
  first_line: dict[str, int] = {}
  rows = csv.reader(io.StringIO(text, newline=""))
  header = [name.strip() for name in next(rows, [])]
  if header != BOXES_HEADER:
    raise UserError(
      f"{path} has the header {','.join(header)!r}, expected {','.join(BOXES_HEADER)!r}"
    )
  for row in filter(None, rows):
    where = f"{path}, line {rows.line_num}"
    try:
      name, x_min, y_min, x_max, y_max = row[0], *map(float, row[1:])
      valid = x_min < x_max and y_min < y_max
    except (ValueError, TypeError):
      valid = False
    if not valid:
      raise UserError(
        f"{where}: {','.join(row)!r} is no box; expected a path and four numbers with "
        "x_min < x_max and y_min < y_max, in pixels"
      )
    name = nfc(os.path.normpath(name.strip()))
    box = (y_min, x_min, y_max, x_max)
    if boxes.setdefault(name, box) != box:
      raise UserError(
        f"{where}: another box of {printable(name)} stands on line {first_line[name]}; an image "
        "has one box here: keep that of its main object, or one around all"
      )
    first_line.setdefault(name, rows.line_num)
  if boxes and max(max(box) for box in boxes.values()) <= 1:
    raise UserError(
      f"{path}: no number in it is above 1, so that these seem to be shares of the image; expected "
      "pixels of the upright image: multiply x by its width and y by its height"
    )
  return boxes


def _check_boxed_paths(root: pathlib.Path, boxed: list[str], images: set[str], split: str) -> None:
  """Warns of paths in boxes.csv that are no image's; those outside `val` are train's to say.

  Args:
    root: DIR.
    boxed: the paths in boxes.csv, in NFC.
    images: paths of the images, in NFC, in `train`, and in `val` where that is the split.
    split: name of its folder.

  Raises:
    UserError: there is an image for none of them.
  """
  in_val = [path.split(os.sep)[0] == "val" for path in boxed]
  lost = [
    path
    for path, inside in zip(boxed, in_val, strict=True)
    if inside == (split == "val") and path not in images
  ]
  val_is_unlisted = split == "train" and any(in_val)
  if not val_is_unlisted and images.isdisjoint(boxed):
    raise UserError(
      f"{root / BOXES_FILE}: none of its {len(boxed)} path(s) is an image: the first is "
      f"'{printable(boxed[0])}', and there is '{printable(min(images))}'. Write paths relative to "
      f"{root}, with {os.sep!r} between folders"
    )
  if lost:
    _warn_once(f"{root / BOXES_FILE}: no image for {_shorten(lost)}")


def _shorten(names: list[str], limit: int = 5) -> str:
  shown = ", ".join(printable(name) for name in names[:limit])
  return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
