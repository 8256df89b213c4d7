import jax
import numpy as np
import pytest
from scipy import stats

from saol_jax import mixup


def test_shares_follow_the_beta_distribution_where_blended():
  shares = np.asarray(mixup.sample_shares(jax.random.key(0), 4000, alpha=0.4, prob=0.5))
  blended = shares[shares > 0]
  assert 0.47 < len(blended) / 4000 < 0.53
  assert stats.kstest(blended, stats.beta(0.4, 0.4).cdf).pvalue > 0.01
  assert not np.asarray(mixup.sample_shares(jax.random.key(0), 100, alpha=0.4, prob=0.0)).any()


def test_blend_is_the_weighted_mean_with_the_neighbour():
  rng = np.random.default_rng(0)
  images, targets = rng.random((4, 2, 3, 3), np.float32), rng.random((4, 5), np.float32)
  shares = np.array([0.0, 0.25, 1.0, 0.5], np.float32)
  mixed, labels = mixup.blend(images, targets, shares)
  for i, j in enumerate((1, 0, 3, 2)):
    a = shares[i]
    np.testing.assert_allclose(mixed[i], (1 - a) * images[i] + a * images[j], rtol=1e-6)
    np.testing.assert_allclose(labels[i], (1 - a) * targets[i] + a * targets[j], rtol=1e-6)


def test_an_odd_batch_has_no_pairs():
  with pytest.raises(ValueError, match="must be even"):
    mixup.blend(np.zeros((3, 2, 2, 3)), np.zeros((3, 2)), np.zeros(3))
