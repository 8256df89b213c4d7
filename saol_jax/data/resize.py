"""A copy of a data set with smaller images, so that slow hosts keep up with fast accelerators.

  python -m saol_jax.data.resize --name=folder --data_dir=DIR --output=OUT --short_side=256
  python main.py ... --config.data.name=folder_256 --config.data.data_dir=OUT

The shorter side becomes `--short_side` pixels (Pillow's bicubic filter, antialiased), saved as
JPEG; what is smaller already, or cannot be decoded, is copied as it is. The copy is a TFDS data set
in ArrayRecord with the same splits, order, labels, boxes and file names, so that it trains like the
original, but for the resampling. A run that is stopped goes on with the shard that it was at; a
copy of images that have changed since is refused.
"""

import argparse
import hashlib
import io
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from saol_jax import command_line
from saol_jax.data import NoTestSplit, Reading, open_records
from saol_jax.data.prepared import open_prepared
from saol_jax.data.records import Records, parse_row
from saol_jax.durable import write_text
from saol_jax.errors import UserError
from saol_jax.image_files import orientation, printable, read_image
from saol_jax.progress import Progress

logger = logging.getLogger("saol_jax.data.resize")  # also where this is the main module

_VERSION = "1.0.0"
_PER_SHARD = 4096  # images
_NAMES = ("train_split", "test_split", "image_field", "label_field", "box_field")  # of `Reading`


def resize(
  name: str,
  data_dir: str | None,
  output: str,
  *,
  short_side: int,
  quality: int = 90,
  reading: Reading | None = None,
) -> str:
  """Writes the copy, or what is missing of it.

  Args:
    name: "folder", or of a data set that TFDS has prepared.
    data_dir: the folder of images, or where TFDS prepared it; None for TFDS's default.
    output: folder for the copy, a data_dir of TFDS.
    short_side: pixels of the shorter side of an image, in the copy.
    quality: of JPEG, 1 to 95.
    reading: what the splits and the features of a TFDS data set are called.

  Returns:
    The name of the copy, for `--config.data.name`.

  Raises:
    UserError: a number is out of range, the data set is not there or lives in memory, or `output`
      holds a copy of other images, of what these were before, or with other numbers, or cannot be
      written.
  """
  if short_side < 1 or not 1 <= quality <= 95:
    raise UserError(
      f"--short_side={short_side} --quality={quality}; expected at least 1 pixel, and a quality "
      "from 1 to 95"
    )
  copy = f"{name.partition(':')[0].replace('/', '_')}_{short_side}"
  folder = pathlib.Path(output).expanduser() / copy / _VERSION
  reading = reading or Reading()
  records = {"train": open_records(name, "train", data_dir, reading)}
  for class_name in records["train"].class_names:
    try:
      class_name.encode()
    except UnicodeEncodeError as error:
      raise UserError(
        f"the class {printable(class_name)} has a name that is no UTF-8; rename its folder"
      ) from error
  try:
    records["test"] = open_records(name, "test", data_dir, reading)
  except NoTestSplit:
    logger.info("There are no test images: the copy has the split train alone")
  plan = {
    "source": name,
    "short_side": short_side,
    "quality": quality,
    "class_names": list(records["train"].class_names),
    "sizes": {split: len(each) for split, each in records.items()},
    "digest": _digest(name, data_dir, records),
    **{field: getattr(reading, field) for field in _NAMES if _renamed(reading, field)},
  }
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f"--output={output} cannot be written: {error.strerror}; name a folder that you may write to"
    ) from error
  _check_plan(folder / "plan.json", plan)
  features = _features(plan["class_names"], records["train"].has_boxes)
  splits = []
  for split, each in records.items():
    shards = _Shards(folder, copy, split, len(each))
    shards.write(each, features, short_side, quality)
    splits.append(shards.info())
  features.save_config(str(folder))
  info = {"name": copy, "version": _VERSION, "fileFormat": "array_record", "splits": splits}
  (folder / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n")
  logger.info("Written to %s", folder)
  logger.info("Train with --config.data.name=%s --config.data.data_dir=%s", copy, output)
  return copy


def _renamed(reading: Reading, field: str) -> bool:
  return getattr(reading, field) != getattr(Reading, field)


class _Shards:
  """The files of one split."""

  def __init__(self, folder: pathlib.Path, name: str, split: str, size: int):
    self._split, self._size = split, size
    count = max(-(-size // _PER_SHARD), 1)
    self._starts = np.linspace(0, size, count + 1).astype(int)
    self._paths = [
      folder / f"{name}-{split}.array_record-{i:05d}-of-{count:05d}" for i in range(count)
    ]

  def write(self, records: Records, features: Any, short_side: int, quality: int) -> None:
    """Writes those that are not there yet."""
    from tensorflow_datasets.core import file_adapters

    progress = Progress(self._split, self._size)
    with ThreadPoolExecutor() as threads:
      for path, start, stop in zip(self._paths, self._starts, self._starts[1:], strict=False):
        if path.exists():
          progress.skip(stop - start)
          continue
        partial = path.with_name("partial")
        partial.unlink(missing_ok=True)
        examples = _examples(records, np.arange(start, stop), short_side, quality, threads)
        serialised = _counted(map(features.serialize_example, examples), progress)
        try:
          file_adapters.ArrayRecordFileAdapter.write_examples(str(partial), enumerate(serialised))
          partial.replace(path)
        except (OSError, RuntimeError) as error:  # ArrayRecord's writer raises the latter
          raise UserError(
            f"cannot write {path}: {error}. Make room or choose another --output; finished files "
            "are kept, and the same command goes on with the next"
          ) from error

  def info(self) -> dict:
    """As dataset_info.json describes a split."""
    return {
      "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
      "name": self._split,
      "shardLengths": [str(n) for n in np.diff(self._starts)],
      "numBytes": str(sum(path.stat().st_size for path in self._paths)),
    }


def _counted(items: Iterator[bytes], progress: Progress) -> Iterator[bytes]:
  for item in items:
    yield item
    progress.add(1)


def _examples(
  records: Records, indices: np.ndarray, short_side: int, quality: int, threads: ThreadPoolExecutor
) -> Iterator[dict[str, Any]]:
  """Resized examples, in order."""

  def make(index: int, record: bytes, reason: str | None) -> dict[str, Any]:
    row = parse_row(records.parse, record) if reason is None else {"image": b"", "label": -1}
    size, encoded = _smaller(row["image"], short_side, quality, upright=records.upright)
    if size is None:
      logger.warning("Broken image, copied as it is: %s", records.name(index))
    label = row.get("label") if records.labels is None else records.labels[index]
    example = {"image": encoded, "label": int(label), "file_name": os.fsencode(records.key(index))}
    if records.has_boxes:
      box = np.full(4, np.nan) if size is None else row.get("box")
      if records.boxes is not None and size is not None:
        box = records.boxes[index] / np.tile(size, 2)
      known = not np.isnan(box).any()
      example["boxes"] = np.clip(box[None], 0, 1).astype(np.float32)[: int(known)]
    return example

  for start in range(0, len(indices), 64):
    chunk = indices[start : start + 64]
    read = records.read(chunk)
    reasons = [read.failures.get(place) for place in range(len(chunk))]
    yield from threads.map(make, chunk.tolist(), read.records, reasons)


def _smaller(
  encoded: bytes, short_side: int, quality: int, *, upright: bool
) -> tuple[tuple[int, int] | None, bytes]:
  """Height and width of an upright original, and the bytes of its copy; None where broken."""
  from PIL import Image

  try:
    image = read_image(encoded, upright=upright)
  except UserError:
    return None, encoded
  size, scale = (image.height, image.width), short_side / min(image.size)
  if scale >= 1 and not (upright and orientation(encoded) > 1):
    return size, encoded
  if scale < 1:
    new = tuple(max(round(side * scale), 1) for side in image.size)
    image = image.resize(new, Image.Resampling.BICUBIC, reducing_gap=3.0)
  stream = io.BytesIO()
  image.save(stream, "JPEG", quality=quality)
  return size, stream.getvalue()


def _features(class_names: list[str], has_boxes: bool) -> Any:
  from tensorflow_datasets import features

  fields = {
    "image": features.Image(shape=(None, None, 3)),
    "label": features.ClassLabel(names=class_names),
    "file_name": features.Text(),
  }
  if has_boxes:
    fields["boxes"] = features.Sequence(features.BBoxFeature())
  return features.FeaturesDict(fields)


def _digest(name: str, data_dir: str | None, records: Mapping[str, Records]) -> str:
  """Of the files that the copy is made from, and what is known of them; reads none of them.

  Times count in whole seconds, which every way of moving files that keeps times keeps.
  """
  digest = hashlib.sha256()
  if name == "folder":
    for each in records.values():
      digest.update(each.labels.tobytes() + each.boxes.tobytes())
      for index in range(len(each)):
        try:
          stat = os.stat(each.name(index))
          state = f"{stat.st_size} {int(stat.st_mtime)}"
        except OSError:  # copied as a broken image
          state = "unreadable"
        digest.update(os.fsencode(each.key(index)) + f"\0{state}\n".encode())
  else:
    folder = open_prepared(name, data_dir).data_path
    for path in sorted(folder.glob("*.array_record*")):
      stat = path.stat()
      digest.update(f"{path.name}\0{stat.length} {int(stat.mtime)}\n".encode())
  return digest.hexdigest()


def _check_plan(path: pathlib.Path, plan: dict) -> None:
  """Raises UserError where another copy was begun in the folder."""
  if path.exists():
    before = json.loads(path.read_text())
    mend = "choose another --output, or delete that folder"
    if "digest" not in before:
      raise UserError(
        f"{path.parent} holds a copy by an earlier version, which did not note the state of the "
        f"images, so that it may be outdated; {mend}"
      )
    changed = [key for key in plan | before if before.get(key) != plan.get(key)]
    if changed == ["digest"]:
      raise UserError(
        f"{path.parent} holds an outdated copy: files of {plan['source']!r}, or their labels or "
        f"boxes, are others than when it was begun; {mend}"
      )
    if changed:
      changed = [key for key in changed if key != "digest"]
      raise UserError(f"{path.parent} holds a copy with another {' and '.join(changed)}; {mend}")
  write_text(path, json.dumps(plan) + "\n")


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m saol_jax.data.resize", description=__doc__.partition("\n")[0]
  )
  parser.add_argument("--name", required=True, help="folder, or a data set that TFDS has prepared")
  parser.add_argument("--data_dir", help="the folder of images, or where TFDS prepared it")
  parser.add_argument("--output", required=True, help="folder for the copy")
  parser.add_argument("--short_side", type=int, default=256, help="pixels (default: 256)")
  parser.add_argument("--quality", type=int, default=90, help="of JPEG (default: 90)")
  for name in _NAMES:
    default = getattr(Reading, name)
    parser.add_argument(f"--{name}", default=default, help=f"as --config.data.{name}")
  options = parser.parse_args()
  command_line.run(
    lambda: resize(
      options.name,
      options.data_dir,
      options.output,
      short_side=options.short_side,
      quality=options.quality,
      reading=Reading(**{name: getattr(options, name) for name in _NAMES}),
    )
  )


if __name__ == "__main__":
  main()
