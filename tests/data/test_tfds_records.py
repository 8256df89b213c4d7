"""TFDS data sets whose features are called otherwise, and copies with smaller images."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from PIL import Image

from saol_jax.data import BadImages, Geometry, Reading, load_source
from saol_jax.data.resize import resize
from saol_jax.errors import UserError
from saol_jax.tensorflow_cpu import import_tensorflow
from tests.data.bad_files import BROKEN, write
from tests.data.pictures import ROTATED, boxed, encode, white_region, with_orientation
from tests.support import ROOT

SIZE = 24
HEIGHT, WIDTH = 60, 90
# As y_min, x_min, y_max, x_max in pixels; the second is the largest of each image that has several.
SMALL, LARGE = (6, 9, 12, 27), (12, 36, 48, 81)


def prepare(root, name, features, splits):
  """Writes a data set as TFDS prepares it in ArrayRecord."""
  import_tensorflow()
  from tensorflow_datasets.core import file_adapters

  directory = root / name / "1.0.0"
  directory.mkdir(parents=True)
  infos = []
  for split, examples in splits.items():
    shard = directory / f"{name}-{split}.array_record-00000-of-00001"
    serialised = (features.serialize_example(features.encode_example(e)) for e in examples)
    file_adapters.ArrayRecordFileAdapter.write_examples(str(shard), enumerate(serialised))
    infos.append(
      {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "name": split,
        "shardLengths": [str(len(examples))],
        "numBytes": str(shard.stat().st_size),
      }
    )
  features.save_config(str(directory))
  info = {"name": name, "version": "1.0.0", "fileFormat": "array_record", "splits": infos}
  (directory / "dataset_info.json").write_text(json.dumps(info))


def share(box):
  """As TFDS stores a box."""
  from tensorflow_datasets import features

  y_min, x_min, y_max, x_max = box
  return features.BBox(y_min / HEIGHT, x_min / WIDTH, y_max / HEIGHT, x_max / WIDTH)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """`dogs` as stanford_dogs has its boxes, `birds` as caltech_birds2011, `pets` without a test."""
  import_tensorflow()
  from tensorflow_datasets import features as f

  root = tmp_path_factory.mktemp("tfds")
  pixels = np.asarray(boxed(HEIGHT, WIDTH, LARGE))
  common = {"image": f.Image(shape=(None, None, 3)), "label": f.ClassLabel(names=["a", "b"])}
  dogs = [
    {"image": pixels, "label": n % 2, "objects": [{"bbox": share(box)} for box in boxes]}
    for n, boxes in enumerate(([SMALL, LARGE], [LARGE, SMALL], [], [LARGE]))
  ]
  objects = f.Sequence({"bbox": f.BBoxFeature()})
  prepare(
    root, "dogs", f.FeaturesDict(common | {"objects": objects}), {"train": dogs, "test": dogs}
  )
  # As oxford_iiit_pet has no box of an image: all zeros.
  birds = [{"image": pixels, "label": 1, "bbox": share(box)} for box in (LARGE, (0, 0, 0, 0))]
  prepare(
    root,
    "birds",
    f.FeaturesDict(common | {"bbox": f.BBoxFeature()}),
    {"train": birds, "test": birds},
  )
  names = {"photo": common["image"], "label": common["label"], "species": common["label"]}
  pets = [{"photo": pixels, "label": 0, "species": 1}] * 4
  prepare(root, "pets", f.FeaturesDict(names), {"train": pets, "validation": pets[:3]})
  return root


def load(root, name, split="train", **fields):
  reading = Reading(
    geometry=Geometry(SIZE, eval_crop=0), bad_images=BadImages(1.0, "count"), **fields
  )
  return load_source(name, split, data_dir=str(root), reading=reading)


def test_of_several_boxes_the_largest_counts(root):
  source = load(root, "dogs")
  batch = source[np.arange(4)]
  assert batch["label"].tolist() == [0, 1, 0, 1]
  (expected,) = {tuple(white_region(image)) for image in batch["image"]}
  assert expected == (5, 10, 19, 22)  # LARGE by 24 / 60 and 24 / 90
  boxes = batch["box"].tolist()
  assert boxes[2] == [0, 0, 0, 0]
  for box in (boxes[0], boxes[1], boxes[3]):
    assert np.abs(np.array(box) - expected).max() <= 1
  assert len(source.boxed) == 4  # which of them have one is known once they are read
  birds = load(root, "birds", "test")[np.arange(2)]["box"].tolist()
  assert birds == [boxes[0], [0, 0, 0, 0]]
  assert "box" not in load(root, "dogs", box_field="")[np.arange(2)]


def test_features_and_splits_are_found_by_the_names_that_are_given(root):
  pets = {"image_field": "photo", "label_field": "species"}
  assert len(load(root, "pets", "test", **pets)) == 3  # validation, since there is no test
  half = load(root, "pets", train_split="train[:50%]", **pets)
  assert len(half) == 2
  assert half[np.arange(2)]["label"].tolist() == [1, 1]
  assert load(root, "pets", **(pets | {"label_field": "label"}))[np.array([0])]["label"] == [0]


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({}, r"data\.image_field='image' is no Image feature of pets, which has .*photo"),
    ({"image_field": "label"}, r"data\.image_field='label' is no Image feature"),
    (
      {"image_field": "photo", "label_field": "breed"},
      r"data\.label_field='breed' is no ClassLabel",
    ),
    (
      {"image_field": "photo", "box_field": "bbox"},
      r"data\.box_field='bbox' is no feature of pets",
    ),
    (
      {"image_field": "photo", "label_field": "species", "box_field": "label"},
      r"data\.box_field='label' is no feature of pets that holds boxes",
    ),
    ({"image_field": "photo", "train_split": "all"}, "has no split 'all', only train, validation"),
  ],
)
def test_wrong_names_are_said_with_the_right_ones(root, fields, message):
  with pytest.raises(UserError, match=message):
    load(root, "pets", **fields)


def test_a_copy_of_a_folder_keeps_labels_boxes_and_names(tmp_path):
  upright = boxed(HEIGHT, WIDTH, LARGE)
  lying = with_orientation(upright.transpose(Image.Transpose.ROTATE_90), ROTATED)
  small = encode(boxed(20, 30, (4, 12, 16, 27)), "PNG")
  files = {
    "train/a/lying.jpg": lying,
    "train/a/none.jpg": encode(upright, "JPEG"),
    "train/b/empty.jpg": BROKEN["empty.jpg"][0],
    "train/b/small.png": small,
    "val/b/large.png": encode(upright.resize((4 * WIDTH, 4 * HEIGHT)), "PNG"),
    "boxes.csv": b"path,x_min,y_min,x_max,y_max\ntrain/a/lying.jpg,36,12,81,48\n"
    b"train/b/small.png,12,4,27,16\ntrain/b/empty.jpg,1,1,2,2\nval/b/large.png,144,48,324,500\n",
  }
  folder = write(tmp_path / "folder", files)
  name = resize("folder", str(folder), str(tmp_path / "out"), short_side=30)
  copy = load(tmp_path / "out", name)
  assert [copy.name(i).partition(" ")[0] for i in range(4)] == sorted(files)[1:5]
  batch, original = copy[np.arange(4)], load(folder, "folder")[np.arange(4)]
  np.testing.assert_array_equal(batch["label"], original["label"])
  np.testing.assert_array_equal(batch["broken"], [False, False, True, False])
  np.testing.assert_array_equal(batch["box"][1], np.zeros(4))
  for place in (0, 3):
    np.testing.assert_array_equal(batch["box"][place], original["box"][place])
    assert np.abs(batch["box"][place] - white_region(batch["image"][place])).max() <= 1
  stored = [copy.records.parse(r)["image"].numpy() for r in copy.records.read(np.arange(4)).records]
  assert stored[3] == small  # smaller than asked for: as it was
  assert stored[2] == b""
  large = load(tmp_path / "out", name, "test")[np.array([0])]
  assert large["box"][0].tolist() == [5, 10, 24, 22]  # beyond the border: cut off


def test_names_that_are_no_utf_8(tmp_path):
  photo = encode(boxed(HEIGHT, WIDTH, LARGE), "JPEG")
  folder = write(tmp_path / "folder", {"train/a/1.jpg": photo, "train/b/2.jpg": photo})
  odd = os.fsdecode(b"train/a/caf\xe9.jpg")
  try:
    (folder / "train/a/1.jpg").rename(folder / odd)
  except OSError:
    pytest.skip("this file system takes UTF-8 alone")
  name = resize("folder", str(folder), str(tmp_path / "out"), short_side=30)
  assert "caf" in load(tmp_path / "out", name).name(0)
  (folder / "train/a").rename(folder / os.fsdecode(b"train/caf\xe9"))
  with pytest.raises(UserError, match=r"the class caf\\udce9 has a name that is no UTF-8; rename"):
    resize("folder", str(folder), str(tmp_path / "other"), short_side=30)


def _move(folder):
  (folder / "train" / "a" / "2.jpg").rename(folder / "train" / "b" / "2.jpg")
  (folder / "train" / "b" / "1.jpg").rename(folder / "train" / "a" / "1.jpg")


def _replace(folder):
  (folder / "val" / "a" / "1.jpg").write_bytes(encode(boxed(HEIGHT, WIDTH, SMALL), "JPEG") + b"0")


def _touch(folder):
  os.utime(folder / "train" / "a" / "2.jpg", (0, 0))


def _mark(folder):
  (folder / "boxes.csv").write_text("path,x_min,y_min,x_max,y_max\nval/a/1.jpg,1,1,9,8\n")


@pytest.mark.parametrize("change", [_move, _replace, _touch, _mark])
def test_an_outdated_copy_is_refused(tmp_path, change):
  photo = encode(boxed(HEIGHT, WIDTH, LARGE), "JPEG")
  files = ("train/a/2.jpg", "train/b/1.jpg", "val/a/1.jpg")
  folder = write(tmp_path / "folder", dict.fromkeys(files, photo))
  if change is _mark:  # no box becomes another
    (folder / "boxes.csv").write_text("path,x_min,y_min,x_max,y_max\nval/a/1.jpg,1,1,9,9\n")
  again = partial(resize, "folder", str(folder), str(tmp_path / "out"), short_side=30)
  name = again()
  assert again() == name
  change(folder)
  with pytest.raises(UserError, match=r"/1\.0\.0 holds an outdated copy: files of 'folder'"):
    again()


def test_a_copy_of_a_changed_tfds_data_set_is_refused(tmp_path, root):
  shutil.copytree(root, tmp_path / "in")
  again = partial(resize, "dogs", str(tmp_path / "in"), str(tmp_path / "out"), short_side=30)
  again()
  (shard,) = (tmp_path / "in").glob("dogs/*/*-train.array_record*")
  os.utime(shard, (0, 0))
  with pytest.raises(UserError, match="holds an outdated copy: files of 'dogs'"):
    again()


def test_a_copy_of_an_unknown_state_or_of_another_size_is_refused(tmp_path):
  photo = encode(boxed(HEIGHT, WIDTH, LARGE), "JPEG")
  folder = write(tmp_path / "folder", dict.fromkeys(("train/a/1.jpg", "val/a/1.jpg"), photo))
  again = partial(resize, "folder", str(folder), str(tmp_path / "out"), short_side=30)
  plan = tmp_path / "out" / again() / "1.0.0" / "plan.json"
  write(folder, {"train/a/2.jpg": photo})
  with pytest.raises(UserError, match=r"a copy with another sizes; choose another --output"):
    again()
  facts = json.loads(plan.read_text())
  del facts["digest"]
  plan.write_text(json.dumps(facts))
  with pytest.raises(UserError, match=r"by an earlier version, .* may be outdated; choose another"):
    again()


def test_a_copy_with_labels_of_another_feature(tmp_path, root):
  pets = Reading(image_field="photo", label_field="species")
  again = partial(resize, "pets", str(root), str(tmp_path / "out"), short_side=30)
  copy = load(tmp_path / "out", again(reading=pets))
  assert copy[np.arange(4)]["label"].tolist() == [1, 1, 1, 1]
  with pytest.raises(UserError, match="holds a copy with another label_field"):
    again(reading=dataclasses.replace(pets, label_field="label"))


def test_a_copy_that_cannot_be_written_is_one_message(tmp_path):
  photo = encode(boxed(HEIGHT, WIDTH, LARGE), "JPEG")
  folder = write(tmp_path / "folder", dict.fromkeys(("train/a/1.jpg", "val/a/1.jpg"), photo))
  (tmp_path / "file").write_text("")
  names = ["--name=folder", f"--data_dir={folder}", f"--output={tmp_path / 'file' / 'out'}"]
  command = [sys.executable, "-m", "saol_jax.data.resize", *names]
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
  assert done.returncode == 2
  assert done.stderr.startswith(f"error: {names[2]} cannot be written: Not a directory")
  assert done.stderr.count("\n") == 1


def test_what_cannot_be_copied_is_refused(tmp_path):
  with pytest.raises(UserError, match="it has no encoded images"):
    resize("digit_scenes", None, str(tmp_path), short_side=30)
  with pytest.raises(UserError, match=r"--short_side=0 --quality=90; expected at least 1 pixel"):
    resize("folder", "x", str(tmp_path), short_side=0)
