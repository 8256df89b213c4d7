import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from saol_jax.backbones import pooling
from tests.backbones.numerics import images, numpy_average_pool, numpy_max_pool

# size, stride, padding: of ResNets, VGG and NASNet's two, for maps of 7 x 10.
WINDOWS = [
  (3, 2, ((1, 1), (1, 1))),
  (2, 2, ((0, 0), (0, 0))),
  (3, 1, pooling.same_padding((1, 7, 10, 1), 3, 1)),
  (3, 2, pooling.same_padding((1, 7, 10, 1), 3, 2)),
]


def map_with_ties() -> np.ndarray:
  """(2, 7, 10, 3) after a ReLU: in most windows several cells are the maximum."""
  return np.maximum(images(height=7, width=10).round(), 0)


@pytest.mark.parametrize("side", [8, 9])
def test_max_pool_pads_with_minus_infinity(side):
  x = images(height=side, width=side + 3) - 10  # all negative: padding with 0 would win
  np.testing.assert_array_equal(pooling.max_pool(jnp.asarray(x)), numpy_max_pool(x))


@pytest.mark.parametrize(("size", "stride", "padding"), WINDOWS)
def test_max_pool_and_its_gradient_are_those_of_xla(size, stride, padding):
  """Ties included: both give all to the first cell in reading order."""
  x = jnp.asarray(map_with_ties())

  def native(x):
    return nnx.max_pool(x, (size, size), strides=(stride, stride), padding=padding)

  expected, pull_native = jax.vjp(native, x)
  found, pull = jax.vjp(lambda x: pooling.max_pool(x, size, stride, padding), x)
  np.testing.assert_array_equal(found, expected)
  np.testing.assert_array_equal(pooling.max_pool(x, size, stride, padding), expected)
  gradient = np.random.default_rng(1).normal(size=expected.shape).astype(np.float32)
  np.testing.assert_allclose(pull(gradient)[0], pull_native(gradient)[0], rtol=1e-6, atol=1e-6)


def test_gradient_of_max_pool_scatters_nothing():
  """What a GPU would add up in an order of its own is not in the program."""
  x = jnp.zeros((1, 8, 8, 2), jnp.bfloat16)
  program = jax.jit(jax.grad(lambda x: pooling.max_pool(x).sum())).lower(x).as_text()
  assert "scatter" not in program
  native = jax.jit(jax.grad(lambda x: nnx.max_pool(x, (3, 3), strides=(2, 2)).sum())).lower(x)
  assert "select_and_scatter" in native.as_text()


def test_max_pool_hides_nothing_that_is_not_a_number():
  """A run must see that it diverged, in training (with a gradient) and outside."""
  x = jnp.asarray(map_with_ties()).at[0, 3, 4, 1].set(jnp.nan)
  plain = pooling.max_pool(x)
  with_gradient, _ = jax.vjp(pooling.max_pool, x)
  assert np.isnan(plain).sum() == np.isnan(with_gradient).sum() > 0


@pytest.mark.parametrize("partial", [True, False])
def test_average_pool_of_odd_sides(partial):
  x = images(height=5, width=6)
  got = pooling.average_pool(jnp.asarray(x), 2, 2, "SAME" if partial else "VALID")
  np.testing.assert_allclose(got, numpy_average_pool(x, partial), rtol=1e-6)
