import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from saol_jax.config import default_config
from saol_jax.errors import UserError
from saol_jax.optimizer import OPTIMIZERS, SCHEDULES, decay_mask, make_optimizer, make_schedule


def optimizer_config(**changes):
  config = default_config().optimizer
  config.update(changes)
  return config


def rates(num_steps, **changes):
  """Learning rate at steps 0 to num_steps."""
  schedule = jax.jit(make_schedule(optimizer_config(learning_rate=0.4, **changes), num_steps))
  return np.array([schedule(jnp.int32(step)) for step in range(num_steps + 1)])


# Schedules, each at every step of a short run


def test_constant():
  np.testing.assert_allclose(rates(5, schedule="constant"), 0.4)


def test_cosine():
  expected = [0.2 * (1 + math.cos(math.pi * step / 8)) for step in range(9)]
  np.testing.assert_allclose(rates(8, schedule="cosine"), expected, atol=1e-7)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_warm_up_rises_in_equal_parts_and_never_starts_at_0(schedule):
  # 25 % of 12 steps: 1/4, 2/4, 3/4 of the peak, which the schedule then starts from.
  found = rates(12, schedule=schedule, warmup_share=0.25, milestones=(0.5, 0.75))
  rest = {
    "constant": [0.4] * 10,
    "cosine": [0.2 * (1 + math.cos(math.pi * step / 9)) for step in range(10)],
    "step": [0.4] * 3 + [0.08] * 3 + [0.016] * 4,
  }[schedule]
  np.testing.assert_allclose(found, [0.1, 0.2, 0.3, *rest], atol=1e-7)


def test_step_falls_at_each_milestone():
  found = rates(10, schedule="step", milestones=(0.3, 0.6, 0.8), decay_factor=0.5)
  np.testing.assert_allclose(found, [0.4] * 3 + [0.2] * 3 + [0.1] * 2 + [0.05] * 3)


def test_shares_of_the_run_are_rounded_to_whole_steps():
  """As floats, 29 % and 57 % of 100 are less than 29 and 57."""
  found = rates(100, schedule="step", milestones=(0.29, 0.57))
  assert np.flatnonzero(np.diff(found)).tolist() == [28, 56]
  found = rates(100, schedule="constant", warmup_share=0.29)
  assert np.flatnonzero(found > 0.4 - 1e-6)[0] == 29


def test_milestones_that_fall_on_one_step_all_count():
  # Of 2 steps, 0.6 and 0.7 both round to step 1.
  found = rates(2, schedule="step", milestones=(0.6, 0.7), decay_factor=0.5)
  np.testing.assert_allclose(found, [0.4, 0.1, 0.1])


def test_milestones_inside_the_warm_up_have_passed_when_it_ends():
  found = rates(10, schedule="step", warmup_share=0.4, milestones=(0.2, 0.6), decay_factor=0.5)
  np.testing.assert_allclose(found[4:], [0.2] * 2 + [0.1] * 5)


def test_one_cycle_peaks_at_30_percent_and_ends_at_almost_nothing():
  found = rates(20, schedule="one_cycle", warmup_share=0.5)  # which it ignores
  # Half cosines between 1/25 of the peak, the peak, and 1/10,000 of the start.
  low, high, end = 0.4 / 25, 0.4, 0.4 / 25 / 1e4
  up = [low + (high - low) * (1 - math.cos(math.pi * step / 6)) / 2 for step in range(6)]
  down = [end + (high - end) * (1 + math.cos(math.pi * step / 14)) / 2 for step in range(15)]
  np.testing.assert_allclose(found, up + down, rtol=1e-4, atol=1e-7)
  assert found.argmax() == 6


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_very_short_runs_have_finite_positive_rates(schedule, num_steps):
  for warmup_share in (0.0, 0.5, 0.9):  # the last is all of the run
    found = rates(num_steps, schedule=schedule, warmup_share=warmup_share)[:-1]
    assert np.isfinite(found).all()
    assert (found > 0).all()


def test_unknown_names_list_the_known_ones():
  with pytest.raises(UserError, match=r"optimizer.schedule='linear' .*cosine, step, one_cycle"):
    make_schedule(optimizer_config(schedule="linear"), 10)
  with pytest.raises(UserError, match=r"optimizer.name='lamb' .*sgd, adamw"):
    make_optimizer(optimizer_config(name="lamb"), optax.constant_schedule(0.1))


# Updates: parameters as a model has them, and the gradient of an uneven quadratic


def start():
  rng = np.random.default_rng(0)
  shapes = {"conv": {"kernel": (3, 3, 2, 4)}, "linear": {"kernel": (4, 5), "bias": (5,)}}
  shapes["norm"] = {"scale": (4,), "bias": (4,)}
  return jax.tree.map(
    lambda shape: rng.normal(size=shape), shapes, is_leaf=lambda x: isinstance(x, tuple)
  )


def gradients(params):
  return jax.tree.map(lambda p: 3 * p + p**3 + 0.5, params)


def run(steps=5, **changes):
  """Parameters after some steps with rates 0.02, 0.04, ..."""
  optimizer = make_optimizer(optimizer_config(**changes), lambda count: 0.02 * (count + 1))
  params = jax.tree.map(jnp.float32, start())
  state = optimizer.init(params)

  @jax.jit
  def step(params, state):
    updates, state = optimizer.update(gradients(params), state, params)
    return optax.apply_updates(params, updates), state

  for _ in range(steps):
    params, state = step(params, state)
  return params


def numpy_run(update, decay, decay_all):
  """The same; `update(p, g, memory, step, rate, decay)` returns the new p of one array."""

  def one(path, p):
    is_kernel = path[-1].key == "kernel"
    memory = {}
    for step in range(5):
      own_decay = decay if is_kernel or decay_all else 0
      p = update(p, gradients(p), memory, step, 0.02 * (step + 1), own_decay)
    return p

  return jax.tree_util.tree_map_with_path(one, start())


def torch_sgd(p, g, memory, step, rate, decay, momentum=0.8):
  """torch.optim.SGD(nesterov=True), as in its documentation."""
  g = g + decay * p
  memory["b"] = momentum * memory["b"] + g if step else g
  return p - rate * (g + momentum * memory["b"])


def adamw(p, g, memory, step, rate, decay, beta1=0.8, beta2=0.999, epsilon=1e-8):
  """torch.optim.AdamW, as in its documentation."""
  p = p - rate * decay * p
  memory["m"] = beta1 * memory.get("m", 0) + (1 - beta1) * g
  memory["v"] = beta2 * memory.get("v", 0) + (1 - beta2) * g**2
  m, v = memory["m"] / (1 - beta1 ** (step + 1)), memory["v"] / (1 - beta2 ** (step + 1))
  return p - rate * m / (np.sqrt(v) + epsilon)


@pytest.mark.parametrize("decay_all", [False, True], ids=["decay kernels", "decay all"])
@pytest.mark.parametrize(("name", "update"), [("sgd", torch_sgd), ("adamw", adamw)])
def test_five_steps_equal_torch(name, update, decay_all):
  assert name in OPTIMIZERS
  found = run(name=name, momentum=0.8, weight_decay=0.1, decay_all=decay_all)
  expected = numpy_run(update, 0.1, decay_all)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, expected)


def test_decay_reaches_kernels_only_unless_asked_for():
  options = {"name": "sgd", "steps": 1}
  plain = run(weight_decay=0.0, **options)
  changed = {}
  for decay_all in (False, True):
    decayed = run(weight_decay=0.1, decay_all=decay_all, **options)
    differs = jax.tree.map(lambda a, b: bool((a != b).any()), plain, decayed)
    changed[decay_all] = differs
  kernels = {"conv": {"kernel": True}, "linear": {"kernel": True, "bias": False}}
  assert changed[False] == {**kernels, "norm": {"scale": False, "bias": False}}
  assert all(jax.tree.leaves(changed[True]))


def test_learnt_inputs_of_a_vit_do_not_decay():
  params = {"class_token": jnp.ones((1, 4)), "positions": jnp.ones((3, 4))}
  params["patches"] = {"kernel": jnp.ones((2, 2, 3, 4)), "bias": jnp.ones(4)}
  spared = {"class_token": False, "positions": False}
  assert decay_mask(params) == spared | {"patches": {"kernel": True, "bias": False}}


@pytest.mark.parametrize("clip", [0.0, 2.0, 1e6])
def test_gradient_is_clipped_to_a_length_before_the_decay(clip):
  found = run(steps=1, name="sgd", momentum=0.5, weight_decay=0.1, clip_norm=clip)
  params = start()
  length = math.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(gradients(params))))
  assert 2 < length < 1e6
  factor = clip / length if clip == 2 else 1

  def expected(path, p):
    g = factor * gradients(p) + 0.1 * p * (path[-1].key == "kernel")
    return p - 0.02 * 1.5 * g  # the first step of Nesterov momentum: 1 + 0.5 times the gradient

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    found,
    jax.tree_util.tree_map_with_path(expected, params),
  )
