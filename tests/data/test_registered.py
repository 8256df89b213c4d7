"""A data set of one's own arrays, by a name of its own."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from saol_jax import data
from saol_jax.config import resolve
from saol_jax.data import ArraySource, DatasetInfo, NoTestSplit, Reading, load_source, register
from saol_jax.errors import UserError
from saol_jax.experiment import Experiment
from saol_jax.finish import _needs_no_recipe
from tests.support import tiny_config

INFO = DatasetInfo(("dark", "bright"), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def stripes(monkeypatch):
  """Ten images of each class to train on, with boxes, and none to test on."""
  monkeypatch.setattr(data, "_REGISTERED", {})

  @register
  def stripes(split):
    if split == "test":
      raise NoTestSplit("stripes have no test images; set --config.data.validation=0.2")
    labels = np.tile(np.arange(2, dtype=np.int32), 10)
    images = np.broadcast_to(200 * labels[:, None, None, None], (20, 16, 16, 3)).astype(np.uint8)
    boxes = np.tile(np.int32([[0, 0, 4, 4]]), (20, 1)) + np.arange(20, dtype=np.int32)[:, None] % 9
    return ArraySource(images, labels, INFO, boxes)

  return stripes


def test_it_is_a_data_set_like_ours(stripes):
  assert data.list_datasets()[-1] == "stripes"
  whole = load_source("stripes", "train")[np.arange(20)]
  parts = [load_source("stripes", split, validation=0.2) for split in ("train", "validation")]
  assert [len(part) for part in parts] == [16, 4]
  assert [np.bincount(part.labels).tolist() for part in parts] == [[8, 8], [2, 2]]
  boxes = np.concatenate([part.boxes for part in parts])
  np.testing.assert_array_equal(np.sort(boxes[:, 0]), np.sort(whole["box"][:, 0]))
  with pytest.raises(NoTestSplit):
    load_source("stripes", "test")
  other = load_source("stripes", "train", reading=Reading(mean=(0.1, 0.2, 0.3)))
  assert other.info.mean == (0.1, 0.2, 0.3)


def test_a_run_knows_it(stripes):
  fields = {"data__name": "stripes", "batch_size": 4, "model__norm_group": 2}
  experiment = Experiment(resolve(tiny_config("gap", data__validation=0.2, **fields)))
  assert (len(experiment.train), experiment.report_split) == (16, "validation")
  with pytest.raises(UserError, match=r"data\.name='stripe' is none of our data sets"):
    Experiment(resolve(tiny_config("gap", data__name="stripe")))


def register_scenes(monkeypatch, name, side=16, **test_info):
  """Grey images of two classes; what is said of the test split can be chosen."""

  def scenes(split):
    size, info = (side, INFO.__dict__ | test_info) if split == "test" else (16, INFO.__dict__)
    labels = np.tile(np.arange(2, dtype=np.int32), 4)
    return ArraySource(np.zeros((8, size, size, 3), np.uint8), labels, DatasetInfo(**info))

  monkeypatch.setattr(data, "_REGISTERED", {})
  scenes.__name__ = name  # a name each: conftest keeps what was loaded
  register(scenes)


@pytest.mark.parametrize(
  ("name", "changes", "message"),
  [
    (
      "order",
      {"class_names": ("bright", "dark")},
      "other classes .*: of label 0 'bright', and not 'dark'",
    ),
    (
      "more",
      {"class_names": ("dark", "bright", "grey")},
      "other classes .*: of label 2 'grey', and not None",
    ),
    ("larger", {"side": 20}, r"images of \(20, 20, 3\), train has \(16, 16, 3\)"),
  ],
)
def test_a_test_split_unlike_train_is_refused(monkeypatch, name, changes, message):
  register_scenes(monkeypatch, name, **changes)
  experiment = Experiment(resolve(tiny_config("gap", data__name=name)))
  with pytest.raises(UserError, match=f"data.name='{name}': its test split has {message}"):
    experiment.source("test")


def test_info_takes_arrays_and_keeps_plain_numbers():
  info = DatasetInfo(np.array(["a", "b"]), np.float32([0, 0.5, 1]), [0.25, np.float32(0.5), 1])
  assert info == DatasetInfo(("a", "b"), (0.0, 0.5, 1.0), (0.25, 0.5, 1.0))
  assert json.loads(json.dumps(dataclasses.asdict(info)))["mean"] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"mean": (127, 120, 110)}, r"mean=\(127.0, 120.0, 110.0\) of the channels; expected three"),
    ({"std": (60, 60, 60)}, "std=.*above 0 to 1: shares of 255"),
    ({"std": (0.2, 0.0, 0.2)}, "std=.*above 0 to 1: shares of 255"),
    ({"mean": (0.5,)}, "expected three numbers"),
    ({"mean": (0.5, float("nan"), 0.5)}, "expected three numbers"),
  ],
)
def test_statistics_that_are_no_shares_of_255_are_refused(changes, message):
  with pytest.raises(UserError, match=message):
    dataclasses.replace(INFO, **changes)


def test_what_has_no_name_is_refused():
  with pytest.raises(ValueError, match="has no name to register it under; expected a function"):
    register(functools.partial(print, "train"))
  with pytest.raises(ValueError, match="has no name to register it under"):
    register(lambda split: split)


def test_what_returns_something_else_is_told(monkeypatch):
  monkeypatch.setattr(data, "_REGISTERED", {"pair": lambda split: (1, 2)})
  with pytest.raises(UserError, match=r"data.name='pair': its function returned tuple; expected a"):
    load_source("pair", "train")
  with pytest.raises(UserError, match="pair is made in memory"):
    data.open_records("pair", "train", None)


def test_commands_to_go_on_with_name_the_recipe(stripes):
  assert not _needs_no_recipe(tiny_config(data__name="stripes"))
  assert _needs_no_recipe(tiny_config())


def test_a_name_is_taken_once(stripes):
  with pytest.raises(ValueError, match="two data sets are called 'stripes'"):
    register(stripes)

  def folder(split):
    raise AssertionError(split)

  with pytest.raises(ValueError, match="two data sets are called 'folder'"):
    register(folder)
