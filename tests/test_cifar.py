"""The real CIFAR-100, decoded once: its numbers, its recipe, and a short training."""

import numpy as np
import pytest

from configs.cifar_saol import get_config
from saol_jax.config import resolve
from saol_jax.data import ArraySource
from saol_jax.experiment import Experiment
from saol_jax.train import train_and_evaluate
from tests.support import records


@pytest.fixture
def config(data_dir):
  """The recipe with the data set's place; conftest keeps what was decoded for the next test."""
  config = get_config("cifar100,wrn_28_10")
  config.data.data_dir = str(data_dir / "tfds")
  return config


def test_data_set_is_complete(config):
  experiment = Experiment(resolve(config))
  train, test = experiment.train, experiment.source("test")
  assert train.images.shape == (50_000, 32, 32, 3)
  assert test.images.shape == (10_000, 32, 32, 3)
  assert np.bincount(train.labels).tolist() == [500] * 100
  assert np.bincount(test.labels).tolist() == [100] * 100
  assert train.info.class_names[:2] == ("apple", "aquarium_fish")
  assert len(train.info.class_names) == 100
  # One channel at a time, in integers: 51.2 million pixels in float64 would take 1.2 GB.
  for channel in range(3):
    counts = np.bincount(train.images[..., channel].ravel(), minlength=256)
    mean = counts @ np.arange(256) / counts.sum()
    std = np.sqrt(counts @ (np.arange(256) - mean) ** 2 / counts.sum())
    assert abs(train.info.mean[channel] - mean / 255) < 1e-4
    assert abs(train.info.std[channel] - std / 255) < 1e-4


def test_recipe_fits_the_data_set(config):
  experiment = Experiment(resolve(config))
  assert experiment.num_train_steps == round(300 * 50_000 / 128)
  state = experiment.abstract_state()
  assert state.variables.params["saol"]["classify"]["kernel"].shape == (3, 3, 384, 100)


def test_training_lowers_the_loss(config, tmp_path, monkeypatch):
  """30 steps of a small network through the recipe's own pipeline, and a tenth of the tests."""
  whole = Experiment.source

  def part(self, split):
    source = whole(self, split)
    if split == "train":
      return source
    return ArraySource(source.images[:1000], source.labels[:1000], source.info)

  monkeypatch.setattr(Experiment, "source", part)
  config.update_from_flattened_dict(
    {
      "batch_size": 64,
      "num_train_steps": 30,
      "log_every_steps": 5,
      "eval_every_steps": 30,
      "checkpoint_every_steps": 30,
      "eval_batch_size": 500,
      "figures": False,
      "model.name": "resnet8",
      "model.width": 8,
      "model.norm_group": 0,
      "cutmix.prob": 0.5,
      "optimizer.ema_decay": 0.0,
      "optimizer.name": "adamw",
      "optimizer.learning_rate": 3e-3,
    }
  )
  train_and_evaluate(config, tmp_path)
  losses = [r["train/loss_spatial"] for r in records(tmp_path) if "train/loss_spatial" in r]
  assert len(losses) == 6
  assert losses[-1] < losses[0] - 0.1
  assert records(tmp_path)[-1]["eval/saol_top1"] > 0.02  # chance is 0.01
