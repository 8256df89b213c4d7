import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saol_jax.losses import (
  concentration_loss,
  consistency_loss,
  mask_loss,
  self_distillation_loss,
  soft_cross_entropy,
)

# Plain NumPy, from the definitions


def log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def numpy_cross_entropy(log_probs, targets):
  return np.array([-sum(t * p) for p, t in zip(log_probs, targets, strict=True)])


def numpy_mask_loss(logits, mask):
  p = 1 / (1 + np.exp(-logits))
  cells = -(mask * np.log(p) + (1 - mask) * np.log(1 - p))
  return cells.reshape(len(cells), -1).mean(1)


def numpy_consistency(prediction, target, mask):
  result = []
  for b in range(len(mask)):
    total = sum(
      mask[b, i, j] * sum(np.exp(target[b, i, j]) * (target[b, i, j] - prediction[b, i, j]))
      for i, j in np.ndindex(mask.shape[1:])
    )
    result.append(total / max(mask[b].sum(), 1))
  return np.array(result)


def numpy_distillation(saol_log_probs, gap_logits, targets, beta=0.5):
  student = log_softmax(gap_logits)
  divergence = [sum(np.exp(p) * (p - q)) for p, q in zip(saol_log_probs, student, strict=True)]
  return np.array(divergence) + beta * numpy_cross_entropy(student, targets)


def numpy_concentration(attention):
  cells = attention.reshape(len(attention), -1)
  return np.array([np.log(len(row)) + sum(a * np.log(a) for a in row) for row in cells])


def distributions(rng, *shape):
  return log_softmax(2 * rng.normal(size=shape))


def _inputs(name):
  rng = np.random.default_rng(0)
  labels = np.exp(distributions(rng, 5, 7))
  mask = rng.uniform(size=(5, 4, 3)) * (rng.uniform(size=(5, 4, 3)) < 0.5)
  mask[0], mask[1] = 0, 1  # nothing pasted, everything pasted
  mask[2] = 0
  mask[2, 1, 1] = 0.25  # less than one cell: not blown up to count as one
  return {
    "soft_cross_entropy": (distributions(rng, 5, 7), labels),
    "mask_loss": (3 * rng.normal(size=(5, 4, 3)), mask),
    "consistency_loss": (distributions(rng, 5, 4, 3, 7), distributions(rng, 5, 4, 3, 7), mask),
    "self_distillation_loss": (distributions(rng, 5, 7), 3 * rng.normal(size=(5, 7)), labels),
    "concentration_loss": (rng.dirichlet(np.full(12, 20), 5).reshape(5, 4, 3),),
  }[name]


LOSSES = {
  "soft_cross_entropy": (soft_cross_entropy, numpy_cross_entropy),
  "mask_loss": (mask_loss, numpy_mask_loss),
  "consistency_loss": (consistency_loss, numpy_consistency),
  "self_distillation_loss": (self_distillation_loss, numpy_distillation),
  "concentration_loss": (concentration_loss, numpy_concentration),
}
# The argument that learns.
LEARNS = {
  "soft_cross_entropy": 0,
  "mask_loss": 0,
  "consistency_loss": 0,
  "self_distillation_loss": 1,
  "concentration_loss": 0,
}
every_loss = pytest.mark.parametrize("name", LOSSES)


@every_loss
def test_equals_numpy_per_example(name):
  loss, reference = LOSSES[name]
  inputs = _inputs(name)
  with jax.enable_x64(True):
    values = jax.jit(loss)(*map(jnp.asarray, inputs))
    assert values.dtype == jnp.float64
    np.testing.assert_allclose(values, reference(*inputs), rtol=1e-11, atol=1e-14)
  values = jax.jit(loss)(*map(jnp.float32, inputs))
  assert values.dtype == jnp.float32
  assert values.shape == (5,)
  np.testing.assert_allclose(values, reference(*inputs), rtol=2e-5, atol=1e-6)


@every_loss
def test_gradient_equals_finite_differences_of_numpy(name):
  loss, reference = LOSSES[name]
  inputs, position = _inputs(name), LEARNS[name]
  # Different weights: a gradient that lands on the wrong example shows.
  weights = np.arange(1.0, 6.0)
  with jax.enable_x64(True):
    gradient = jax.grad(lambda *x: jnp.sum(loss(*x) * jnp.asarray(weights)), position)
    gradient = np.asarray(jax.jit(gradient)(*map(jnp.asarray, inputs)))
  for place in np.ndindex(gradient.shape):
    ends = []
    for step in (1e-5, -1e-5):
      moved = [x.copy() for x in inputs]
      moved[position][place] += step
      # Only the example at hand changes.
      one = [x[place[0] : place[0] + 1] for x in moved]
      ends.append(weights[place[0]] * reference(*one)[0])
    np.testing.assert_allclose(gradient[place], (ends[0] - ends[1]) / 2e-5, atol=1e-7)


@every_loss
def test_bfloat16_is_computed_in_float32(name):
  loss, _ = LOSSES[name]
  rounded = [jnp.asarray(x, jnp.bfloat16) for x in _inputs(name)]
  values = loss(*rounded)
  assert values.dtype == jnp.float32
  np.testing.assert_array_equal(values, loss(*(x.astype(jnp.float32) for x in rounded)))


def test_what_is_impossible_costs_nothing_where_nobody_expects_it():
  certain = jnp.log(jnp.array([[1.0, 0.0, 0.0]]))
  label = jnp.exp(certain)
  cells, mask = certain[:, None, None], jnp.ones((1, 1, 1))
  logits = jnp.array([[0.3, 0.1, -0.2]])
  for loss, learns in (
    (lambda x: soft_cross_entropy(x, label), certain),
    (lambda x: consistency_loss(x[:, None, None], cells, mask), certain),
    (lambda x: self_distillation_loss(certain, x, label), logits),
  ):
    value, gradient = jax.value_and_grad(lambda x, loss=loss: loss(x).sum())(learns)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
  assert np.isposinf(soft_cross_entropy(certain, label[:, ::-1]))[0]


@pytest.mark.parametrize(
  ("name", "fixed"), [("consistency_loss", 1), ("self_distillation_loss", 0)]
)
def test_no_gradient_reaches_the_fixed_target(name, fixed):
  inputs = [jnp.float32(x) for x in _inputs(name)]
  gradients = jax.grad(lambda *x: jnp.sum(LOSSES[name][0](*x)), tuple(range(len(inputs))))(*inputs)
  assert not np.any(gradients[fixed])
  assert np.any(gradients[LEARNS[name]])


def test_cross_entropy_by_hand():
  log_probs = jnp.log(jnp.float32([[0.5, 0.25, 0.25], [0.125, 0.5, 0.375]]))
  targets = jnp.float32([[0, 1, 0], [0.5, 0.5, 0]])
  # In bits: 2, and half of 3 plus half of 1.
  np.testing.assert_allclose(soft_cross_entropy(log_probs, targets) / np.log(2), [2, 2], rtol=1e-6)


def test_mask_loss_is_finite_for_huge_logits():
  logits = jnp.float32([[[1e4, -1e4]], [[1e4, -1e4]], [[0, 0]]])
  mask = jnp.float32([[[1, 0]], [[0, 0.5]], [[0.5, 1]]])
  values, pull = jax.vjp(lambda x: mask_loss(x, mask), logits)
  # Right and sure: 0. Wrong and sure: the logit itself, and half of it. Undecided: one bit.
  np.testing.assert_allclose(values, [0, (1e4 + 5e3) / 2, np.log(2)], rtol=1e-6)
  (gradient,) = pull(jnp.ones(3))
  # (p - m) / cells.
  expected = [[[0, 0]], [[0.5, -0.25]], [[0, -0.25]]]
  np.testing.assert_allclose(gradient, expected, atol=1e-7)


def test_consistency_by_hand_counts_pasted_cells_and_takes_the_target_first():
  sure, even = np.log([0.75, 0.25]), np.log([0.5, 0.5])
  target = np.stack([sure, sure, even])[None, None]  # a grid of 1 x 3
  prediction = np.stack([even, even, sure])[None, None]
  forward = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)  # KL(sure, even)
  backward = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)  # KL(even, sure)
  for mask, expected in (
    ([1, 0, 0], forward),
    ([1, 1, 0], forward),
    ([0, 0, 1], backward),
    ([1, 0, 0.5], (forward + 0.5 * backward) / 1.5),
    ([0.5, 0, 0], 0.5 * forward),
    ([0, 0, 0], 0),
  ):
    value = consistency_loss(
      jnp.float32(prediction), jnp.float32(target), jnp.float32(mask)[None, None]
    )
    np.testing.assert_allclose(value, [expected], rtol=1e-5, err_msg=str(mask))


def test_consistency_is_zero_with_zero_gradient_where_nothing_was_pasted_or_nothing_differs():
  prediction, target, _ = (jnp.float32(x) for x in _inputs("consistency_loss"))
  ones, zeros = jnp.ones((5, 4, 3)), jnp.zeros((5, 4, 3))
  values, pull = jax.vjp(lambda x: consistency_loss(x, target, zeros), prediction)
  assert not np.any(values)
  assert not np.any(pull(jnp.ones(5))[0])
  np.testing.assert_array_equal(consistency_loss(target, target, ones), 0)


def test_consistency_is_finite_where_the_target_is_certain():
  """Log-probabilities of -2e4, as SAOL gives them for huge logits."""
  prediction = jnp.float32([[[[0, -2e4]]]])
  target = jnp.float32([[[[-2e4, 0]]]])
  value, gradient = jax.value_and_grad(
    lambda x: consistency_loss(x, target, jnp.ones((1, 1, 1)))[0]
  )(prediction)
  assert value == 2e4
  np.testing.assert_array_equal(gradient, [[[[0, -1]]]])


def test_concentration_runs_from_even_attention_to_a_single_cell_where_it_has_no_gradient():
  """As the softmax gives it: a cell that underflowed to 0 neither counts nor spoils a gradient."""

  def loss(logits):
    return concentration_loss(jax.nn.softmax(logits.reshape(1, -1)).reshape(logits.shape))[0]

  even, one = jnp.zeros((1, 4, 3)), jnp.zeros((1, 4, 3)).at[0, 1, 2].set(1e4)
  for logits, expected in ((even, 0), (one, np.log(12))):
    value, gradient = jax.value_and_grad(loss)(logits)
    np.testing.assert_allclose(value, expected, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
  # Two cells of four: half as many, one bit.
  half = jnp.float32([[[0.5, 0.5], [0, 0]]])
  np.testing.assert_allclose(concentration_loss(half) / np.log(2), [1], rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_distillation_gradient_in_closed_form(beta):
  """(q - p) + beta (q - y): q of GAP-FC, p of SAOL, y the label."""
  teacher, logits, targets = _inputs("self_distillation_loss")
  gradient = jax.grad(
    lambda x: self_distillation_loss(jnp.float32(teacher), x, jnp.float32(targets), beta).sum()
  )(jnp.float32(logits))
  q = np.exp(log_softmax(logits))
  np.testing.assert_allclose(gradient, q - np.exp(teacher) + beta * (q - targets), atol=2e-6)
  values = self_distillation_loss(
    jnp.float32(teacher), jnp.float32(logits), jnp.float32(targets), beta
  )
  np.testing.assert_allclose(
    values, numpy_distillation(teacher, logits, targets, beta), rtol=1e-5, atol=1e-6
  )


def test_distillation_is_finite_for_huge_logits_and_certain_teachers():
  value, gradient = jax.value_and_grad(
    lambda x: self_distillation_loss(jnp.float32([[0, -2e4]]), x, jnp.float32([[0, 1]]))[0]
  )(jnp.float32([[-1e4, 1e4]]))
  # The divergence is 2e4; the label is what GAP-FC says already.
  assert value == 2e4
  np.testing.assert_allclose(gradient, [[-1, 1]], atol=1e-6)
