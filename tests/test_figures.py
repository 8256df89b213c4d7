"""Pictures during training: where they go, what they show, and that they never end a run."""

import json
import logging
import types

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from saol_jax import figures
from saol_jax.config import resolve
from saol_jax.experiment import Experiment
from saol_jax.finish import finish
from saol_jax.runlog import RunLog
from tests.support import tiny_config


@pytest.fixture(scope="module")
def experiment():
  return Experiment(resolve(tiny_config(figures=True)))


def state_at(step, experiment, seed):
  """A state with random weights that nothing needs to be compiled for."""
  rng = np.random.default_rng(seed)
  variables = jax.tree.map(
    lambda leaf: np.abs(rng.normal(0.1, 0.1, leaf.shape)).astype(leaf.dtype),
    experiment.abstract_state().variables,
  )
  return types.SimpleNamespace(step=step, variables=variables, ema=None)


@pytest.fixture(scope="module")
def finished(experiment, tmp_path_factory):
  """Workdir after two evaluations and the end, and what the end said."""
  workdir = tmp_path_factory.mktemp("run")
  log = RunLog(workdir, 0)
  log.write(12, {"eval/ema_saol_top1": 0.5, "time/elapsed_seconds": 1.0})
  source = experiment.source("test")
  with figures.Figures(experiment, source, workdir, log) as drawing:
    drawing.after_evaluation(state_at(6, experiment, 0))
    last = state_at(12, experiment, 1)
    drawing.after_evaluation(last)
    said = finish(experiment, last, source, drawing, log.records, workdir)
  log.close()
  return workdir, said


def test_every_evaluation_leaves_a_picture_of_the_same_images(finished):
  workdir, said = finished
  paths = sorted((workdir / "figures").iterdir())
  assert [path.name for path in paths] == ["step_06.png", "step_12.png"]
  first, last = (np.asarray(Image.open(path)) for path in paths)
  assert first.shape == last.shape
  same = (first == last).all(-1).mean()
  assert 0.5 < same < 0.999  # images and frames are the same, maps and words are not
  assert paths[1].read_bytes() == (workdir / "predictions.png").read_bytes()
  assert str(workdir / "predictions.png") in said


def test_tensorboard_has_them_too(finished):
  workdir, _ = finished
  images = EventAccumulator(str(workdir / "tensorboard")).Reload().Tensors("figures/maps")
  assert [image.step for image in images] == [6, 12]
  width, height, *_ = images[1].tensor_proto.string_val
  with Image.open(workdir / "figures" / "step_12.png") as drawn:
    assert (int(width), int(height)) == drawn.size


def test_a_picture_that_fails_is_a_warning(experiment, finished, tmp_path, monkeypatch, caplog):
  def full_disk(*_, **__):
    raise OSError("No space left on device")

  monkeypatch.setattr(figures, "draw_predictions", full_disk)
  source, state = experiment.source("test"), state_at(6, experiment, 0)
  records = [json.loads(line) for line in (finished[0] / "metrics.jsonl").open()]
  drawing = figures.Figures(experiment, source, tmp_path, None)
  with caplog.at_level(logging.WARNING, "saol_jax"), drawing:
    drawing.after_evaluation(state)
    said = finish(experiment, state, source, drawing, records, tmp_path)
  assert ["could not be drawn (OSError: No space" in line for line in caplog.messages] == [True] * 2
  assert said.startswith("Done.")
  assert "predictions.png" not in said


def test_images_are_chosen_without_the_seed_and_without_broken_ones(tmp_path):
  class OneBroken:
    def __len__(self):
      return 40

    def __getitem__(self, indices):
      return {"image": indices, "label": indices, "broken": indices == 30}

  chosen = figures.Figures(None, OneBroken(), tmp_path, None)._batch["image"]
  assert 30 in np.random.default_rng(0).permutation(40)[:16]
  assert len(chosen) == 15
  assert 30 not in chosen
  assert (np.diff(chosen) > 0).all()


@pytest.mark.parametrize("changes", [{"model__head": "gap"}, {"figures": False}])
def test_what_is_not_wanted_is_not_drawn(changes, tmp_path):
  """The baseline has no maps of SAOL."""
  baseline = Experiment(resolve(tiny_config(**{"figures": True, **changes})))
  with figures.Figures(baseline, None, tmp_path, None) as drawing:
    drawing.after_evaluation(None)
  assert not list(tmp_path.iterdir())
