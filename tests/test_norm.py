import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from saol_jax.norm import GhostBatchNorm, normalise_groups


def make(channels=5, **options):
  """A layer whose parameters and statistics are all different."""
  layer = GhostBatchNorm(channels, **options)
  layer.scale[...] = jnp.linspace(0.5, 2, channels)
  layer.bias[...] = jnp.linspace(-1, 1, channels)
  layer.mean[...] = jnp.linspace(3, 4, channels)
  layer.var[...] = jnp.linspace(0.2, 3, channels)
  return layer


def images(batch=6, channels=5):
  """Examples that differ in mean and spread, so that grouping matters."""
  rng = np.random.default_rng(0)
  spread, centre = rng.uniform(0.5, 3, (2, batch, 1, 1, channels))
  return rng.normal(size=(batch, 3, 4, channels)) * spread + centre


def numpy_norm(x, group, epsilon=1e-5):
  """Result, and mean and variance of every group, for the parameters of `make`."""
  groups = x.reshape(-1, group * np.prod(x.shape[1:-1]), x.shape[-1])
  mean, var = groups.mean(1), groups.var(1)
  result = (groups - mean[:, None]) / np.sqrt(var[:, None] + epsilon)
  result = result * np.linspace(0.5, 2, x.shape[-1]) + np.linspace(-1, 1, x.shape[-1])
  return result.reshape(x.shape), mean, var


@pytest.mark.parametrize("group", [1, 2, 3, 6])
def test_training_normalises_each_group_as_numpy_does(group):
  x = images()
  layer = make(group=group, momentum=0.7)
  expected, mean, var = numpy_norm(x, group)
  # The statistics move towards the mean over groups of the groups' own.
  running = {"mean": np.linspace(3, 4, 5), "var": np.linspace(0.2, 3, 5)}
  for _ in range(2):
    np.testing.assert_allclose(layer(jnp.float32(x), train=True), expected, atol=2e-5)
    for name, batch in (("mean", mean), ("var", var)):
      running[name] = 0.7 * running[name] + 0.3 * batch.mean(0)
      value = getattr(layer, name)[...]
      np.testing.assert_allclose(value, running[name], rtol=1e-5, err_msg=name)


def test_groups_are_consecutive_examples_and_do_not_touch_each_other():
  x = jnp.float32(images())
  base = make(group=2)(x, train=True)
  changed = make(group=2)(x.at[3].multiply(2.0), train=True)
  same = [bool((base[i] == changed[i]).all()) for i in range(6)]
  assert same == [True, True, False, False, True, True]


def test_evaluation_uses_the_running_statistics_and_leaves_them():
  x = images(batch=5)  # which the group does not divide: it does not matter here
  layer = make(group=2)
  before = [np.asarray(layer.mean[...]), np.asarray(layer.var[...])]
  result = layer(jnp.float32(x), train=False)
  expected = (x - np.linspace(3, 4, 5)) / np.sqrt(np.linspace(0.2, 3, 5) + 1e-5)
  expected = expected * np.linspace(0.5, 2, 5) + np.linspace(-1, 1, 5)
  np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(layer.mean[...], before[0])
  np.testing.assert_array_equal(layer.var[...], before[1])


@pytest.mark.parametrize("shape", [(6, 3, 4, 5), (12, 5)], ids=["maps", "vectors"])
@pytest.mark.parametrize("train", [True, False])
def test_without_groups_it_is_batch_normalisation_of_flax(train, shape):
  x = jnp.float32(np.random.default_rng(0).normal(1, 3, shape))
  ours = make(momentum=0.8)
  theirs = nnx.BatchNorm(5, momentum=0.8, epsilon=1e-5, rngs=nnx.Rngs(0))
  for name in ("scale", "bias", "mean", "var"):
    getattr(theirs, name)[...] = getattr(ours, name)[...]
  for _ in range(2):
    expected = theirs(x, use_running_average=not train)
    np.testing.assert_allclose(ours(x, train=train), expected, atol=1e-5)
  for name in ("mean", "var"):
    np.testing.assert_allclose(getattr(ours, name)[...], getattr(theirs, name)[...], rtol=1e-5)


def test_gradients_go_through_the_statistics_of_the_batch():
  x = images(batch=4)
  weights = np.random.default_rng(1).normal(size=x.shape)

  def loss(x):
    return jnp.sum(make(group=2)(x, train=True) * jnp.float32(weights))

  gradient = jax.jit(jax.grad(loss))(jnp.float32(x))
  rng = np.random.default_rng(2)
  for _ in range(10):
    direction = rng.normal(size=x.shape)
    ends = [np.sum(numpy_norm(x + step * direction, 2)[0] * weights) for step in (1e-6, -1e-6)]
    np.testing.assert_allclose(
      np.sum(gradient * direction), (ends[0] - ends[1]) / 2e-6, rtol=1e-3, atol=1e-3
    )
  # Adding a constant to a channel of a whole group changes nothing.
  np.testing.assert_allclose(
    np.asarray(gradient).reshape(2, 2, 3, 4, 5).sum((1, 2, 3)), 0, atol=1e-4
  )


@pytest.mark.parametrize("group", [1, 3, 6])
def test_written_out_gradient_is_what_differentiation_gives(group):
  """Of the images, the scale and the bias, for a loss that is not linear."""
  x = jnp.float32(images())

  def loss(norm, x, scale, bias):
    return jnp.sum(jnp.sin(norm(x.reshape(-1, group, *x.shape[1:]), scale, bias)))

  def differentiated(x, scale, bias):
    axes = tuple(range(1, x.ndim - 1))
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    channels = (1,) * (x.ndim - 1) + (-1,)
    scaled = (x - mean) / jnp.sqrt(var + 1e-3) * scale.reshape(channels)
    return scaled + bias.reshape(channels)

  def ours(x, scale, bias):
    return normalise_groups(x, scale, bias, 1e-3)[0]

  arguments = x, jnp.linspace(0.5, 2, 5), jnp.linspace(-1, 1, 5)
  expected = jax.grad(functools.partial(loss, differentiated), argnums=(0, 1, 2))(*arguments)
  found = jax.grad(functools.partial(loss, ours), argnums=(0, 1, 2))(*arguments)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_batch_that_groups_do_not_divide_is_refused_in_training():
  with pytest.raises(ValueError, match="a batch of 6 is not a multiple of norm_group=4"):
    make(group=4)(jnp.float32(images()), train=True)


def test_bfloat16_in_and_out_with_statistics_in_float32():
  x = jnp.asarray(images(), jnp.bfloat16)
  layer = make(group=3, dtype=jnp.bfloat16)
  result = layer(x, train=True)
  assert result.dtype == jnp.bfloat16
  expected, mean, var = numpy_norm(np.float64(x), 3)
  # One rounding, of the result: half a unit of 8 bits.
  np.testing.assert_allclose(np.float64(result), expected, rtol=2**-8, atol=1e-5)
  for name, start, batch in (
    ("mean", np.linspace(3, 4, 5), mean),
    ("var", np.linspace(0.2, 3, 5), var),
  ):
    value = getattr(layer, name)[...]
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, 0.9 * start + 0.1 * batch.mean(0), rtol=1e-5)


def test_constant_channels_stay_finite():
  """Where rounding makes E[x^2] - E[x]^2 negative, its root must not be NaN."""
  values = np.float32([1000.1, 3.3, -77.7, 1e-3, 0])
  x = jnp.broadcast_to(values, (4, 5, 7, 5))
  layer = make(group=4)
  gradient = jax.jit(jax.grad(lambda x: make(group=4)(x, train=True).sum()))(x)
  assert np.isfinite(layer(x, train=True)).all()
  assert np.isfinite(gradient).all()
  assert (np.asarray(layer.var[...]) >= 0).all()


def test_zero_scale_starts_as_nothing():
  layer = GhostBatchNorm(5, zero_scale=True)
  np.testing.assert_array_equal(layer(jnp.float32(images()), train=True), 0)
  gradient = nnx.grad(lambda layer, x: layer(x, train=True)[0].sum())(layer, jnp.float32(images()))
  assert np.abs(gradient["scale"][...]).min() > 0
