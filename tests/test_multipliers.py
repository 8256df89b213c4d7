"""Learning rates by path: rules, updates as PyTorch's parameter groups make them, frozen parts."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saol_jax.checkpoint import Checkpoints
from saol_jax.config import resolve
from saol_jax.data.loader import Loader
from saol_jax.errors import UserError
from saol_jax.experiment import Experiment
from saol_jax.multipliers import Multipliers
from saol_jax.train_step import make_loss_fn
from tests.support import assert_identical, tiny_config
from tests.test_optimizer import (
  adamw,
  gradients,
  make_optimizer,
  optimizer_config,
  start,
  torch_sgd,
)


def factors(text, params=None):
  """Factor by path."""
  rules = Multipliers.parse(text)
  leaves = jax.tree.leaves_with_path(start() if params is None else params)
  return {jax.tree_util.keystr(p, simple=True, separator="/"): rules.factor(p) for p, _ in leaves}


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("", {}),
    ("conv=0.1", {"conv/kernel": 0.1}),
    ("norm = 0,", {"norm/bias": 0, "norm/scale": 0}),
    ("*/bias=2", {"linear/bias": 2, "norm/bias": 2}),
    ("*=0, linear=1e1, */bias=3", {"conv/kernel": 0, "linear/kernel": 10, "norm/scale": 0}),
    ("[cl]*/kernel=.5", {"conv/kernel": 0.5, "linear/kernel": 0.5}),
    ("nor=7", {}),  # a path is not cut inside a name
  ],
)
def test_the_last_rule_that_matches_counts(text, expected):
  if "*/bias=3" in text:
    expected = {**expected, "linear/bias": 3, "norm/bias": 3}
  everything = dict.fromkeys(factors(""), 1.0)
  assert factors(text) == everything | expected


def test_lists_of_layers_have_their_number_in_the_path():
  params = {"stages": [[np.zeros(1)], [np.zeros(1), np.zeros(1)]]}
  assert factors("stages/1=0", params) == {"stages/0/0": 1, "stages/1/0": 0, "stages/1/1": 0}


@pytest.mark.parametrize("text", ["conv", "=1", "conv=", "conv=x", "conv=-1", "conv=nan", "a=inf"])
def test_a_rule_that_cannot_be_read_is_named(text):
  with pytest.raises(UserError, match=rf"cannot read '{text}'; expected PATTERN=FACTOR"):
    Multipliers.parse(f"norm=1,{text}")


def test_a_rule_that_matches_nothing_names_close_paths():
  with pytest.raises(UserError, match=r"'liner/kernel' matches no .*such as linear/kernel"):
    Multipliers.parse("norm=0,liner/kernel=0").check(start())
  with pytest.raises(UserError, match=r"'backbone' matches no .*such as conv, linear, norm\."):
    Multipliers.parse("backbone=0").check(start())
  with pytest.raises(UserError, match="freezes every parameter"):
    Multipliers.parse("*=0").check(start())
  Multipliers.parse("").check(start())
  with pytest.raises(UserError, match=r"'bakbone' matches no .*such as backbone"):
    Experiment(resolve(tiny_config(optimizer__multipliers="bakbone=0")))


def test_description_counts_parameters():
  # 72 in the convolution, 20 + 5 in the linear layer, 4 + 4 in the norm.
  found = Multipliers.parse("conv=0,linear=0.1").describe(start())
  assert found == "72 parameters frozen, 25 parameters x 0.1, 8 parameters x 1"


@pytest.mark.parametrize(("name", "update"), [("sgd", torch_sgd), ("adamw", adamw)])
def test_updates_are_those_of_parameter_groups(name, update):
  """Five steps of each array with its own rate, decay included; the norm stays as it is."""
  text = "conv=0.1, linear/kernel=3, norm=0"
  optimizer = make_optimizer(
    optimizer_config(name=name, momentum=0.8, weight_decay=0.1, multipliers=text),
    lambda count: 0.02 * (count + 1),
  )
  params = jax.tree.map(jnp.float32, start())
  state = optimizer.init(params)
  for _ in range(5):
    updates, state = optimizer.update(gradients(params), state, params)
    params = jax.tree.map(jnp.add, params, updates)

  by_path = factors(text)

  def one(path, p):
    factor = by_path[jax.tree_util.keystr(path, simple=True, separator="/")]
    memory = {}
    for step in range(5):
      decay = 0.1 if path[-1].key == "kernel" else 0
      p = update(p, gradients(p), memory, step, factor * 0.02 * (step + 1), decay)
    return p

  expected = jax.tree.map_with_path(one, start())
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), params, expected
  )
  assert_identical(params["norm"], jax.tree.map(np.float32, start()["norm"]))
  moments = {"sgd": 1, "adamw": 2}[name]
  sizes = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)
  assert sizes == moments * (72 + 25)  # nothing is kept for the norm


def test_frozen_gradients_do_not_count_when_clipping():
  def first_step(multipliers, params):
    optimizer = make_optimizer(
      optimizer_config(clip_norm=2.0, momentum=0.0, weight_decay=0.0, multipliers=multipliers),
      lambda count: 1.0,
    )
    return optimizer.update(gradients(params), optimizer.init(params), params)[0]

  params = jax.tree.map(jnp.float32, start())
  frozen = first_step("conv=0", params)
  assert not frozen.pop("conv")["kernel"].any()
  del params["conv"]
  assert_identical(frozen, first_step("", params))


def test_the_backward_pass_leaves_frozen_parts_out():
  """Of the backbone's convolutions only the forward ones remain."""
  convolutions = {}
  for text in ("", "backbone=0"):
    config = resolve(tiny_config(optimizer__multipliers=text, loss__consistency_weight=0.0))
    experiment = Experiment(config)
    loss_fn = make_loss_fn(config, experiment.model)
    variables = experiment.abstract_state().variables
    image = jax.ShapeDtypeStruct((16, 32, 32, 3), jnp.float32)
    batch = {
      "image": image,
      "mixed": image,
      "target": jax.ShapeDtypeStruct((16, 10), jnp.float32),
      "box": jax.ShapeDtypeStruct((16, 4), jnp.int32),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))

    arguments = (variables.params, variables.batch_stats, batch, key)
    program = str(jax.make_jaxpr(jax.grad(loss_fn, has_aux=True))(*arguments))
    convolutions[text] = program.count("conv_general_dilated[")
  # Of 8 convolutions one for each kernel's gradient, and one for each input's but the image; and
  # those that bring gradients from the heads: 3 laterals, attention and mask.
  assert convolutions[""] - convolutions["backbone=0"] == (8 + 7) + 5


def test_frozen_parts_stay_their_statistics_follow_and_a_restored_run_is_the_same(tmp_path):
  text = "backbone=0.1, backbone/stem=0, backbone/stages/0=0"
  config = tiny_config(model__head="gap", optimizer__multipliers=text)
  experiment = Experiment(resolve(config))
  loader = Loader(experiment.train, config.batch_size, config.seed)

  def go_on(state):
    for k in range(int(state.step), 4):
      if k == 2:
        checkpoints.save(state)
      state, _ = experiment.train_step(state, experiment.put(loader[k]))
    return jax.device_get(state)

  start = jax.device_get(experiment.init())
  with contextlib.closing(Checkpoints(tmp_path, {})) as checkpoints:
    end = go_on(experiment.init())
    checkpoints.wait()
    assert_identical(go_on(checkpoints.restore(experiment.abstract_state(), 2)), end)

  before, after = start.variables.params["backbone"], end.variables.params["backbone"]
  assert_identical(after["stem"], before["stem"])
  assert_identical(after["stages"][0], before["stages"][0])
  changed = jax.tree.map(lambda a, b: bool((a != b).any()), start.variables, end.variables)
  assert all(jax.tree.leaves(changed.params["backbone"]["stages"][1]))
  assert all(jax.tree.leaves(changed.batch_stats["backbone"]))
