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
_FACTS = "labels.json"
_SPLITS = ("train", "test")


def main() -> None:
  """Packs or unpacks."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("action", choices=["pack", "unpack"])
  parser.add_argument("source", type=pathlib.Path)
  parser.add_argument("target", type=pathlib.Path)
  parser.add_argument("--name", choices=list(LAYOUTS), default="cifar100", help="to pack")
  options = parser.parse_args()
  if options.action == "pack":
    paths = pack(options.name, options.source, options.target)
  else:
    paths = unpack(options.source, options.target)
  for path in paths:
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
  sources = {split: load_source(name, split, data_dir=str(data_dir)) for split in _SPLITS}
  facts = {"name": name, "class_names": sources["train"].info.class_names}
  facts["labels"] = {split: source.labels.tolist() for split, source in sources.items()}
  paths = [folder / _FACTS]
  paths[0].write_text(json.dumps(facts))
  for split, source in sources.items():
    for start in range(0, len(source), _COLUMNS * _ROWS):
      paths.append(folder / f"{split}_{start}.webp")
      part = mosaic(source.images[start : start + _COLUMNS * _ROWS])
      Image.fromarray(part).save(paths[-1], lossless=True, method=4, quality=60)
  return paths


def unpack(folder: pathlib.Path, data_dir: pathlib.Path) -> list[pathlib.Path]:
  """Writes the published files of what is there.

  Args:
    folder: with parts from `pack`, for each split the first ones.
    data_dir: to write to.

  Returns:
    The files.

  Raises:
    UserError: the labels or the first part of a split are missing, or a part before another one, or
      one cannot be read.
  """
  if not (folder / _FACTS).exists():
    raise UserError(f"{folder} has no {_FACTS}; carry that file along with the parts")
  facts = json.loads((folder / _FACTS).read_text())
  target = data_dir / LAYOUTS[facts["name"]].folder
  for split, labels in facts["labels"].items():
    images, paths = [], sorted(folder.glob(f"{split}_*.webp"), key=_start)
    for path in paths or [folder / f"{split}_0.webp"]:
      if _start(path) != len(images):
        raise UserError(f"{folder} lacks {split}_{len(images)}.webp, and has {path.name}")
      images += [*_images_in(path)][: len(labels) - len(images)]
    found = np.array(labels[: len(images)], np.int32)
    write(facts["name"], split, Arrays(np.array(images), found, facts["class_names"]), target)
  return sorted(target.iterdir())


def mosaic(images: np.ndarray) -> np.ndarray:
  """(N, h, w, 3) images as one picture, row by row; black where a row is not full."""
  number, height, width, _ = images.shape
  rows = -(-number // _COLUMNS)
  full = np.zeros((rows * _COLUMNS, height, width, 3), np.uint8)
  full[:number] = images
  grid = full.reshape(rows, _COLUMNS, height, width, 3).transpose(0, 2, 1, 3, 4)
  return grid.reshape(rows * height, _COLUMNS * width, 3)


def _images_in(path: pathlib.Path) -> np.ndarray:
  """The images of a part, (N, side, side, 3), black ones at its end included."""
  try:
    with Image.open(path) as picture:
      pixels = np.asarray(picture.convert("RGB"))
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error}); carry it again") from error
  side = pixels.shape[1] // _COLUMNS
  grid = pixels.reshape(-1, side, _COLUMNS, side, 3).transpose(0, 2, 1, 3, 4)
  return grid.reshape(-1, side, side, 3)


def _start(path: pathlib.Path) -> int:
  return int(path.stem.partition("_")[2])


if __name__ == "__main__":
  record.run(main)
