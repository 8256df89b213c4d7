"""CIFAR-10 and CIFAR-100 as TFDS prepares them, read into memory without TensorFlow.

Krizhevsky 2009, "Learning multiple layers of features from tiny images". The order of the examples
is TFDS's, which is not that of the official files.
"""

import io

import numpy as np
from PIL import Image

from saol_jax.data.prepared import check_split, import_tfds, open_prepared
from saol_jax.data.source import ArraySource, DatasetInfo, train_or_validation

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
  stored = "test" if split == "test" else "train"
  builder = open_prepared(name, data_dir)
  check_split(builder, stored)
  skip = import_tfds().decode.SkipDecoding()
  records = builder.as_data_source(stored, decoders={"image": skip}, file_format="array_record")
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
