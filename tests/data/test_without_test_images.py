"""Data sets that have no test images: a share of train is held out in their place."""

import json

import numpy as np
import pytest

from saol_jax.data import Geometry, NoTestSplit, Reading, load_source
from saol_jax.data.resize import resize
from saol_jax.errors import UserError
from saol_jax.inspect_data import inspect_workdir
from saol_jax.localize import localize_workdir
from saol_jax.train import train_and_evaluate
from tests.data.bad_files import write
from tests.data.pictures import boxed, encode
from tests.data.test_tfds_records import prepare
from tests.support import tiny_config

READING = Reading(geometry=Geometry(32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Twelve images with boxes in DIR/train, and nothing else."""
  files = {"boxes.csv": b"path,x_min,y_min,x_max,y_max\n"}
  for i in range(12):
    name, side = f"train/{'ab'[i % 2]}/{i}.png", 8 + i
    files[name] = encode(boxed(40, 40, (4, 2, 4 + side, 2 + side)), "PNG")
    files["boxes.csv"] += f"{name},2,4,{2 + side},{4 + side}\n".encode()
  return write(tmp_path_factory.mktemp("data"), files)


def config(folder, **changes):
  fields = {"data__name": "folder", "data__data_dir": str(folder), "data__image_size": 32}
  fields |= {"batch_size": 4, "num_train_steps": 2, "eval_batch_size": 4, "model__norm_group": 0}
  return tiny_config("gap", optimizer__ema_decay=0.0, **fields, **changes)


def test_without_a_share_to_hold_out_training_does_not_begin(folder, tmp_path):
  with pytest.raises(NoTestSplit, match=r"no folder 'val'.*--config.data.validation=0.1"):
    train_and_evaluate(config(folder), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_run_is_scored_on_held_out_images_alone(folder, tmp_path, caplog):
  caplog.set_level("INFO")
  held_out = config(folder, data__validation=0.34)
  train_and_evaluate(held_out, tmp_path)
  assert (
    "There are no test images: the best checkpoint is chosen on the held-out ones" in caplog.text
  )
  records = list(map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()))
  assert "eval/gap_top1" in records[-1]
  assert not any(name.startswith("test/") for record in records for name in record)
  assert {path.name for path in tmp_path.glob("evaluation_*")} == {"evaluation_validation_latest"}

  assert set(inspect_workdir(held_out, tmp_path)) == {"train", "validation"}
  held_out.localize.maps = "cam"
  results = localize_workdir(held_out, tmp_path)
  assert all(name.startswith("validation/cam_") for name in results)
  found = json.loads((tmp_path / "localization_validation_latest.json").read_text())
  assert (found["num_images"], found["threshold_split"]) == (4, "train")
  assert found["num_threshold_images"] == 8
  held_out.localize.split = "test"
  with pytest.raises(NoTestSplit, match=r"that are held out are the split validation: --config"):
    localize_workdir(held_out, tmp_path)


def test_test_images_in_a_folder_of_another_name_are_not_passed_over(folder, tmp_path):
  write(
    tmp_path,
    {f"{split}/{i}/{j}.png": b"" for split in ("train", "test") for i in "ab" for j in "cd"},
  )
  with pytest.raises(UserError, match="rename 'test' to 'val'"):
    train_and_evaluate(config(tmp_path, data__validation=0.5), tmp_path / "run")


def test_a_copy_has_no_test_split_either(folder, tmp_path, caplog):
  caplog.set_level("INFO")
  name = resize("folder", str(folder), str(tmp_path), short_side=20)
  assert "There are no test images: the copy has the split train alone" in caplog.text
  copy = load_source(name, "train", data_dir=str(tmp_path), reading=READING)
  assert (len(copy), copy.records.has_boxes) == (12, True)
  with pytest.raises(NoTestSplit, match="has no split 'test' or 'validation', only train"):
    load_source(name, "test", data_dir=str(tmp_path), reading=READING)


def test_a_tfds_data_set_may_have_train_alone(tmp_path):
  from tensorflow_datasets import features

  fields = {
    "image": features.Image(shape=(None, None, 3)),
    "label": features.ClassLabel(num_classes=2),
  }
  example = {"image": np.zeros((40, 40, 3), np.uint8), "label": 1}
  prepare(tmp_path, "flowers", features.FeaturesDict(fields), {"train": [example] * 6})
  open_split = {"data_dir": str(tmp_path), "reading": READING, "validation": 0.5}
  assert len(load_source("flowers", "validation", **open_split)) == 3
  with pytest.raises(NoTestSplit, match=r"--config\.data\.test_split=NAME"):
    load_source("flowers", "test", **open_split)
