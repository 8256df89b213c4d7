"""The classes of a run stay what they were."""

import dataclasses
import json
import types

import numpy as np
import pytest

from saol_jax.data import ArraySource, DatasetInfo
from saol_jax.errors import UserError
from saol_jax.model_card import ModelCard, check_classes, read_model_json, write_model_json


def test_other_classes_than_the_run_was_trained_on_are_refused(tmp_path):
  info = DatasetInfo(("cat", "dog", "fox"), (0.5,) * 3, (0.2,) * 3)
  check_classes(info, tmp_path)  # a new run
  card = ModelCard(info.class_names, info.mean, info.std, (32, 32))
  (tmp_path / "model.json").write_text(json.dumps(dataclasses.asdict(card)))
  check_classes(info, tmp_path)
  check_classes(dataclasses.replace(info, mean=(0.4,) * 3), tmp_path)
  for names, message in (
    (("cat", "fox", "owl"), r"on 3 classes, .* has 3 now; gone: dog; new: owl\."),
    (("cat", "dog"), r"has 2 now; gone: fox; new: none"),
    (("cat", "dog", "emu", "fox"), r"has 4 now; gone: none; new: emu"),
    # What a label means is their order.
    (("cat", "fox", "dog"), r"gone: none; new: none; their order is another\."),
  ):
    with pytest.raises(UserError, match=message):
      check_classes(dataclasses.replace(info, class_names=names), tmp_path)


def test_the_unicode_form_of_a_class_does_not_matter(tmp_path):
  info = DatasetInfo(("a\u0308", "b"), (0.5,) * 3, (0.2,) * 3)
  card = ModelCard(info.class_names, info.mean, info.std, (32, 32))
  (tmp_path / "model.json").write_text(json.dumps(dataclasses.asdict(card)))
  check_classes(dataclasses.replace(info, class_names=("\u00e4", "b")), tmp_path)


def _experiment(count):
  info = DatasetInfo(("cat", "dog"), (0.5,) * 3, (0.2,) * 3)
  images, labels = np.zeros((count, 32, 32, 3), np.uint8), np.zeros(count, np.int32)
  return types.SimpleNamespace(info=info, train=ArraySource(images, labels, info))


def test_another_number_of_training_images_is_said_at_each_start(tmp_path, caplog):
  for count, warned in ((90, False), (90, False), (120, True), (120, True), (90, False)):
    caplog.clear()
    write_model_json(_experiment(count), tmp_path)
    assert ("90 training images then, 120 now" in caplog.text) == warned
    assert read_model_json(tmp_path).num_train_images == 90


def test_a_run_that_did_not_note_its_images_begins_to(tmp_path, caplog):
  path = tmp_path / "model.json"
  write_model_json(_experiment(90), tmp_path)
  facts = json.loads(path.read_text())
  del facts["num_train_images"]
  path.write_text(json.dumps(facts))
  assert read_model_json(tmp_path).num_train_images is None
  write_model_json(_experiment(120), tmp_path)
  assert not caplog.text
  assert read_model_json(tmp_path).num_train_images == 120
