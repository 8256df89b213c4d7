import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn import datasets

import saol_jax
from saol_jax.data import ArraySource, DatasetInfo, digit_scenes, list_datasets, load_source
from saol_jax.data.source import held_out
from saol_jax.errors import UserError
from tests.data.cifar_checks import CIFAR10, check_cifar, in_checksum_order

REPOSITORY = Path(saol_jax.__file__).parents[1]


# What every source must be


def _source(labels=(0, 1), images=None, boxes=None, object_masks=None):
  if images is None:
    images = np.zeros((len(labels), 4, 6, 3), np.uint8)
  info = DatasetInfo(("a", "b", "c"), (0.5,) * 3, (0.2,) * 3)
  return ArraySource(images, np.asarray(labels, np.int32), info, boxes, object_masks)


def test_a_batch_holds_the_examples_asked_for_in_their_order():
  images = np.arange(3 * 4 * 6 * 3, dtype=np.uint8).reshape(3, 4, 6, 3)
  boxes = np.array([[0, 0, 1, 1], [0, 0, 2, 2], [1, 2, 4, 6]], np.int32)
  masks = np.random.default_rng(0).choice([0, 1, 255], (3, 4, 6)).astype(np.uint8)
  source = _source([2, 0, 1], images, boxes, masks)
  batch = source[np.array([2, 0, 2])]
  assert len(source) == 3
  assert batch["label"].tolist() == [1, 2, 1]
  np.testing.assert_array_equal(batch["image"], np.stack([images[2], images[0], images[2]]))
  np.testing.assert_array_equal(batch["box"], boxes[[2, 0, 2]])
  np.testing.assert_array_equal(batch["object_mask"], masks[[2, 0, 2]])
  assert not {"box", "object_mask"} & set(_source()[np.array([0])])


@pytest.mark.parametrize("bad", [-1, 3])
def test_label_out_of_range_names_the_first_bad_example(bad):
  with pytest.raises(UserError, match=rf"example 2 has the label {bad}, .*0\.\.2\. 2 of 4"):
    _source([0, 2, bad, bad])


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"images": np.zeros((2, 4, 4, 3), np.float32)}, "images have dtype float32, expected uint8"),
    ({"images": np.zeros((2, 4, 4, 1), np.uint8)}, r"images have shape \(2, 4, 4, 1\)"),
    ({"images": np.zeros((3, 4, 4, 3), np.uint8)}, r"labels have shape \(2,\), expected \(3,\)"),
    ({"boxes": np.zeros((2, 2), np.int32)}, r"boxes have shape \(2, 2\), expected \(2, 4\)"),
    (
      {"boxes": np.array([[0, 0, 4, 6], [0, 0, 6, 4]], np.int32)},
      r"example 1 has the box \[0, 0, 6, 4\], expected y_min < y_max <= 4 and x_min < x_max <= 6",
    ),
    ({"boxes": np.array([[2, 0, 2, 6], [0, 0, 4, 6]], np.int32)}, "example 0 has the box"),
    ({"object_masks": np.zeros((2, 4, 5), np.uint8)}, r"object_masks .*expected \(2, 4, 6\)"),
    ({"object_masks": np.full((2, 4, 6), 7, np.uint8)}, "hold the value 7; expected 0 background"),
  ],
)
def test_malformed_arrays_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    _source(**fields)


def test_held_out_takes_the_same_share_of_each_class_and_grows_with_the_share():
  labels = np.repeat([0, 1, 2], [10, 200, 50])[np.random.default_rng(0).permutation(260)]
  small, large = held_out(labels, 0.1), held_out(labels, 0.3)
  assert np.bincount(labels[small]).tolist() == [1, 20, 5]
  assert np.bincount(labels[large]).tolist() == [3, 60, 15]
  assert large[small].all()
  # Not simply the first ones: such a set would follow the order of preparation.
  assert np.flatnonzero(large[labels == 1]).max() > 100


# The registry


def test_unknown_names_list_the_known_ones():
  assert list_datasets() == ("cifar10", "cifar100", "digit_scenes", "folder")
  with pytest.raises(UserError, match=r"data.name='cifar11' .*cifar10, cifar100, digit_scenes"):
    load_source("cifar11", "train")
  with pytest.raises(UserError, match=r"split 'val' .*train, validation, test"):
    load_source("digit_scenes", "val")


@pytest.mark.parametrize("share", [-0.1, 1.0, 10, float("nan")])
def test_validation_must_be_a_share(share):
  with pytest.raises(UserError, match=rf"data.validation={share} .*0 <= data.validation < 1"):
    load_source("digit_scenes", "train", validation=share)


@pytest.mark.parametrize("name", ["digit_scenes", "cifar10"])
def test_validation_split_needs_a_share(name):
  with pytest.raises(UserError, match=r"--config\.data\.validation=0\.1"):
    load_source(name, "validation")


# Digit scenes


@pytest.fixture
def few_scenes(monkeypatch):
  """Fewer scenes; still more than there are digits."""
  monkeypatch.setattr(digit_scenes, "NUM_TRAIN", 2_500)
  monkeypatch.setattr(digit_scenes, "NUM_TEST", 700)


@pytest.fixture
def plain_photos(monkeypatch):
  """Grey photographs, so that whatever differs from the corner of a scene is ink."""
  grey = np.full((427, 640, 3), 128, np.uint8)
  photos = datasets.load_sample_images()
  photos.images = [grey, grey]
  monkeypatch.setattr(datasets, "load_sample_images", lambda: photos)


def _replace_digits(monkeypatch, chosen):
  """Turns the chosen digits upside down."""
  digits = datasets.load_digits()
  digits.images[chosen] = digits.images[chosen, ::-1]
  monkeypatch.setattr(datasets, "load_digits", lambda: digits)


def _replace_photos(monkeypatch, columns):
  photos = datasets.load_sample_images()
  photos.images = [photo.copy() for photo in photos.images]
  for photo in photos.images:
    photo[:, columns] = 255 - photo[:, columns]
  monkeypatch.setattr(datasets, "load_sample_images", lambda: photos)


def _same(a, b):
  fields = ("images", "labels", "boxes", "object_masks")
  return all(np.array_equal(getattr(a, field), getattr(b, field)) for field in fields)


def test_full_size_scenes_have_the_stated_counts_and_statistics(monkeypatch):
  monkeypatch.setattr(digit_scenes, "NUM_TEST", 2_000)
  train, test = load_source("digit_scenes", "train"), load_source("digit_scenes", "test")
  assert train.images.shape == (20_000, 32, 32, 3)
  assert test.images.shape == (2_000, 32, 32, 3)
  for source in (train, test):
    # load_digits has 174 to 183 of each digit in 1,797, so no class is far from a tenth.
    assert np.all(np.abs(np.bincount(source.labels, minlength=10) / len(source) - 0.1) < 0.01)
    assert source.info.class_names[7] == "7"
  pixels = train.images.reshape(-1, 3) / 255.0
  np.testing.assert_allclose(train.info.mean, pixels.mean(0), atol=2e-3)
  np.testing.assert_allclose(train.info.std, pixels.std(0), atol=2e-3)


def test_each_scene_is_labelled_as_the_digit_it_shows(few_scenes):
  targets = datasets.load_digits().target
  for part in ("train", "test"):
    expected = targets[digit_scenes.scene_digits(part)]
    np.testing.assert_array_equal(load_source("digit_scenes", part).labels, expected)


def test_training_and_test_scenes_share_no_digit():
  train, test = (digit_scenes.scene_digits(part) for part in ("train", "test"))
  assert not set(train) & set(test)
  assert set(train) | set(test) == set(range(1797))
  assert len(set(test)) == 599  # a third of 1,797
  for indices in (train, test):
    uses = np.bincount(indices)[np.unique(indices)]
    assert uses.max() - uses.min() <= 1


@pytest.mark.parametrize(("split", "other"), [("train", "test"), ("test", "train")])
def test_scenes_do_not_depend_on_the_other_parts_digits_and_photo_regions(
  few_scenes, monkeypatch, split, other
):
  before = load_source("digit_scenes", split)
  region = slice(0, 224) if other == "test" else slice(224, 640)
  own_region = slice(224, 640) if other == "test" else slice(0, 224)
  with monkeypatch.context() as patch:
    _replace_digits(patch, np.unique(digit_scenes.scene_digits(other)))
    _replace_photos(patch, region)
    assert _same(load_source("digit_scenes", split), before)
  # The same changes in its own digits or photographs do show.
  for replace, what in (
    (_replace_digits, np.unique(digit_scenes.scene_digits(split))),
    (_replace_photos, own_region),
  ):
    with monkeypatch.context() as patch:
      replace(patch, what)
      after = load_source("digit_scenes", split)
      changed = (after.images != before.images).any((1, 2, 3))
      assert changed.mean() > 0.95  # a few digits are symmetric


def test_scenes_are_the_same_every_time(few_scenes):
  np.random.seed(3)
  first = load_source("digit_scenes", "train", validation=0.2)
  load_source("digit_scenes", "test")
  np.random.seed(4)
  assert _same(load_source("digit_scenes", "train", validation=0.2), first)


def test_validation_holds_out_digits_and_leaves_the_scenes_as_they_are(few_scenes):
  validation = load_source("digit_scenes", "validation", validation=0.1)
  train = load_source("digit_scenes", "train", validation=0.1)
  whole = load_source("digit_scenes", "train")
  assert len(train) + len(validation) == len(whole) == 2_500
  assert abs(len(validation) - 250) < 15

  def scene_set(source):
    return {scene.tobytes() for scene in source.images}

  assert not scene_set(train) & scene_set(validation)
  assert scene_set(train) | scene_set(validation) == scene_set(whole)

  place = {scene.tobytes(): i for i, scene in enumerate(whole.images)}
  digits = digit_scenes.scene_digits("train")
  shown = [{digits[place[scene]] for scene in scene_set(s)} for s in (train, validation)]
  assert not shown[0] & shown[1]
  assert _same(
    load_source("digit_scenes", "test", validation=0.1), load_source("digit_scenes", "test")
  )


def test_a_share_too_small_or_too_large_is_refused(few_scenes):
  for share in (1e-4, 0.9999):
    with pytest.raises(UserError, match=r"holds out \d+ of them"):
      load_source("digit_scenes", "train", validation=share)


def test_boxes_are_tight_around_the_strokes(few_scenes, plain_photos):
  source = load_source("digit_scenes", "train")
  scenes = source.images.astype(np.float64)
  background = np.median(scenes.reshape(len(scenes), -1, 3), axis=1)[:, None, None]
  difference = np.abs(scenes - background).sum(-1)
  # Full ink somewhere in every digit, so the largest difference is that of ink 1.
  ink = difference / difference.max((1, 2), keepdims=True)
  slack = 0.04  # colours are rounded to a 255th
  for scene, (y_min, x_min, y_max, x_max) in zip(ink, source.boxes, strict=True):
    outside = np.ones((32, 32), bool)
    outside[y_min:y_max, x_min:x_max] = False
    assert scene[outside].max() < 0.3 + slack
    edges = (scene[y_min], scene[y_max - 1], scene[:, x_min], scene[:, x_max - 1])
    assert min(edge.max() for edge in edges) > 0.3 - slack


def test_masks_are_the_strokes_and_a_rim_that_does_not_count(few_scenes, plain_photos):
  source = load_source("digit_scenes", "validation", validation=0.2)
  scenes = source.images.astype(np.float64)
  background = np.median(scenes.reshape(len(scenes), -1, 3), axis=1)[:, None, None]
  difference = np.abs(scenes - background).sum(-1)
  ink = difference / difference.max((1, 2), keepdims=True)
  masks = source.object_masks
  assert ink[masks == 1].min() > 0.3 - 0.04  # colours are rounded to a 255th
  assert ink[masks == 0].max() < 0.04
  assert 0 < ink[masks == 255].max() < 0.3 + 0.04
  for mask, (y_min, x_min, y_max, x_max) in zip(masks, source.boxes, strict=True):
    y, x = np.nonzero(mask == 1)
    assert [y.min(), x.min(), y.max() + 1, x.max() + 1] == [y_min, x_min, y_max, x_max]


def test_digits_stand_out_from_what_they_cover(few_scenes, plain_photos):
  luma = load_source("digit_scenes", "train").images @ np.array([0.299, 0.587, 0.114])
  contrast = np.abs(luma - np.median(luma, axis=(1, 2), keepdims=True)).max((1, 2))
  assert contrast.min() > 255 * 0.42 * 0.85 - 2  # least contrast, least opacity, rounding


def test_scenes_vary_in_place_size_and_colour(few_scenes):
  source = load_source("digit_scenes", "train")
  y_min, x_min, y_max, x_max = source.boxes.T
  assert y_min.min() <= 1
  assert y_max.max() >= 31
  assert x_min.min() <= 3
  assert x_max.max() >= 29
  heights = y_max - y_min
  assert np.percentile(heights, 5) <= 14
  assert np.percentile(heights, 95) >= 21


# CIFAR, on a miniature prepared in the test


def _miniature(root, file_format, sizes=(("train", 40), ("test", 20))):
  """Prepares a CIFAR-10 of random images in a given format; returns its images by split."""
  pytest.importorskip("tensorflow", reason="TFDS writes records through TensorFlow")
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import file_adapters

  features = tfds.features.FeaturesDict(
    {
      "id": tfds.features.Text(),
      "image": tfds.features.Image(shape=(32, 32, 3)),
      "label": tfds.features.ClassLabel(names=CIFAR10),
    }
  )
  version = str(tfds.builder("cifar10", data_dir=root).version)
  directory = Path(root) / "cifar10" / version
  directory.mkdir(parents=True)
  adapter = file_adapters.ADAPTER_FOR_FORMAT[file_adapters.FileFormat(file_format)]
  images, splits = {}, []
  for split, size in sizes:
    rng = np.random.default_rng(size)
    images[split] = rng.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8)
    records = (
      features.serialize_example(
        features.encode_example({"id": f"{split}_{i}", "image": image, "label": i % 10})
      )
      for i, image in enumerate(images[split])
    )
    shard = f"cifar10-{split}.{file_format}-00000-of-00001"
    adapter.write_examples(str(directory / shard), enumerate(records))
    splits.append(
      {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "name": split,
        "shardLengths": [str(size)],
        "numBytes": "1",
      }
    )
  features.save_config(str(directory))
  (directory / "dataset_info.json").write_text(
    json.dumps(
      {
        "name": "cifar10",
        "version": version,
        "fileFormat": file_format,
        "moduleName": "tensorflow_datasets.image_classification.cifar",
        "splits": splits,
      }
    )
  )
  return images


def _run(command, **kwargs):
  return subprocess.run(
    command,
    cwd=REPOSITORY,
    env=os.environ
    | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    | {"PYTHONPATH": str(REPOSITORY)},
    capture_output=True,
    text=True,
    check=False,
    **kwargs,
  )


def test_cifar_is_read_from_tfds(tmp_path):
  check_cifar(tmp_path, _miniature(tmp_path, "array_record"))


def test_cifar_validation_is_disjoint_from_train(tmp_path):
  images = _miniature(tmp_path, "array_record")["train"]
  validation = load_source("cifar10", "validation", data_dir=str(tmp_path), validation=0.25)
  train = load_source("cifar10", "train", data_dir=str(tmp_path), validation=0.25)
  assert np.bincount(validation.labels).tolist() == [1] * 10
  assert np.bincount(train.labels).tolist() == [3] * 10
  together = {image.tobytes() for s in (train, validation) for image in s.images}
  assert together == {image.tobytes() for image in images}
  again = load_source("cifar10", "validation", data_dir=str(tmp_path), validation=0.25)
  np.testing.assert_array_equal(again.images, validation.images)
  assert len(load_source("cifar10", "test", data_dir=str(tmp_path), validation=0.25)) == 20


def test_reading_cifar_does_not_import_tensorflow(tmp_path):
  _miniature(tmp_path, "array_record")
  done = _run(
    [
      sys.executable,
      "-c",
      "import sys; from saol_jax.data import load_source\n"
      f"assert len(load_source('cifar10', 'test', data_dir={str(tmp_path)!r})) == 20\n"
      "assert 'tensorflow' not in sys.modules",
    ]
  )
  assert done.returncode == 0, done.stderr


def test_a_format_without_random_access_is_mended_by_the_printed_command(tmp_path):
  root = tmp_path / "my data"
  images = _miniature(root, "tfrecord")
  with pytest.raises(UserError, match=r"as tfrecord, which has no random access") as error:
    load_source("cifar10", "train", data_dir=str(root))
  command = str(error.value).partition("beside it with: ")[2]
  assert command.startswith("python -m saol_jax.data.prepared ")

  done = _run(shlex.split(command))
  assert done.returncode == 0, done.stderr
  for split in ("train", "test"):
    source = load_source("cifar10", split, data_dir=str(root))
    np.testing.assert_array_equal(source.images, in_checksum_order(images[split])[0])


def test_converting_something_else_is_refused(tmp_path):
  done = _run([sys.executable, "-m", "saol_jax.data.prepared", str(tmp_path)])
  assert done.returncode == 2
  assert "holds no dataset_info.json" in done.stderr
  assert "Traceback" not in done.stderr


def test_unprepared_cifar_prints_the_preparation_command(tmp_path):
  with pytest.raises(UserError, match="is not prepared under") as error:
    load_source("cifar100", "train", data_dir=str(tmp_path / "my data"))
  command = shlex.split(str(error.value).partition("prepare it once with: ")[2])
  assert command[:2] == ["python", "-c"]
  # The command as printed, but for the download: it must ask TFDS for ArrayRecord at that place.
  builder = (
    "import tensorflow_datasets as tfds\n"
    "def record(self, **kwargs): print(self.data_dir, kwargs)\n"
    "tfds.core.DatasetBuilder.download_and_prepare = record\n"
  )
  done = _run([sys.executable, "-c", builder + command[2]])
  assert done.returncode == 0, done.stderr
  assert f"{tmp_path}/my data/cifar100/" in done.stdout
  assert "{'file_format': 'array_record'}" in done.stdout


def test_without_data_dir_the_default_is_named(tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
  with pytest.raises(UserError, match=rf"{tmp_path}' \(the default\)"):
    load_source("cifar10", "train")


def test_a_missing_shard_or_split_is_named(tmp_path):
  _miniature(tmp_path, "array_record", sizes=(("train", 10),))
  with pytest.raises(UserError, match=r"has no split 'test', only train"):
    load_source("cifar10", "test", data_dir=str(tmp_path))
  (shard,) = tmp_path.glob("cifar10/*/*train*")
  shard.unlink()
  with pytest.raises(UserError, match=rf"no file {shard.name} in"):
    load_source("cifar10", "train", data_dir=str(tmp_path))


@pytest.mark.parametrize("damage", ["a byte", "the second half", "everything"])
def test_a_damaged_shard_is_named(tmp_path, damage):
  _miniature(tmp_path, "array_record", sizes=(("train", 2000),))
  (shard,) = tmp_path.glob("cifar10/*/*train*")
  data = bytearray(shard.read_bytes())
  if damage == "a byte":
    data[len(data) // 2] ^= 255
  else:
    del data[0 if damage == "everything" else len(data) // 2 :]
  shard.write_bytes(data)
  again = rf"split in {shard.parent} cannot be read .*Delete {shard.parent} and prepare it again"
  with pytest.raises(UserError, match=f"data.name='cifar10' is damaged: its train {again}"):
    load_source("cifar10", "train", data_dir=str(tmp_path))


@pytest.mark.parametrize(
  "module", ["tensorflow_datasets", "array_record.python.array_record_data_source"]
)
def test_missing_packages_print_the_pip_command(monkeypatch, module):
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(UserError, match=r"pip install tensorflow-datasets array_record"):
    load_source("cifar10", "train")
