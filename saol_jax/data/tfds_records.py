"""TFDS image classification data sets, prepared in ArrayRecord, as encoded images."""

from typing import Any

import numpy as np

from saol_jax.data.prepared import check_split, import_tfds, open_prepared
from saol_jax.data.records import NoTestSplit, Read
from saol_jax.errors import UserError
from saol_jax.tensorflow_cpu import import_tensorflow

# What holds boxes of the objects; oxford_iiit_pet's head_bbox is of their heads.
_BOX_FIELDS = ("bbox", "boxes", "objects/bbox")
# What holds a picture's name, where a data set keeps it.
_NAME_FIELDS = ("file_name", "image/filename", "image/file_name")


class TfdsRecords:
  """One split of a prepared data set, in stored order; see `Records` for the attributes.

  Records are read as serialised examples, whole batches at a time, and parsed by TensorFlow beside
  the decoding: TFDS's own parser, `as_data_source` with SkipDecoding, works example by example in
  Python. EXIF data is not looked at: published scores and boxes are for the pixels as stored.
  """

  labels = None
  boxes = None
  upright = False

  def __init__(
    self,
    name: str,
    split: str,
    *,
    data_dir: str | None = None,
    train_split: str = "train",
    test_split: str = "auto",
    image_field: str = "image",
    label_field: str = "label",
    box_field: str = "auto",
  ):
    """Opens a split.

    Args:
      name: TFDS's name, perhaps with config and version.
      split: "train" or "test".
      data_dir: the TFDS folder that holds it; None for TFDS's default.
      train_split, test_split: TFDS's names for them, perhaps with slices; "auto" is "test" if there
        is one, else "validation". ImageNet's test images have no labels: there "validation".
      image_field, label_field: names of the features; parts of a nested one are joined by "/".
      box_field: name of the box feature; "auto" for the first that there is of "bbox", "boxes" and
        "objects/bbox"; "" for none. Of several boxes the largest counts; one without an area, which
        builders write where they know none, does not.

    Raises:
      NoTestSplit: there is neither "test" nor "validation", and `test_split` is "auto".
      UserError: the data set, the split or a feature is not there, or is of another kind.
    """
    tfds = import_tfds()
    builder = open_prepared(name, data_dir)
    features = builder.info.features
    self._name, self._split = builder.info.name, train_split
    if split == "test":
      self._split = _test_split(builder) if test_split == "auto" else test_split
    check_split(builder, self._split)
    self._tf = import_tensorflow()

    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    self._fields = {"image": image_field, "label": label_field}
    for what, field in self._fields.items():
      if not isinstance(_feature(features, field), kinds[what]):
        raise UserError(
          f"data.{what}_field={field!r} is no {kinds[what].__name__} feature of {name}, which has "
          f"{', '.join(features)}; set --config.data.{what}_field (--{what}_field of resize)"
        )
    self.class_names = tuple(_feature(features, label_field).names)
    if box_field == "auto":
      box_field = next((f for f in _BOX_FIELDS if _holds_boxes(_feature(features, f))), "")
    elif box_field and not _holds_boxes(_feature(features, box_field)):
      raise UserError(
        f"data.box_field={box_field!r} is no feature of {name} that holds boxes, four floats each; "
        f"it has {', '.join(features)}"
      )
    self.has_boxes = bool(box_field)
    if box_field:
      self._fields["box"] = box_field
    self._name_field = next((field for field in _NAME_FIELDS if _feature(features, field)), None)
    self._source = builder.as_data_source(
      self._split,
      file_format="array_record",
      deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
    )

  def __len__(self) -> int:
    return len(self._source)

  def read(self, indices: np.ndarray) -> Read:
    """The serialised examples at `indices` (n,)."""
    failures = {}
    try:
      records = list(self._source.__getitems__(indices.tolist()))
    except RuntimeError:  # a damaged file: find out which of them it concerns
      records = [b""] * len(indices)
      for place, index in enumerate(indices.tolist()):
        try:
          (records[place],) = self._source.__getitems__([index])
        except RuntimeError as error:
          failures[place] = str(error)
    return Read(records, np.ones(len(indices), np.int32), failures)

  def parse(self, record: Any) -> dict[str, Any]:
    """A serialised tf.train.Example to its image, label and box."""
    tf = self._tf
    kinds = {
      "image": tf.io.FixedLenFeature([], tf.string),
      "label": tf.io.FixedLenFeature([], tf.int64),
      "box": tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True),
    }
    specification = {field: kinds[what] for what, field in self._fields.items()}
    example = tf.io.parse_single_example(record, specification)
    row = {what: example[field] for what, field in self._fields.items()}
    if "box" in row:
      row["box"] = _largest_box(tf, row["box"])
    return row

  def key(self, index: int) -> str:
    """Its file's name, where the data set keeps it and it can be read; else its place."""
    read = self.read(np.array([index])) if self._name_field else None
    if read is None or read.failures:
      return f"{self._split}/{index}"
    kind = {self._name_field: self._tf.io.FixedLenFeature([], self._tf.string)}
    example = self._tf.io.parse_single_example(read.records[0], kind)
    return example[self._name_field].numpy().decode(errors="replace")

  def name(self, index: int) -> str:
    """Its key, and its place in the split."""
    return f"{self.key(index)} (example {index} of {self._name}, split {self._split!r})"


def _test_split(builder) -> str:
  """TFDS's name of the split with labels that is not for training."""
  known = ("validation",) if builder.info.name == "imagenet2012" else ("test", "validation")
  for name in known:
    if name in builder.info.splits:
      return name
  raise NoTestSplit(
    f"data.name={builder.info.name!r} has no split {' or '.join(map(repr, known))}, only "
    f"{', '.join(builder.info.splits)}. Hold out a share of train for evaluation with "
    "--config.data.validation=0.1, or name the split: --config.data.test_split=NAME"
  )


def _feature(features, field: str):
  """A feature by its path; None where there is none."""
  for part in field.split("/"):
    features = getattr(features, "feature", features)  # of a sequence, what it repeats
    if part not in (features if hasattr(features, "keys") else ()):
      return None
    features = features[part]
  return features


def _holds_boxes(feature) -> bool:
  """Whether a feature is four floats, or a sequence of them."""
  inner = getattr(feature, "feature", feature)  # of a sequence, what it repeats
  shape, dtype = getattr(inner, "shape", None), getattr(inner, "np_dtype", None)
  return isinstance(shape, tuple) and shape[-1:] == (4,) and np.issubdtype(dtype, np.floating)


def _largest_box(tf, values):
  """(4 m,) shares of the image, y_min, x_min, y_max, x_max each, to (4,); NaN without an area."""
  boxes = tf.concat([tf.reshape(values, [-1, 4]), tf.zeros([1, 4])], 0)
  areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
  return tf.where(tf.reduce_max(areas) > 0, boxes[tf.argmax(areas)], float("nan"))
