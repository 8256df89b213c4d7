"""Mixup: an image and its label are blended with those of another.

Mixup (Zhang et al. 2018, arXiv 1710.09412). The partner is the neighbour in a group of 2, as in
`cutmix`; the share is drawn for each example, where the reference code has one for the batch.

Beside CutMix it is for examples that CutMix leaves alone, which are blended with their partner as
it was before CutMix. So nothing is pasted into them: their mask is empty, L_SS1 sees "not pasted"
everywhere and L_SS2 nothing.
"""

import jax
import jax.numpy as jnp

from saol_jax.checks import check_mixing
from saol_jax.cutmix import partner, symmetric_beta


def sample_shares(key: jax.Array, batch_size: int, *, alpha: float, prob: float) -> jax.Array:
  """Draws the partner's share of each example.

  Args:
    key: random key.
    batch_size: B.
    alpha: of the Beta(alpha, alpha) of the share; positive. Zhang et al. use 0.2 on ImageNet.
    prob: probability that an example is blended at all.

  Returns:
    (B,) float32 in [0, 1]; 0: not blended.

  Raises:
    UserError: alpha or prob is out of range.
  """
  check_mixing(alpha=alpha, prob=prob)
  key_blended, key_share = jax.random.split(key)
  blended = jax.random.bernoulli(key_blended, prob, (batch_size,))
  return jnp.where(blended, symmetric_beta(key_share, alpha, (batch_size,)), 0.0)


def blend(images: jax.Array, targets: jax.Array, shares: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Blends images (B, H, W, C) and targets (B, K), B even, with their partners by shares (B,)."""

  def mix(x: jax.Array) -> jax.Array:
    share = shares.reshape(-1, *(1,) * (x.ndim - 1))
    return x + share * (partner(x) - x)

  return mix(images), mix(targets)
