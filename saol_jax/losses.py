"""The four losses of SAOL and one of ours, pure functions that return one number an example.

  L = L_SL + L_SS1 + L_SS2 + L_SD

SAOL (Kim et al. 2020), section 3.2 and 3.3. B batch, K classes, H x W the output grid.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from saol_jax import cutmix
from saol_jax.checks import check_same_shape
from saol_jax.heads import SpatialOutput

_ONE_HOT = ", (B, K); of class numbers make distributions by jax.nn.one_hot(labels, K)"
_REDUCE = ", (B, H, W); of a mask of pixels make one of cells by cutmix.reduce_mask(mask, (H, W))"


def saol_losses(
  spatial: SpatialOutput,
  gap_logits: jax.Array,
  targets: jax.Array,
  mask: jax.Array,
  unmixed: SpatialOutput | None = None,
  *,
  beta: float = 0.5,
  thin: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> dict[str, jax.Array]:
  """All losses of a batch that CutMix has mixed, unweighted.

  Args:
    spatial: SAOL's output for the mixed images, in training.
    gap_logits: (B, K), GAP-FC's.
    targets: (B, K), the mixed labels.
    mask: (B, height, width), 1 where a pixel was pasted, see `cutmix.box_mask`.
    unmixed: SAOL's output for the images before mixing, of a pass whose statistics are not kept;
      None leaves L_SS2 out.
    beta: of L_SD.
    thin: from arrays (B, ...) to whole pairs of their examples, of which alone `unmixed` is; the
      paper takes them all.

  Returns:
    (B,) each, in nats: `spatial` (L_SL), `mask` (L_SS1, where there is the branch for it),
    `consistency` (L_SS2, (B,) thinned), `distillation` (L_SD), and `concentration`, which is ours.
  """
  cells = cutmix.reduce_mask(mask, spatial.attention.shape[1:])
  values = {"spatial": soft_cross_entropy(spatial.log_probs, targets)}
  if spatial.mask_logits is not None:
    values["mask"] = mask_loss(spatial.mask_logits, cells)
  if unmixed is not None:
    source = cutmix.partner(unmixed.spatial_log_probs)  # what was pasted came from there
    values["consistency"] = consistency_loss(thin(spatial.spatial_log_probs), source, thin(cells))
  values["distillation"] = self_distillation_loss(spatial.log_probs, gap_logits, targets, beta)
  values["concentration"] = concentration_loss(spatial.attention)
  return values


def soft_cross_entropy(log_probs: jax.Array, targets: jax.Array) -> jax.Array:
  """L_SL: cross-entropy of a distribution with a soft label, `-sum_k t_k log y_k`.

  Args:
    log_probs: (B, K), log of the predicted distribution (never logits); -inf where it is 0.
    targets: (B, K), non-negative, rows sum to 1.

  Returns:
    (B,) in nats.
  """
  check_same_shape(_ONE_HOT, rank=2, log_probs=log_probs, targets=targets)
  log_probs, targets = _float32(log_probs), _float32(targets)
  return -jnp.sum(jnp.where(targets == 0, 0, targets * log_probs), axis=-1)


def mask_loss(mask_logits: jax.Array, mask: jax.Array) -> jax.Array:
  """L_SS1: can the network tell which cells were pasted? Mean binary cross-entropy over cells.

  Args:
    mask_logits: (B, H, W), any real numbers.
    mask: (B, H, W) in [0, 1], the pasted share of each cell; all 0 for an unmixed image.

  Returns:
    (B,) in nats.

  The paper leaves open what becomes of unmixed images and of cells that are pasted in part: here
  the former are negatives everywhere, and the latter have their share as a soft label.
  """
  check_same_shape(_REDUCE, rank=3, mask_logits=mask_logits, mask=mask)
  return optax.sigmoid_binary_cross_entropy(_float32(mask_logits), _float32(mask)).mean((1, 2))


def consistency_loss(
  spatial_log_probs: jax.Array, target_spatial_log_probs: jax.Array, mask: jax.Array
) -> jax.Array:
  """L_SS2: a pasted region must be read as it was read in the image that it came from.

    sum_ij M_ij KL(target_ij, prediction_ij) / max(sum_ij M_ij, 1)

  Args:
    spatial_log_probs: (B, H, W, K), of the mixed images.
    target_spatial_log_probs: (B, H, W, K), of the unmixed images that the regions were cut from,
      at the same places. A fixed target: no gradient flows into it.
    mask: (B, H, W) in [0, 1], the pasted share of each cell.

  Returns:
    (B,) in nats; 0 where nothing was pasted.

  The paper leaves open the direction of the divergence (the target comes first here, which is
  cross-entropy up to a constant), cells that are pasted in part (they weigh their share), and how
  the cells of a batch are averaged: here each image's by themselves, and then all images, so that
  unmixed ones count as 0 and a mixed one weighs the same whatever the size of its region.
  """
  check_same_shape(rank=4, prediction=spatial_log_probs, target=target_spatial_log_probs)
  check_same_shape(_REDUCE, rank=3, one_class_of_prediction=spatial_log_probs[..., 0], mask=mask)
  target, mask = jax.lax.stop_gradient(target_spatial_log_probs), _float32(mask)
  cells = _kl_divergence(target, spatial_log_probs)
  return jnp.sum(mask * cells, (1, 2)) / jnp.maximum(jnp.sum(mask, (1, 2)), 1.0)


def self_distillation_loss(
  saol_log_probs: jax.Array, gap_logits: jax.Array, targets: jax.Array, beta: float = 0.5
) -> jax.Array:
  """L_SD: teaches GAP-FC what SAOL knows, `KL(y_SAOL, y_GAP) + beta * CE(y_GAP, y)`.

  Args:
    saol_log_probs: (B, K). A fixed target: no gradient flows into it.
    gap_logits: (B, K), any real numbers.
    targets: (B, K), the (mixed) labels y.
    beta: weight of the cross-entropy with the label.

  Returns:
    (B,) in nats.
  """
  check_same_shape(rank=2, saol_log_probs=saol_log_probs, gap_logits=gap_logits)
  teacher = jax.lax.stop_gradient(saol_log_probs)
  student = jax.nn.log_softmax(_float32(gap_logits))
  return _kl_divergence(teacher, student) + beta * soft_cross_entropy(student, targets)


def concentration_loss(attention: jax.Array) -> jax.Array:
  """How far from even the attention is: its KL divergence from the uniform distribution.

    log(H W) - H(A) = sum_ij A_ij log A_ij + log(H W)

  Args:
    attention: (B, H, W), not negative, sums to 1 over the grid.

  Returns:
    (B,) in nats; 0 where all cells weigh the same, log(H W) where one has all the weight.

  Not in the paper, whose cross-entropy is content with attention on a few sure cells of the object.
  Against it, this one makes attention cover all cells in which the class is seen. Its worth on
  digit_scenes is in the README.
  """
  attention = _float32(attention)
  tiny = jnp.finfo(attention.dtype).tiny  # a weight that underflowed to 0 has a logarithm, too
  cells = attention * jnp.log(jnp.maximum(attention, tiny))
  return jnp.sum(cells, (1, 2)) + math.log(math.prod(attention.shape[1:]))


def _kl_divergence(target: jax.Array, prediction: jax.Array) -> jax.Array:
  """`sum_k p_k (log p_k - log q_k)` of log-distributions p, q (..., K), where 0 log 0 is 0."""
  target, prediction = _float32(target), _float32(prediction)
  parts = jnp.exp(target) * (target - prediction)
  return jnp.sum(jnp.where(jnp.isneginf(target), 0, parts), axis=-1)


def _float32(x: jax.Array) -> jax.Array:
  """X in float32, or as it is where that is more precise."""
  return x if x.dtype == jnp.float64 else x.astype(jnp.float32)
