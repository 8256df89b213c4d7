"""ShakeDrop: Yamada et al. 2018, "ShakeDrop regularization for deep residual learning"."""

import jax
import jax.numpy as jnp
from flax import nnx


class ShakeDrop(nnx.Module):
  """Disturbs a residual branch at random, and its gradient otherwise at random.

    training:   y_b = (g_b + (1 - g_b) alpha_b) x_b,  dx_b = (g_b + (1 - g_b) beta_b) dy_b
    evaluation: y_b = (1 - rate) x_b, the expectation

    g_b is 0 with probability rate, else 1; alpha_b is uniform in [-1, 1], beta_b in [0, 1]

  Equation 6 of the paper, its ranges for PyramidNet. All three are drawn anew for each example, as
  in google-research/sam; in owruby/shake-drop_pytorch an entire batch on a device shares g, which
  would make the result depend on the number of devices.
  """

  def __init__(self, rate: float, *, rngs: nnx.Rngs):
    """Makes the layer.

    Args:
      rate: share of the examples that are disturbed, in [0, 1).
      rngs: its `dropout` stream (or the default one) gives the first key; `nnx.reseed` finds the
        layer by the tag `dropout`, see `layers.dropout`.
    """
    self.rate = rate
    self.rngs = nnx.RngStream(rngs.dropout(), tag="dropout")

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """(B, H, W, C) of any floating type, to the same."""
    if not train:
      return x * (1 - self.rate)
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    keys = jax.random.split(self.rngs(), 3)
    kept = jax.random.bernoulli(keys[0], 1 - self.rate, shape)
    alpha = jax.random.uniform(keys[1], shape, jnp.float32, -1, 1)
    beta = jax.random.uniform(keys[2], shape, jnp.float32)
    return scale_apart(
      x, jnp.where(kept, 1, alpha).astype(x.dtype), jnp.where(kept, 1, beta).astype(x.dtype)
    )


@jax.custom_vjp
def scale_apart(x: jax.Array, forward: jax.Array, backward: jax.Array) -> jax.Array:
  """X * forward, with a gradient as if it were x * backward.

  Args:
    x: any shape.
    forward, backward: fixed factors that broadcast to x and have its type; they get no gradient.
  """
  del backward
  return x * forward


def _scale_apart_fwd(x, forward, backward):
  return x * forward, backward


def _scale_apart_bwd(backward, gradient):
  return gradient * backward, None, None


scale_apart.defvjp(_scale_apart_fwd, _scale_apart_bwd)
