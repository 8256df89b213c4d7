"""CIFAR in fewer bytes and in parts, for a machine that it must be carried to.

  python benchmarks/carry.py pack DATA_DIR FOLDER      # here: CIFAR-100 in six parts
  python benchmarks/carry.py unpack FOLDER DATA_DIR    # there; then cifar.py --data_dir=DATA_DIR

A part is a WebP mosaic of images, without loss, and smaller than they are in the authors' archive.
FOLDER may get its parts one after the other: what is there is unpacked. With the first part of each
split alone, the programs for all of the data can be compiled already, by a run with the same number
of steps. Unpacked are the files that the authors publish, which need no TFDS.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import record
from saol_jax.data import load_source
from saol_jax.data.cifar_files import LAYOUTS, Arrays, write
from saol_jax.errors import UserError

_COLUMNS = 100  # images in a row of a mosaic
_ROWS = 100
_LABELS = "labels.json"


def main() -> None:
  """Packs or unpacks."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("action", choices=["pack", "unpack"])
  parser.add_argument("source", type=pathlib.Path)
  parser.add_argument("target", type=pathlib.Path)
  parser.add_argument("--name", choices=list(LAYOUTS), default="cifar100")
  options = parser.parse_args()
  action = pack if options.action == "pack" else unpack
  for path in action(options.name, options.source, options.target):
    print(f"{path}: {path.stat().st_size:,} bytes", flush=True)


def pack(name: str, data_dir: pathlib.Path, folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes the labels of all images, and the parts.

  Args:
    name: a key of LAYOUTS.
    data_dir: see `data.cifar.load`.
    folder: to write to.

  Returns:
    The files.
  """
  folder.mkdir(parents=True, exist_ok=True)
  labels, paths = {}, [folder / _LABELS]
  for split in LAYOUTS[name].splits:
    source = load_source(name, split, data_dir=str(data_dir))
    labels[split] = source.labels.tolist()
    labels["class_names"] = list(source.info.class_names)
    for start in range(0, len(source), _COLUMNS * _ROWS):
      paths.append(folder / f"{split}_{start}.webp")
      part = mosaic(source.images[start : start + _COLUMNS * _ROWS])
      Image.fromarray(part).save(paths[-1], lossless=True, method=4, quality=60)
  paths[0].write_text(json.dumps(labels))
  return paths


def unpack(name: str, folder: pathlib.Path, data_dir: pathlib.Path) -> list[pathlib.Path]:
  """Writes the published files of what is there.

  Args:
    name: as it was packed.
    folder: with parts from `pack`, for each split the first ones.
    data_dir: to write to.

  Returns:
    The files.

  Raises:
    UserError: there are no labels, or parts are missing before others.
  """
  if not (folder / _LABELS).exists():
    raise UserError(f"{folder} has no {_LABELS}; carry that file along with the parts")
  labels = json.loads((folder / _LABELS).read_text())
  target = data_dir / LAYOUTS[name].folder
  for split in LAYOUTS[name].splits:
    images = [np.empty((0, 32, 32, 3), np.uint8)]
    for path in sorted(folder.glob(f"{split}_*.webp"), key=_start):
      if _start(path) != sum(map(len, images)):
        raise UserError(f"{folder} lacks {split}_{sum(map(len, images))}.webp, and has {path.name}")
      left = len(labels[split]) - _start(path)
      with Image.open(path) as picture:
        images.append(images_of(np.asarray(picture.convert("RGB")))[:left])
    found = np.concatenate(images)
    arrays = Arrays(found, np.array(labels[split][: len(found)], np.int32), labels["class_names"])
    write(name, split, arrays, target)
  return sorted(target.iterdir())


def mosaic(images: np.ndarray) -> np.ndarray:
  """(N, h, w, 3) images as one picture, row by row; black where a row is not full."""
  number, height, width, _ = images.shape
  rows = -(-number // _COLUMNS)
  full = np.zeros((rows * _COLUMNS, height, width, 3), np.uint8)
  full[:number] = images
  grid = full.reshape(rows, _COLUMNS, height, width, 3).transpose(0, 2, 1, 3, 4)
  return grid.reshape(rows * height, _COLUMNS * width, 3)


def images_of(picture: np.ndarray) -> np.ndarray:
  """The images of a mosaic, (N, side, side, 3), black ones at its end included."""
  side = picture.shape[1] // _COLUMNS
  grid = picture.reshape(-1, side, _COLUMNS, side, 3).transpose(0, 2, 1, 3, 4)
  return grid.reshape(-1, side, side, 3)


def _start(path: pathlib.Path) -> int:
  return int(path.stem.partition("_")[2])


if __name__ == "__main__":
  record.run(main)
