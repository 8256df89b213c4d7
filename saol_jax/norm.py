"""Ghost batch normalisation: statistics over fixed groups of examples."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx


class GhostBatchNorm(nnx.Module):
  """Batch normalisation whose statistics come from groups of `group` consecutive examples.

    y = (x - mean_g) / sqrt(var_g + epsilon) * scale + bias

  With groups that fit in one device the result does not depend on the device count, and the
  forward pass needs no communication. In training the running statistics move towards the mean of
  the groups' statistics; in evaluation they replace them.

  Ghost batch normalisation: Hoffer et al. 2017, "Train longer, generalize better". `group=None` is
  ordinary batch normalisation (Ioffe & Szegedy 2015) over the whole batch. The running variance is
  the biased one, as in Flax; PyTorch stores the unbiased one, larger by n / (n - 1) for n values a
  channel.
  """

  def __init__(
    self,
    num_features: int,
    *,
    group: int | None = None,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    zero_scale: bool = False,
    dtype: jnp.dtype = jnp.float32,
  ):
    """Makes the layer.

    Args:
      num_features: C, the number of channels.
      group: examples a group; must divide the training batch. None for the whole batch.
      momentum: share of the old running statistics kept at each training call.
      epsilon: added to the variance.
      zero_scale: start the scale at 0, for the norm that ends a residual branch.
      dtype: of the result. Statistics and parameters are always float32.
    """
    self.scale = nnx.Param((jnp.zeros if zero_scale else jnp.ones)(num_features, jnp.float32))
    self.bias = nnx.Param(jnp.zeros(num_features, jnp.float32))
    self.mean = nnx.BatchStat(jnp.zeros(num_features, jnp.float32))
    self.var = nnx.BatchStat(jnp.ones(num_features, jnp.float32))
    self.group = group
    self.momentum = momentum
    self.epsilon = epsilon
    self.dtype = dtype

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Normalises x.

    Args:
      x: (B, ..., C) of any floating type.
      train: use the groups' statistics and update the running ones.

    Returns:
      (B, ..., C) in `dtype`.

    Raises:
      ValueError: `train` and `group` does not divide B.
    """
    group = self.group or x.shape[0]
    if train and x.shape[0] % group:
      raise ValueError(f"a batch of {x.shape[0]} is not a multiple of norm_group={group}")

    scale, bias = self.scale[...], self.bias[...]
    if train:
      groups = x.reshape(-1, group, *x.shape[1:])
      normalised, mean, var = normalise_groups(groups, scale, bias, self.epsilon)
      self._update(mean, var)
      return normalised.reshape(x.shape).astype(self.dtype)

    multiplier = jax.lax.rsqrt(self.var[...] + self.epsilon) * scale
    channels = (1,) * (x.ndim - 1) + (-1,)
    values = x.astype(jnp.float32) - self.mean[...].reshape(channels)
    values = values * multiplier.reshape(channels) + bias.reshape(channels)
    return values.astype(self.dtype)

  def _update(self, mean: jax.Array, var: jax.Array) -> None:
    """Moves the running statistics towards the mean over groups, (G, C) each."""
    for running, groups in ((self.mean, mean), (self.var, var)):
      batch = jax.lax.stop_gradient(groups.mean(0))
      # Not running[...] = : Flax compares shardings there, and asking a traced value for its own
      # walks the program so far, which took most of the time of tracing a deep network.
      running.set_value(self.momentum * running[...] + (1 - self.momentum) * batch)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalise_groups(
  x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Normalises each group of examples by its own statistics.

    y = (x - mean_g) * r_g * scale + bias        r_g = 1 / sqrt(var_g + epsilon)

  The gradient is written out, since what differentiation makes of the line above, with the variance
  in one pass, goes through memory more often:

    dx = scale * r_g * (dy - mean_g(dy) - n_g * mean_g(dy * n_g))        n_g = (x - mean_g) * r_g

  Where rounding made a variance negative and it was clipped, that is not considered.

  Args:
    x: (G, B, ..., C) of any floating type, G groups.
    scale: (C,) float32.
    bias: likewise.
    epsilon: added to the variance.

  Returns:
    (G, B, ..., C) float32; mean and biased variance of each group, (G, C) float32, which have no
    gradient.
  """
  return _forward(x, scale, bias, epsilon)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple:
  values = x.astype(jnp.float32)
  mean = _mean(values)
  # One pass over memory; the clip keeps rounding from making it negative.
  var = jnp.maximum(_mean(jnp.square(values)) - jnp.square(mean), 0.0)
  inverse = jax.lax.rsqrt(var + epsilon)
  y = (values - mean) * (inverse * _as_channels(scale, x)) + _as_channels(bias, x)
  statistics = (part.reshape(len(x), -1) for part in (mean, var))
  return (y, *statistics), (x, mean, inverse, scale)


def _backward(epsilon: float, kept: tuple, gradients: tuple) -> tuple:
  del epsilon
  x, mean, inverse, scale = kept
  dy = gradients[0]
  normalised = (x.astype(jnp.float32) - mean) * inverse
  mean_dy, mean_dy_normalised = _mean(dy), _mean(dy * normalised)
  dx = dy - mean_dy - normalised * mean_dy_normalised
  dx = dx * (inverse * _as_channels(scale, x))
  examples = math.prod(x.shape[1:-1])
  over_groups = tuple(range(x.ndim - 1))
  dscale, dbias = (examples * part.sum(over_groups) for part in (mean_dy_normalised, mean_dy))
  return dx.astype(x.dtype), dscale, dbias


normalise_groups.defvjp(_forward, _backward)


def _mean(x: jax.Array) -> jax.Array:
  """Of each group and channel: (G, B, ..., C) to (G, 1, ..., C)."""
  return x.mean(tuple(range(1, x.ndim - 1)), keepdims=True)


def _as_channels(vector: jax.Array, x: jax.Array) -> jax.Array:
  return vector.reshape((1,) * (x.ndim - 1) + (-1,))
