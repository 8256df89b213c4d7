"""What a network of one's own may hold, and what would go wrong in silence is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from saol_jax import create_model
from saol_jax.backbones import create_backbone, registry
from saol_jax.config import resolve
from saol_jax.errors import UserError
from saol_jax.experiment import Experiment
from saol_jax.model import FunctionalModel, Variables
from saol_jax.norm import GhostBatchNorm
from saol_jax.train_step import _moving_average
from tests.support import tiny_config


class Network(nnx.Module):
  """One convolution; `prepare` gives it what is tried, and `use` uses that."""

  stage_channels, stage_strides = (8,), (4,)

  def __init__(self, rngs, prepare=lambda self, rngs: None, use=lambda self, x, train: x):
    self.conv = nnx.Conv(3, 8, (3, 3), strides=4, rngs=rngs)
    prepare(self, rngs)
    self.use = use

  def __call__(self, images, *, train):
    return (self.use(self, self.conv(images), train),)


def functional(prepare, use=lambda self, x, train: x):
  return FunctionalModel(
    lambda rngs: create_model(Network(rngs, prepare, use), 3, head="gap", rngs=rngs)
  )


def hold(**what):
  def prepare(self, rngs):
    for name, value in what.items():
      setattr(self, name, value(rngs))

  return prepare


@pytest.mark.parametrize(
  "array",
  [
    lambda rngs: np.ones(3, np.float32),
    lambda rngs: jnp.ones(3),
    lambda rngs: nnx.Variable(jnp.ones(3)),
    lambda rngs: nnx.Cache(jnp.ones(3)),
  ],
  ids=["NumPy", "JAX", "Variable", "Cache"],
)
def test_an_array_that_would_be_lost_is_named(array):
  with pytest.raises(UserError, match=r"model's backbone.blur is an array.*nnx.BatchStat\(array\)"):
    functional(hold(blur=array))


def test_a_batch_statistic_may_be_a_constant():
  model = functional(
    hold(factor=lambda rngs: nnx.BatchStat(jnp.full(8, 2.0))),
    lambda self, x, train: x * self.factor[...].reshape(1, 1, 1, -1),
  )
  plain = functional(hold())
  x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
  doubled, once = model.init(jax.random.key(0)), plain.init(jax.random.key(0))
  kernel = np.asarray(once.params["gap"]["linear"]["kernel"])
  np.testing.assert_array_equal(doubled.params["gap"]["linear"]["kernel"], kernel)
  bias = once.params["gap"]["linear"]["bias"].reshape(1, -1)
  twice, logits = (
    m.apply(v, x, train=False)[0].gap_logits - bias for m, v in ((model, doubled), (plain, once))
  )
  np.testing.assert_allclose(twice, 2 * logits, rtol=1e-5)


def test_statistics_that_are_no_floats_have_no_average():
  old, new = (
    Variables({}, {"table": jnp.arange(3) + i, "flag": jnp.bool(i), "mean": jnp.float32(i)})
    for i in (0, 1)
  )
  found = _moving_average(old, new, 0.9, jnp.int32(1000)).batch_stats
  assert found["mean"] == pytest.approx(0.1)
  np.testing.assert_array_equal(found["table"], [1, 2, 3])
  assert found["flag"]
  assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, old.batch_stats)


@pytest.mark.parametrize("stream", ["params", "dropout"])
def test_every_stream_of_random_numbers_is_seeded_anew(stream):
  model = functional(
    hold(rngs=lambda rngs: rngs),
    lambda self, x, train: jax.random.normal(self.rngs[stream](), x.shape) if train else x,
  )
  variables, x = model.init(jax.random.key(0)), jnp.zeros((1, 8, 8, 3))

  def logits(key):
    return model.apply(variables, x, train=True, key=jax.random.key(key))[0].gap_logits

  np.testing.assert_array_equal(logits(1), logits(1))
  assert (logits(1) != logits(2)).any()
  with pytest.raises(ValueError, match="needs a key"):
    model.apply(variables, x, train=True)


NORM = hold(norm=lambda rngs: nnx.BatchNorm(8, rngs=rngs))
DROPOUT = hold(dropout=lambda rngs: nnx.Dropout(0.5, rngs=rngs))
EVALUATION = {
  "norm, not told": (NORM, lambda self, x, train: self.norm(x), ["mean", "var"]),
  "norm": (NORM, lambda self, x, train: self.norm(x, use_running_average=not train), []),
  "norm, jitted": (
    NORM,
    lambda self, x, train: nnx.jit(lambda norm, x: norm(x, use_running_average=not train))(
      self.norm, x
    ),
    [],
  ),
  "ghost norm": (
    hold(norm=lambda rngs: GhostBatchNorm(8)),
    lambda self, x, train: self.norm(x, train=train),
    [],
  ),
  "dropout, not told": (DROPOUT, lambda self, x, train: self.dropout(x), ["count"]),
  "dropout": (DROPOUT, lambda self, x, train: self.dropout(x, deterministic=not train), []),
}


@pytest.mark.parametrize("case", EVALUATION)
def test_what_evaluation_changes_is_found(case):
  prepare, use, expected = EVALUATION[case]
  model = functional(prepare, use)
  x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
  changed = model.changed_by_evaluation(model.init(jax.random.key(0)), x)
  assert [name.rpartition(".")[2] for name in changed] == expected


def test_a_run_whose_scores_would_not_repeat_is_refused(monkeypatch):
  def built(*, rngs, dtype, norm_group):
    return Network(rngs, NORM, lambda self, x, train: self.norm(x))

  monkeypatch.setitem(registry._BUILDERS, "ours", built)
  with pytest.raises(UserError, match=r"'ours' changes backbone.norm.mean .* eval_batch_size"):
    Experiment(resolve(tiny_config("gap", model__name="ours")))


class WithoutStrides(Network):
  stage_strides = None


class OneNumber(Network):
  stage_channels = 8


@pytest.mark.parametrize(
  ("build", "message"),
  [
    (
      lambda *, rngs: Network(rngs),
      r"made by ours\(\*, rngs\), .* cannot be called with rngs,",
    ),
    (
      lambda *, rngs, **_: WithoutStrides(rngs),
      r"WithoutStrides.* is no backbone.* \(8,\), None",
    ),
    (lambda *, rngs, **_: OneNumber(rngs), r"is no backbone.* here: 8, \(4,\)"),
    (lambda **_: None, "None is no backbone"),
  ],
)
def test_a_builder_that_does_not_fit_is_told_what_is_expected(monkeypatch, build, message):
  monkeypatch.setitem(registry._BUILDERS, "ours", build)
  with pytest.raises(UserError, match=message):
    create_backbone("ours", rngs=nnx.Rngs(0))
