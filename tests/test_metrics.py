import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saol_jax.metrics import NUM_BINS, classification_scores, classification_sums, label_ranks

sums_of = jax.jit(classification_sums)


def numpy_scores(log_probs, labels):
  """One example at a time, by sorting; float32 confidences, as the bins see them."""
  top1, top5, nll, bins = [], [], [], [[] for _ in range(15)]
  for row, label in zip(log_probs, labels, strict=True):
    order = sorted(range(len(row)), key=lambda k: (-row[k], k))
    top1.append(order[0] == label)
    top5.append(label in order[:5])
    nll.append(-float(row[label]))
    confidence = float(np.exp(row.max()))
    # Guo et al. 2017: bin m holds the confidences in ((m - 1) / M, m / M].
    member = [m for m in range(15) if m / 15 < confidence <= (m + 1) / 15]
    bins[member[0]].append((top1[-1], confidence))
  gaps = [len(b) / len(labels) * abs(np.subtract(*np.mean(b, 0))) for b in bins if b]
  return {"top1": np.mean(top1), "top5": np.mean(top5), "nll": np.mean(nll), "ece": sum(gaps)}


def predictions(count, num_classes, *, ties=False, seed=0):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(count, num_classes)) * 2
  if ties:
    logits = np.round(logits)
  log_probs = np.float32(logits - np.log(np.exp(logits).sum(1, keepdims=True)))
  return log_probs, rng.integers(0, num_classes, count).astype(np.int32)


def batches(log_probs, labels, batch_size):
  """Padded with rows that would count as right, were they not masked."""
  for start in range(0, len(labels), batch_size):
    part = slice(start, start + batch_size)
    missing = batch_size - len(labels[part])
    sure = np.full((missing, log_probs.shape[1]), -20, np.float32)
    sure[:, 0] = 0
    yield (
      np.concatenate([log_probs[part], sure]),
      np.concatenate([labels[part], np.zeros(missing, np.int32)]),
      np.concatenate([np.ones(batch_size - missing, np.float32), np.zeros(missing, np.float32)]),
    )


def accumulated(all_batches):
  totals = [jax.tree.map(np.float64, sums_of(*batch)) for batch in all_batches]
  return jax.tree.map(lambda *parts: sum(parts), *totals)


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("num_classes", [10, 3, 2])
def test_scores_equal_numpy_with_a_ragged_last_batch(num_classes, ties):
  log_probs, labels = predictions(230, num_classes, ties=ties)
  if ties:
    tied = np.sort(log_probs, 1)
    assert (tied[:, -1] == tied[:, -2]).any()
  sums = accumulated(batches(log_probs, labels, 64))
  assert sums["count"] == 230
  assert sums["bin_count"].sum() == 230
  scores = classification_scores(sums)
  expected = numpy_scores(log_probs, labels)
  assert scores["top1"] == expected["top1"]
  assert scores["top5"] == expected["top5"]
  assert (scores["top5"] == 1) == (num_classes < 5)
  np.testing.assert_allclose(scores["nll"], expected["nll"], rtol=1e-6)
  np.testing.assert_allclose(scores["ece"], expected["ece"], rtol=1e-5)


def test_any_batch_size_gives_the_same_counts():
  log_probs, labels = predictions(100, 10, seed=1)
  whole = accumulated(batches(log_probs, labels, 100))
  for batch_size in (7, 64, 128):
    parts = accumulated(batches(log_probs, labels, batch_size))
    for name in ("count", "top1", "top5", "bin_count", "bin_correct"):
      np.testing.assert_array_equal(parts[name], whole[name])
    for name in ("nll", "bin_confidence"):
      np.testing.assert_allclose(parts[name], whole[name], rtol=1e-6)


def test_scores_by_hand():
  probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.8, 0.2], [0.3, 0.7]])
  labels = np.array([0, 0, 1, 1], np.int32)
  sums = sums_of(jnp.float32(np.log(probs)), labels, jnp.ones(4))
  scores = classification_scores(sums)
  assert scores["top1"] == 0.75
  assert scores["top5"] == 1
  np.testing.assert_allclose(scores["nll"], -np.log([0.9, 0.8, 0.2, 0.7]).mean(), rtol=1e-6)
  # Bins of 0.9; of 0.8 twice, one right; of 0.7.
  np.testing.assert_allclose(scores["ece"], (0.1 + 2 * 0.3 + 0.3) / 4, rtol=1e-5)


def test_padding_may_hold_anything():
  log_probs = jnp.float32([[0, -20], [np.nan, np.nan], [-np.inf, 0]])
  sums = sums_of(log_probs, jnp.int32([0, 1, 0]), jnp.float32([1, 0, 0]))
  assert float(sums["count"]) == float(sums["top1"]) == 1
  assert classification_scores(sums)["nll"] == 0
  assert float(sums["bin_count"].sum()) == 1
  assert np.isfinite(classification_scores(sums)["ece"])


def test_a_constant_prediction_is_right_for_the_first_class_only():
  """A tie goes to the lowest class, as with argmax, and never to the label."""
  labels = jnp.arange(10, dtype=jnp.int32)
  sums = sums_of(jnp.full((10, 10), np.log(0.1), jnp.float32), labels, jnp.ones(10))
  assert float(sums["top1"]) == 1
  assert float(sums["top5"]) == 5


def test_rank_of_the_label():
  log_probs = jnp.array([[0.5, 0.2, 0.2, 0.1], [0.25] * 4, [jnp.nan] * 4])
  for label, expected in ((0, [0, 0]), (1, [1, 1]), (2, [2, 2]), (3, [3, 3])):
    ranks = label_ranks(log_probs, jnp.full(3, label))
    assert ranks[:2].tolist() == expected
    assert ranks[2] > 4  # never right, however few the classes


@pytest.mark.parametrize("num_classes", [3, 10])
def test_a_prediction_that_is_not_a_number_is_wrong(num_classes):
  nan = jnp.full((4, num_classes), np.nan, jnp.float32)
  sums = sums_of(nan, jnp.zeros(4, jnp.int32), jnp.ones(4))
  assert float(sums["top1"]) == float(sums["top5"]) == 0
  assert np.isnan(classification_scores(sums)["nll"])


def test_certainty_falls_into_the_last_bin():
  log_probs = jnp.float32([[0, -np.inf], [1e-7, -16], [np.log(0.5), np.log(0.5)]])
  sums = sums_of(log_probs, jnp.int32([0, 0, 0]), jnp.ones(3))
  expected = np.zeros(NUM_BINS)
  expected[14], expected[7] = 2, 1  # 0.5 lies in (7/15, 8/15]
  np.testing.assert_array_equal(sums["bin_count"], expected)
