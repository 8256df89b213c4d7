"""The classes of a run stay what they were."""

import dataclasses
import json

import pytest

from saol_jax.data import DatasetInfo
from saol_jax.errors import UserError
from saol_jax.model_card import ModelCard, check_classes


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
