"""CIFAR-10 and CIFAR-100, read into memory without TensorFlow.

Krizhevsky 2009, "Learning multiple layers of features from tiny images". They come from the files
that their authors publish, or from TFDS's preparation, which shuffles them. Here their order is a
function of what they show, so that a run does not depend on where its data came from.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from saol_jax.data import cifar_files
from saol_jax.data.prepared import check_split, import_tfds, open_prepared, prepare_again
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
    data_dir: the folder that holds the published archive, such as `cifar-100-python.tar.gz`, or
      what it unpacks to, or else the TFDS folder that holds `name`; None for TFDS's default,
      $TFDS_DATA_DIR or ~/tensorflow_datasets.
    validation: in [0, 1), the share of train held out, equal in every class.

  Returns:
    Images of 32 x 32, in the order of their checksums.

  Raises:
    UserError: a published file is damaged; or there is none, and TFDS is not installed, the data
      set is not prepared under `data_dir`, or prepared incompletely or in a format without random
      access; or `validation` leaves a split empty.
  """
  stored = "test" if split == "test" else "train"
  published = cifar_files.find(name, data_dir)
  if published is not None:
    arrays = cifar_files.read(name, stored, published)
  else:
    arrays = read_prepared(name, stored, data_dir)
  arrays = _in_order(arrays)

  mean, std = _STATISTICS[name]
  info = DatasetInfo(arrays.class_names, mean, std)
  source = ArraySource(arrays.images, arrays.labels, info)
  if stored == "test" or not validation:
    return source
  return source.part(train_or_validation(arrays.labels, split, validation))


def read_prepared(name: str, split: str, data_dir: str | None) -> cifar_files.Arrays:
  """Reads "train" or "test" from TFDS's preparation, in its order.

  Raises:
    UserError: see `load`.
  """
  try:
    builder = open_prepared(name, data_dir)
  except UserError as error:
    archive = cifar_files.LAYOUTS[name].archive
    raise UserError(f"no {archive} in data.data_dir={data_dir or ''!r}, and {error}") from error
  check_split(builder, split)
  tfds = import_tfds()
  import cv2
  from tensorflow_datasets.proto.tf_example_generated_pb2 import Example

  # TFDS's own parser of examples, and Pillow, are slow for images as small as these.
  raw = tfds.decode.DeserializeMethod.RAW_BYTES
  records = builder.as_data_source(split, file_format="array_record", deserialize_method=raw)
  images = np.empty((len(records), *builder.info.features["image"].shape), np.uint8)
  labels = np.empty(len(records), np.int32)

  def read(some: range) -> None:
    try:
      batch = records.__getitems__(list(some))
    except RuntimeError as error:  # ArrayRecord has checksums
      raise UserError(
        f"data.name={name!r} is damaged: its {split} split in {builder.data_path} cannot be read "
        f"({error}). {prepare_again(builder)}"
      ) from error
    for i, record in zip(some, batch, strict=True):
      fields = Example.FromString(record).features.feature
      png = np.frombuffer(fields["image"].bytes_list.value[0], np.uint8)
      images[i] = cv2.imdecode(png, cv2.IMREAD_COLOR_RGB)
      labels[i] = fields["label"].int64_list.value[0]

  everything = range(len(records))
  with ThreadPoolExecutor(os.cpu_count()) as threads:
    for _ in threads.map(read, (everything[k : k + _BATCH] for k in everything[::_BATCH])):
      pass
  return cifar_files.Arrays(images, labels, tuple(builder.info.features["label"].names))


def _in_order(arrays: cifar_files.Arrays) -> cifar_files.Arrays:
  """Sorts by a checksum of image and label: no order that means anything, and always the same."""
  images, labels = arrays.images, arrays.labels
  checksums = [
    hashlib.sha256(image.tobytes() + label.tobytes())
    for image, label in zip(images, labels.astype("<i4"), strict=True)
  ]
  order = sorted(range(len(labels)), key=lambda i: checksums[i].digest())
  return cifar_files.Arrays(images[order], labels[order], arrays.class_names)
