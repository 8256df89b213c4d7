"""Ghost batch normalisation: statistics over fixed groups of examples."""

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

    values = x.astype(jnp.float32)
    channels = (1,) * (x.ndim - 1) + (-1,)
    if train:
      values = values.reshape(-1, group, *x.shape[1:])
      channels = (1, *channels)
      axes = tuple(range(1, values.ndim - 1))
      mean = values.mean(axes, keepdims=True)
      # One pass over memory; the clip keeps rounding from making it negative.
      var = jnp.maximum(jnp.square(values).mean(axes, keepdims=True) - jnp.square(mean), 0.0)
      self._update(mean, var)
    else:
      mean, var = self.mean[...].reshape(channels), self.var[...].reshape(channels)

    multiplier = jax.lax.rsqrt(var + self.epsilon) * self.scale[...].reshape(channels)
    normalised = (values - mean) * multiplier + self.bias[...].reshape(channels)
    return normalised.reshape(x.shape).astype(self.dtype)

  def _update(self, mean: jax.Array, var: jax.Array) -> None:
    """Moves the running statistics towards the mean over groups."""
    for running, batch in ((self.mean, mean), (self.var, var)):
      batch = jax.lax.stop_gradient(batch.reshape(-1, batch.shape[-1]).mean(0))
      # Not running[...] = : Flax compares shardings there, and asking a traced value for its own
      # walks the program so far, which took most of the time of tracing a deep network.
      running.set_value(self.momentum * running[...] + (1 - self.momentum) * batch)
