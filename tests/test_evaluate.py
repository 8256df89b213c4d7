"""Scores of a whole split against a plain recomputation."""

import functools
import itertools

import jax
import numpy as np
import pytest

from saol_jax.config import resolve
from saol_jax.data import ArraySource
from saol_jax.data.augment import normalise
from saol_jax.evaluate import describe, evaluate
from saol_jax.experiment import Experiment
from tests.support import tiny_config


@pytest.fixture(scope="module")
def setting():
  """An experiment, a state whose average differs from it, and a split with a ragged last batch."""
  experiment = Experiment(resolve(tiny_config(eval_batch_size=50)))
  state = experiment.init()
  other = Experiment(resolve(tiny_config(eval_batch_size=50, seed=5))).init()
  state = state.replace(ema=other.variables)
  whole = experiment.source("test")
  source = ArraySource(
    images=whole.images[:333], labels=whole.labels[:333], info=whole.info, boxes=whole.boxes[:333]
  )
  return experiment, state, source


@functools.cache
def forward(experiment):
  """The model's output for all images of a source at once."""
  model, info = experiment.model, experiment.info

  @jax.jit
  def apply(variables, images):
    return model.apply(variables, normalise(images, info.mean, info.std), train=False)[0]

  return lambda variables, source: apply(variables, source.images)


def recomputed(experiment, variables, source) -> dict[str, float]:
  output = forward(experiment)(variables, source)
  results = {}
  for head, log_probs in (
    ("saol", output.spatial.log_probs),
    ("gap", jax.nn.log_softmax(output.gap_logits)),
  ):
    probs = np.exp(np.asarray(log_probs, np.float64))
    order = np.argsort(-probs, axis=1, kind="stable")
    hit = order == source.labels[:, None]
    results[f"{head}_top1"] = hit[:, :1].any(1).mean()
    results[f"{head}_top5"] = hit[:, :5].any(1).mean()
    results[f"{head}_nll"] = -np.log(probs[np.arange(len(probs)), source.labels]).mean()
    confidence, ece = probs.max(1), 0.0
    edges = np.linspace(0, 1, 16)
    for low, high in itertools.pairwise(edges):
      inside = (confidence > low) & (confidence <= high)
      if inside.any():
        gap = abs(hit[inside, 0].mean() - confidence[inside].mean())
        ece += inside.mean() * gap
    results[f"{head}_ece"] = ece
  return results


def test_every_example_counts_once_whatever_the_batch(setting):
  experiment, state, source = setting
  assert experiment.eval_batch_size == 52  # rounded up for four devices
  results = evaluate(experiment, state, source, "eval").scores
  expected = {
    f"eval/{prefix}{name}": value
    for prefix, variables in (("", state.variables), ("ema_", state.ema))
    for name, value in recomputed(experiment, variables, source).items()
  }
  assert results.keys() == expected.keys()
  for name, value in expected.items():
    assert results[name] == pytest.approx(value, abs=2e-5), name
  assert results["eval/saol_nll"] != results["eval/ema_saol_nll"]


def test_confusions_are_those_of_the_main_heads_moving_average(setting):
  experiment, state, source = setting
  sums = evaluate(experiment, state, source, "eval").sums
  assert list(sums) == ["saol", "gap"]
  output = forward(experiment)(state.ema, source)
  expected = np.zeros((10, 10))
  np.add.at(expected, (source.labels, np.asarray(output.spatial.log_probs).argmax(1)), 1)
  np.testing.assert_array_equal(sums["saol"]["confusion"], expected)
  assert "confusion" not in sums["gap"]


def test_another_batch_size_gives_the_same_counts(setting):
  experiment, state, source = setting
  results = evaluate(experiment, state, source, "eval").scores
  other = Experiment(resolve(tiny_config(eval_batch_size=333)))
  again = evaluate(other, state, source, "eval").scores
  for name, value in results.items():
    exact = name.endswith(("top1", "top5"))
    assert again[name] == (value if exact else pytest.approx(value, rel=1e-5)), name


def test_description_prints_shares_as_percent():
  results = {"eval/saol_top1": 0.9712, "eval/saol_top5": 1.0, "eval/saol_nll": 0.12345}
  assert describe(results) == "saol_top1 97.12 %  saol_nll 0.123"
