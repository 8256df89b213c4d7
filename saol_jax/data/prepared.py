"""Data sets as TFDS prepares them, with random access: found, checked, and converted.

`python -m saol_jax.data.prepared DIRECTORY` gives one prepared as TFRecord its random access.
"""

import importlib
import json
import os
import pathlib
import shlex
import sys

from saol_jax.data.source import IN_MEMORY
from saol_jax.errors import UserError


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
  tfds = import_tfds()
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


def import_tfds():
  """TFDS, able to read ArrayRecord.

  Raises:
    UserError: one of the packages that it needs is missing.
  """
  try:
    import tensorflow_datasets

    # TFDS does not require it, and imports it only when it opens the first file.
    importlib.import_module("array_record.python.array_record_data_source")
  except ImportError as error:
    raise UserError(
      f"TFDS data sets are read with tensorflow-datasets, which cannot be imported ({error}). "
      "Install it: pip install tensorflow-datasets array_record importlib_resources"
    ) from error
  return tensorflow_datasets


def open_prepared(name: str, data_dir: str | None):
  """The builder of a data set that is prepared, with its place as an error would name it.

  Args:
    name: TFDS's name, perhaps with config and version: `name/config:version`.
    data_dir: the TFDS folder that holds it; None for TFDS's default, $TFDS_DATA_DIR or
      ~/tensorflow_datasets.

  Returns:
    The builder; it knows the formats that were added after the preparation, too.

  Raises:
    UserError: TFDS is not installed or knows no such data set, or it is not prepared there, or in a
      format without random access.
  """
  tfds = import_tfds()
  root = os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)
  where = f"data.data_dir={str(root)!r}" + ("" if data_dir else " (the default)")
  try:
    directory = tfds.builder(name, data_dir=root).data_path
  except (tfds.core.DatasetNotFoundError, ValueError, AttributeError) as error:
    raise UserError(
      f"data.name={name!r} is none of our data sets ({', '.join(IN_MEMORY)}, folder), nor one of "
      f"TFDS, nor prepared under {where}. One of your own has to be registered first: give "
      "--config with the recipe that does it, see saol_jax.data.register"
    ) from error
  if not (directory / "dataset_info.json").exists():
    raise UserError(
      f"data.name={name!r} is not prepared under {where}: {directory} does not hold it. If it lies "
      "elsewhere, set --config.data.data_dir=DIR; else prepare it once with: "
      f"{_preparation(name, root)}"
    )
  builder = tfds.builder_from_directory(directory)
  formats = {file_format.value for file_format in builder.info.available_file_formats()}
  if "array_record" not in formats:
    raise UserError(
      f"data.name={name!r} is prepared under {where} as {', '.join(sorted(formats))}, which has no "
      "random access. Add ArrayRecord shards beside it with: "
      f"python -m saol_jax.data.prepared {shlex.quote(str(directory))}"
    )
  return builder


def check_split(builder, split: str) -> None:
  """Raises UserError where a prepared data set lacks a split, or files of it.

  Args:
    builder: from `open_prepared`.
    split: TFDS's name, perhaps with a slice such as `train[:10%]`.
  """
  name, directory = builder.info.full_name, builder.data_path
  base = split.partition("[")[0]
  if base not in builder.info.splits:
    raise UserError(
      f"{name} in {directory} has no split {base!r}, only {', '.join(builder.info.splits)}"
    )
  template = builder.info.splits[base].filename_template.replace(filetype_suffix="array_record")
  shards = template.sharded_filepaths(num_shards=builder.info.splits[base].num_shards)
  missing = [shard.name for shard in shards if not shard.exists()]
  if missing:
    raise UserError(
      f"data.name={builder.info.name!r} is incomplete: no file {', '.join(missing[:5])} in "
      f"{directory}. {prepare_again(builder)}"
    )


def prepare_again(builder) -> str:
  """What to do where a prepared data set is incomplete or damaged, as the end of a message."""
  directory = builder.data_path
  command = _preparation(builder.info.name, str(directory.parent.parent))
  return f"Delete {directory} and prepare it again with: {command}"


def _preparation(name: str, root: str) -> str:
  """The command that prepares a data set with random access."""
  # Not `tfds build`: the tfds command does not start without apache-beam.
  return "python -c " + shlex.quote(
    "import tensorflow_datasets as tfds; "
    f"tfds.builder({json.dumps(name)}, data_dir={json.dumps(str(root))})"
    '.download_and_prepare(file_format="array_record")'
  )


if __name__ == "__main__":
  if len(sys.argv) != 2:
    sys.exit("usage: python -m saol_jax.data.prepared DIRECTORY")
  try:
    add_array_record(sys.argv[1])
  except UserError as user_error:
    print(f"error: {user_error}", file=sys.stderr)
    sys.exit(2)
