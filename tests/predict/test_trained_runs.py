"""What a predictor needs of a workdir, and what it says where that is missing or damaged."""

import dataclasses
import json
import logging
import shutil

import numpy as np
import pytest

from saol_jax.errors import UserError
from saol_jax.model_card import read_model_json
from saol_jax.predictor import load
from tests.support import write_run


def test_needs_no_data_set(run, images, monkeypatch):
  def refuse(*_, **__):
    raise AssertionError("the data set was loaded")

  monkeypatch.setattr("saol_jax.experiment.load_source", refuse)
  assert load(run.folder)(images[0])[0].confidence > 0


def test_model_json_comes_back(run):
  card = read_model_json(run.folder)
  info = run.experiment.info
  count = len(run.experiment.train)
  assert dataclasses.astuple(card) == (info.class_names, info.mean, info.std, (32, 32), count)


def test_a_damaged_checkpoint_is_passed_over(tmp_path, images):
  write_run(tmp_path, steps=(3, 5))
  assert load(tmp_path).step == 5
  for path in (tmp_path / "checkpoints" / "5").rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  assert load(tmp_path).step == 3
  assert (tmp_path / "checkpoints" / "5").exists()  # looking changes nothing


def test_the_best_checkpoint_can_be_asked_for(tmp_path):
  write_run(tmp_path, steps=(3, 5))
  with pytest.raises(UserError, match="no evaluated checkpoint"):
    load(tmp_path, checkpoint="best")
  scores = [{"step": step, "eval/ema_saol_top1": score} for step, score in ((3, 0.9), (5, 0.8))]
  (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in scores))
  assert load(tmp_path, checkpoint="best").step == 3


def test_the_program_does_not_grow_with_the_number_of_classes_that_are_named(run):
  """The network is in it twice, which the compiler merges; once per class, it took minutes."""

  def convolutions(top_k: int) -> int:
    predictor = load(run.folder, top_k=top_k)
    images = np.zeros((predictor.batch_size, 32, 32, 3), np.uint8)
    traced = predictor._forward.trace(predictor._variables, images)
    return str(traced.jaxpr).count("conv_general_dilated")

  assert convolutions(1) == convolutions(3) > 0


def test_looking_warns_of_nothing(run, caplog):
  load(run.folder)
  assert not [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def _without(name):
  return lambda folder: (folder / name).unlink()


def _damaged(name, text):
  return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
  ("harm", "message"),
  [
    (shutil.rmtree, "copy does not exist; expected the workdir of a run"),
    (_without("config.json"), "no config.json.*--mode=train"),
    (_damaged("config.json", "{"), "config.json is not readable"),
    (_damaged("config.json", "null"), "config.json is not readable"),
    (_damaged("config.json", '{"model": []}'), "config.json is not readable"),
    (_without("model.json"), "no model.json.*training command again"),
    (_damaged("model.json", '{"class_names": []}'), "model.json is damaged"),
    (_damaged("model.json", "[]"), "model.json is damaged"),
    (lambda folder: shutil.rmtree(folder / "checkpoints"), "has no checkpoints; train first"),
  ],
)
def test_what_is_missing_is_named(run, tmp_path, harm, message):
  folder = tmp_path / "copy"
  shutil.copytree(run.folder, folder)
  harm(folder)
  with pytest.raises(UserError, match=message):
    load(folder)


def test_a_file_is_no_run(run):
  with pytest.raises(UserError, match=r"model.json is a file; expected a folder"):
    load(run.folder / "model.json")


@pytest.mark.parametrize(
  ("options", "message"),
  [({"top_k": 0}, "top_k=0"), ({"batch_size": 0}, "batch_size=0"), ({"dtype": "int8"}, "int8")],
)
def test_bad_options_are_named(run, options, message):
  with pytest.raises(UserError, match=message):
    load(run.folder, **options)
