import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from saol_jax.backbones.pyramidnet import PyramidNet
from saol_jax.backbones.shake_drop import ShakeDrop
from tests.backbones.counts import counted
from tests.backbones.numerics import (
  abstract,
  assert_maps_agree,
  assert_trains,
  build,
  forward,
  images,
  leaves,
  numpy_average_pool,
  numpy_conv,
  numpy_norm,
  relu,
)


def tiny(dropout=0.0, **options):
  # Widths 4, then 6.5 and 9 inside; Python rounds 6.5 to 6, and so does the reference.
  return PyramidNet(
    1, 5, stem_channels=4, strides=(1, 2), dropout=dropout, rngs=nnx.Rngs(0), **options
  )


def numpy_pyramidnet(x, state, rates=(0, 0)):
  """The authors' PyramidNet of bottlenecks, from the parameters alone."""
  x = numpy_norm(numpy_conv(x, state["stem/kernel"], 1), state, "norm")
  maps = []
  for stage, stride in enumerate((1, 2)):
    path = f"stages/{stage}/0"
    y = numpy_norm(x, state, f"{path}/first_norm")
    for i in range(3):
      y = relu(y) if i else y
      y = numpy_conv(y, state[f"{path}/convs/{i}/kernel"], stride if i == 1 else 1)
      y = numpy_norm(y, state, f"{path}/norms/{i}")
    y = y * (1 - rates[stage])
    x = numpy_average_pool(x, partial=True) if stride == 2 else x
    y[..., : x.shape[-1]] += x
    x = y
    maps.append(x)
  maps[-1] = relu(numpy_norm(x, state, "final_norm"))
  return maps


@pytest.mark.parametrize("dropout", [0, 0.5])
def test_pyramidnet_equals_numpy(dropout):
  model = build(lambda: tiny(dropout))
  x = images(height=9, width=7)
  # Linear decay: the first of two blocks has half the rate of the last.
  expected = numpy_pyramidnet(x, leaves(model), rates=(dropout / 2, dropout))
  assert [y.shape[-1] for y in expected] == [24, 36]
  assert_maps_agree(forward(model, jnp.asarray(x), train=False), expected)


def test_training():
  assert_trains(lambda **options: tiny(0.5, **options))


@pytest.mark.parametrize(
  ("name", "blocks", "alpha"), [("pyramidnet110_a64", 12, 64), ("pyramidnet200_a240", 22, 240)]
)
def test_counts_by_arithmetic(name, blocks, alpha):
  total, channels = 27 * 16 + 2 * 16, 16
  for i in range(3 * blocks):
    # Rounded from the exact width: no width of these two lies half way.
    inner = round(16 + alpha * (i + 1) / (3 * blocks))
    total += 2 * channels + channels * inner + 9 * inner**2 + 4 * inner**2 + 4 * inner + 8 * inner
    channels = 4 * inner
  assert counted(name, channels) == total + 2 * channels


def test_shake_drop_rate_grows_to_its_last():
  stages = abstract("pyramidnet110_a64", dropout=0.5).stages
  rates = [block.shake_drop.rate for stage in stages for block in stage]
  np.testing.assert_allclose(rates, 0.5 * np.arange(1, 37) / 36)


# ShakeDrop by itself.


def value_and_pullback(rate, x, dy, *, key=3, train=True):
  """y, and the gradient of x where that of y is dy."""

  @jax.jit
  def run(x, dy):
    def call(x):
      return ShakeDrop(rate, rngs=nnx.Rngs(dropout=key))(x, train=train)

    y, pull = jax.vjp(call, x)
    return y, *pull(dy)

  return map(np.asarray, run(jnp.asarray(x), jnp.asarray(dy)))


def disturbed(rate, seed=0, batch=2000):
  """The factors by which ShakeDrop multiplies a batch of values, and their gradients."""
  rng = np.random.default_rng(1)
  x, dy = rng.uniform(1, 2, (2, batch, 1, 2, 1)).astype(np.float32)
  y, dx = value_and_pullback(rate, x, dy, key=seed)
  return y / x, dx / dy


def test_shake_drop_disturbs_examples_as_the_paper_says():
  forward_factor, backward_factor = disturbed(0.3)
  for factor in (forward_factor, backward_factor):  # one for all of an example
    np.testing.assert_allclose(factor, np.broadcast_to(factor[:, :, :1], factor.shape), 1e-6)
  alpha, beta = forward_factor[:, 0, 0, 0], backward_factor[:, 0, 0, 0]
  kept = np.isclose(alpha, 1, atol=1e-6)
  np.testing.assert_array_equal(kept, np.isclose(beta, 1, atol=1e-6))
  assert kept.mean() == pytest.approx(0.7, abs=0.03)  # 2,000 draws: 1 % of error
  alpha, beta = alpha[~kept], beta[~kept]
  assert -1 <= alpha.min() < -0.95
  assert 0.95 < alpha.max() <= 1
  assert 0 <= beta.min() < 0.05
  assert 0.95 < beta.max() <= 1
  assert alpha.mean() == pytest.approx(0, abs=0.1)
  assert beta.mean() == pytest.approx(0.5, abs=0.05)
  assert abs(np.corrcoef(alpha, beta)[0, 1]) < 0.15  # drawn apart


def test_shake_drop_equals_numpy():
  # The keys as the layer draws them.
  stream = nnx.RngStream(nnx.Rngs(dropout=3).dropout(), tag="dropout")
  keys = jax.random.split(stream(), 3)
  gate = np.asarray(jax.random.bernoulli(keys[0], 0.5, (6, 1, 1, 1)), np.float64)
  alpha = np.asarray(jax.random.uniform(keys[1], (6, 1, 1, 1), minval=-1, maxval=1))
  beta = np.asarray(jax.random.uniform(keys[2], (6, 1, 1, 1)))
  assert set(np.unique(gate)) == {0, 1}
  x, dy = np.random.default_rng(0).normal(size=(2, 6, 3, 2, 4)).astype(np.float32)
  y, dx = value_and_pullback(0.5, x, dy)
  np.testing.assert_allclose(y, (gate + alpha - gate * alpha) * x, rtol=1e-5)
  np.testing.assert_allclose(dx, (gate + beta - gate * beta) * dy, rtol=1e-5)
  # In evaluation the expectation, E[alpha] being 0, with the gradient that it has.
  y, dx = value_and_pullback(0.25, x, dy, train=False)
  np.testing.assert_allclose(y, 0.75 * x, rtol=1e-6)
  np.testing.assert_allclose(dx, 0.75 * dy, rtol=1e-6)


def test_shake_drop_keeps_bfloat16():
  x = np.ones((4, 2, 2, 1), jnp.bfloat16)
  for train in (True, False):
    y, dx = value_and_pullback(0.5, x, x, train=train)
    assert y.dtype == dx.dtype == jnp.bfloat16


def test_shake_drop_follows_the_reseed_through_the_whole_network():
  # nnx.Rngs(0) has only the default stream: reseed must find the layers even so.
  model = build(lambda: tiny(0.9))
  x = jnp.asarray(images(batch=4, height=6, width=6))

  def last_map(seed):
    nnx.reseed(model, dropout=jax.random.key(seed))
    return np.asarray(forward(model, x, train=True)[-1])

  np.testing.assert_array_equal(last_map(1), last_map(1))
  assert (last_map(1) != last_map(2)).any()
