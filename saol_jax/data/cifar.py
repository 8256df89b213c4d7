"""CIFAR-10 and CIFAR-100 as TFDS prepares them, read into memory without TensorFlow.

Krizhevsky 2009, "Learning multiple layers of features from tiny images". The order of the examples
is TFDS's, which is not that of the official files.

`python -m saol_jax.data.cifar DIRECTORY` gives a data set prepared as TFRecord its random access.
"""

import importlib
import io
import json
import os
import pathlib
import shlex
import sys

import numpy as np
from PIL import Image

from saol_jax.data.source import ArraySource, DatasetInfo, train_or_validation
from saol_jax.errors import UserError

# Mean and std of each channel over all pixels of the 50,000 training images, as a share of 255.
# CIFAR-100's are recomputed by a test; CIFAR-10's are those widely quoted under this definition
# (the std .2023 .1994 .2010 in many codes is another quantity: the mean of each image's own std).
_STATISTICS = {
  "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
  "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
}
_BATCH = 1_000  # records read at once


def load(
  name: str, split: str, *, data_dir: str | None = None, validation: float = 0.0
) -> ArraySource:
  """Reads one split.

  Args:
    name: "cifar10" or "cifar100" (the 100 fine labels).
    split: "train", "validation" or "test".
    data_dir: the TFDS folder that holds `name`; None for TFDS's default, $TFDS_DATA_DIR or
      ~/tensorflow_datasets.
    validation: in [0, 1), the share of train held out, equal in every class.

  Returns:
    Images of 32 x 32.

  Raises:
    UserError: TFDS is not installed, the data set is not prepared under `data_dir`, or prepared
      incompletely or in a format without random access, or `validation` leaves a split empty.
  """
  tfds = _import_tfds()
  root = os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)
  stored = "test" if split == "test" else "train"
  builder = _open_prepared(tfds, name, stored, root, is_default=data_dir is None)
  records = builder.as_data_source(
    stored, decoders={"image": tfds.decode.SkipDecoding()}, file_format="array_record"
  )
  images = np.empty((len(records), *builder.info.features["image"].shape), np.uint8)
  labels = np.empty(len(records), np.int32)
  for start in range(0, len(records), _BATCH):
    batch = records.__getitems__(list(range(start, min(start + _BATCH, len(records)))))
    for i, record in enumerate(batch, start):
      images[i] = Image.open(io.BytesIO(record["image"]))
      labels[i] = record["label"]

  mean, std = _STATISTICS[name]
  info = DatasetInfo(tuple(builder.info.features["label"].names), mean, std)
  source = ArraySource(images, labels, info)
  if stored == "test" or not validation:
    return source
  keep = train_or_validation(labels, split, validation)
  return ArraySource(images[keep], labels[keep], info)


def add_array_record(directory: str):
  """Writes ArrayRecord shards beside the TFRecord ones of a prepared TFDS data set.

  Does what `tfds convert_format --out_file_format=array_record` does within one folder, record by
  record in the same order. That command needs apache-beam, whose dependencies exclude those that
  we pin. TensorFlow reads the TFRecord files.

  Args:
    directory: the folder of one version, which holds dataset_info.json.

  Raises:
    UserError: `directory` holds no data set, or is not TFRecord, or cannot be written.
  """
  tfds = _import_tfds()
  from tensorflow_datasets.core import file_adapters

  if not (pathlib.Path(directory) / "dataset_info.json").exists():
    raise UserError(
      f"{directory!r} is not a prepared TFDS data set: it holds no dataset_info.json. Give the "
      "folder of one version, such as /data/tfds/cifar100/3.0.2"
    )
  info = tfds.builder_from_directory(directory).info
  array_record = file_adapters.FileFormat.ARRAY_RECORD
  if array_record in info.available_file_formats():
    return
  if info.file_format is not file_adapters.FileFormat.TFRECORD:
    raise UserError(f"{directory!r} is stored as {info.file_format.value}, expected tfrecord")
  try:
    for split in info.splits.values():
      template = split.filename_template.replace(filetype_suffix=array_record.file_suffix)
      targets = template.sharded_filepaths(num_shards=len(split.shard_lengths))
      for source, target in zip(split.filepaths, targets, strict=True):
        examples = file_adapters.TfRecordFileAdapter.make_tf_data(source)
        file_adapters.ArrayRecordFileAdapter.write_examples(
          target, enumerate(examples.as_numpy_iterator())
        )
    info.add_alternative_file_format(array_record)
    info.write_dataset_info_json(directory)
  except (OSError, RuntimeError) as error:  # ArrayRecord's writer raises the latter
    raise UserError(
      f"cannot write the ArrayRecord shards into {directory!r}: {error}. Copy the data set to a "
      "folder that you can write, and convert it there"
    ) from error


def _import_tfds():
  try:
    import tensorflow_datasets

    # TFDS does not require it, and imports it only when it opens the first file.
    importlib.import_module("array_record.python.array_record_data_source")
  except ImportError as error:
    raise UserError(
      f"CIFAR is read with tensorflow-datasets, which cannot be imported ({error}). Install it: "
      "pip install tensorflow-datasets array_record importlib_resources"
    ) from error
  return tensorflow_datasets


def _open_prepared(tfds, name: str, split: str, root: str, *, is_default: bool):
  """The builder of a prepared data set whose `split` has all of its ArrayRecord shards."""
  where = f"data.data_dir={str(root)!r}" + (" (the default)" if is_default else "")
  directory = tfds.builder(name, data_dir=root).data_path
  # Not `tfds build`: the tfds command does not start without apache-beam.
  prepare = "python -c " + shlex.quote(
    "import tensorflow_datasets as tfds; "
    f"tfds.builder({json.dumps(name)}, data_dir={json.dumps(str(root))})"
    '.download_and_prepare(file_format="array_record")'
  )
  if not (directory / "dataset_info.json").exists():
    raise UserError(
      f"data.name={name!r} is not prepared under {where}: {directory} does not hold it. If it "
      f"lies elsewhere, set --config.data.data_dir=DIR; else prepare it once with: {prepare}"
    )
  # Unlike the builder by name, this one knows the formats that were added after the preparation.
  builder = tfds.builder_from_directory(directory)
  formats = {file_format.value for file_format in builder.info.available_file_formats()}
  if "array_record" not in formats:
    raise UserError(
      f"data.name={name!r} is prepared under {where} as {', '.join(sorted(formats))}, which has no "
      "random access. Add ArrayRecord shards beside it with: "
      f"python -m saol_jax.data.cifar {shlex.quote(str(directory))}"
    )
  missing = f"of the split {split!r}"
  if split in builder.info.splits:
    template = builder.info.splits[split].filename_template.replace(filetype_suffix="array_record")
    shards = template.sharded_filepaths(num_shards=builder.info.splits[split].num_shards)
    missing = ", ".join(shard.name for shard in shards if not shard.exists())
  if missing:
    raise UserError(
      f"data.name={name!r} is incomplete under {where}: no file {missing} in {directory}. Delete "
      f"that folder and prepare it again with: {prepare}"
    )
  return builder


if __name__ == "__main__":
  if len(sys.argv) != 2:
    sys.exit("usage: python -m saol_jax.data.cifar DIRECTORY")
  try:
    add_array_record(sys.argv[1])
  except UserError as user_error:
    print(f"error: {user_error}", file=sys.stderr)
    sys.exit(2)
