"""Scores as sums, so that every example counts once whatever the batches and devices are."""

import jax
import jax.numpy as jnp
import numpy as np

NUM_BINS = 15


def classification_sums(
  log_probs: jax.Array, labels: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
  """What a batch adds to the scores of a classifier.

  Args:
    log_probs: (B, K) float32, log of the predicted distributions.
    labels: (B,) int32.
    mask: (B,) float32: 1 for an example, 0 for padding.

  Returns:
    Sums over the batch, to be added up and given to `classification_scores`: `count`, `top1`,
    `top5` and `nll` scalars; `bin_count`, `bin_correct`, `bin_confidence` (15,), by confidence.
  """
  own = jnp.take_along_axis(log_probs, labels[:, None], axis=1)
  rank = label_ranks(log_probs, labels)
  top1, top5 = ((rank < k).astype(jnp.float32) * mask for k in (1, 5))
  confidence = jnp.where(mask > 0, jnp.exp(jnp.max(log_probs, axis=1)), 0.0)
  bins = jnp.clip(jnp.ceil(confidence * NUM_BINS).astype(jnp.int32) - 1, 0, NUM_BINS - 1)
  member = jax.nn.one_hot(bins, NUM_BINS, dtype=jnp.float32) * mask[:, None]
  return {
    "count": mask.sum(),
    "top1": top1.sum(),
    "top5": top5.sum(),
    "nll": jnp.where(mask > 0, -own[:, 0], 0.0).sum(),
    "bin_count": member.sum(0),
    "bin_correct": (member * top1[:, None]).sum(0),
    "bin_confidence": (member * confidence[:, None]).sum(0),
  }


def label_ranks(log_probs: jax.Array, labels: jax.Array) -> jax.Array:
  """How many classes are more probable than the label; of equals the first comes first.

  Args:
    log_probs: (B, K).
    labels: (B,) int32.

  Returns:
    (B,) int32: 0 where argmax gives the label. A NaN counts as more probable than all, but where
    the label itself has one its rank is beyond all, however few classes there are: it is wrong.
  """
  own = jnp.take_along_axis(log_probs, labels[:, None], axis=1)
  later = jnp.arange(log_probs.shape[1])[None] >= labels[:, None]
  rank = jnp.sum(~((log_probs < own) | ((log_probs == own) & later)), axis=1)
  return jnp.where(jnp.isnan(own[:, 0]), jnp.iinfo(jnp.int32).max, rank)


def confusion_counts(log_probs: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
  """(K, K) float32: how often each class (row) was taken for each (column).

  The arguments are those of `classification_sums`.
  """
  empty = jnp.zeros((log_probs.shape[1],) * 2, jnp.float32)
  return empty.at[labels, log_probs.argmax(axis=1)].add(mask)


def classification_scores(sums: dict[str, np.ndarray]) -> dict[str, float]:
  """Scores of a whole data set.

  Args:
    sums: added up over its batches.

  Returns:
    `top1`, `top5`: shares in [0, 1]. `nll`: mean negative log-likelihood in nats. `ece`: expected
    calibration error in [0, 1] over 15 equal bins of confidence, `sum_b n_b / n |accuracy_b -
    confidence_b|` (Guo et al. 2017).
  """
  sums = {name: np.asarray(value, np.float64) for name, value in sums.items()}
  count = sums["count"]
  gaps = np.abs(sums["bin_correct"] - sums["bin_confidence"]).sum()
  return {
    "top1": float(sums["top1"] / count),
    "top5": float(sums["top5"] / count),
    "nll": float(sums["nll"] / count),
    "ece": float(gaps / count),
  }
