import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from saol_jax import cutmix

sample_boxes = jax.jit(
  cutmix.sample_boxes, static_argnums=(1, 2, 3), static_argnames=("alpha", "per_example")
)
mix = jax.jit(cutmix.mix)
reduce_mask = jax.jit(cutmix.reduce_mask, static_argnums=1)

# (4, 4): y_min, x_min, y_max, x_max: inside, at a corner, the whole image, nothing.
BOXES = np.array([[1, 2, 3, 6], [0, 4, 2, 7], [0, 0, 5, 7], [2, 3, 2, 5]], np.int32)


# Boxes


def box_distribution(height, width, alpha, prob):
  """Exact probability of each box of the reference code's rand_bbox; None stands for no area.

  The side ratio s = sqrt(1 - lambda) has P(s <= t) = P(1 - lambda <= t^2), and 1 - lambda is
  Beta(alpha, alpha) like lambda. The pixel lengths int(height * s) and int(width * s) change where
  s passes a multiple of 1 / height or 1 / width. Centres are uniform.
  """
  edges = sorted({Fraction(i, n) for n in (height, width) for i in range(n + 1)})
  table = {None: 1 - prob}
  for low, high in itertools.pairwise(edges):
    lengths = int(height * low), int(width * low)
    mass = np.diff(special.betainc(alpha, alpha, [float(low) ** 2, float(high) ** 2])).item()
    for centre in itertools.product(range(height), range(width)):
      (y_min, y_max), (x_min, x_max) = (
        np.clip([c - length // 2, c + length // 2], 0, size).tolist()
        for c, length, size in zip(centre, lengths, (height, width), strict=True)
      )
      box = (y_min, x_min, y_max, x_max) if y_min < y_max and x_min < x_max else None
      table[box] = table.get(box, 0) + prob * mass / (height * width)
  return table


@pytest.mark.parametrize(("alpha", "prob"), [(1.0, 1.0), (1.0, 0.5), (2.0, 1.0)])
def test_boxes_have_the_distribution_of_the_reference_code(alpha, prob):
  height, width, draws = 5, 8, 50_000
  expected = box_distribution(height, width, alpha, prob)
  assert abs(sum(expected.values()) - 1) < 1e-12
  boxes = sample_boxes(jax.random.key(0), draws, height, width, alpha=alpha, prob=prob)
  assert boxes.shape == (draws, 4)
  assert boxes.dtype == jnp.int32
  found = dict.fromkeys(expected, 0)
  for box in map(tuple, np.asarray(boxes).tolist()):
    found[box if box[0] < box[2] and box[1] < box[3] else None] += 1  # KeyError: impossible box
  # Pearson's statistic over the boxes that are frequent enough; mean n, standard deviation
  # sqrt(2 n). The key is fixed, so that this cannot fail by chance now and then.
  likely = {box: draws * p for box, p in expected.items() if draws * p > 5}
  statistic = sum((found[box] - mean) ** 2 / mean for box, mean in likely.items())
  assert len(likely) > 60
  assert abs(statistic - len(likely)) < 4 * np.sqrt(2 * len(likely))


def test_probability_0_mixes_nothing():
  np.testing.assert_array_equal(sample_boxes(jax.random.key(0), 6, 32, 32, prob=0.0), 0)


def test_boxes_are_uniform_and_in_every_image_by_default():
  """Lambda is uniform, that is Beta(1, 1), as in CutMix on ImageNet."""
  key = jax.random.key(0)
  expected = cutmix.sample_boxes(key, 64, 32, 32, alpha=1.0, prob=1.0)
  np.testing.assert_array_equal(cutmix.sample_boxes(key, 64, 32, 32), expected)


def test_one_box_a_batch_by_option():
  own = np.asarray(sample_boxes(jax.random.key(0), 6, 32, 32, prob=1.0))
  assert len({tuple(box) for box in own}) == 6
  keys = jax.random.split(jax.random.key(0), 2000)
  boxes = np.asarray(
    jax.jit(jax.vmap(lambda key: sample_boxes(key, 6, 32, 32, prob=0.3, per_example=False)))(keys)
  )
  assert boxes.shape == (2000, 6, 4)
  assert (boxes == boxes[:, :1]).all()
  mixed = boxes[:, 0, 2] > boxes[:, 0, 0]
  # Less than 1 % of the boxes have no pixel; 4 standard deviations.
  assert abs(mixed.mean() - 0.3) < 0.01 + 4 * np.sqrt(0.3 * 0.7 / 2000)
  assert len(np.unique(boxes[mixed, 0], axis=0)) > 500


# Masks


def test_box_mask_equals_slices():
  expected = np.zeros((4, 5, 7), np.float32)
  for mask, (y_min, x_min, y_max, x_max) in zip(expected, BOXES, strict=True):
    mask[y_min:y_max, x_min:x_max] = 1
  mask = cutmix.box_mask(jnp.asarray(BOXES), 5, 7)
  assert mask.dtype == jnp.float32
  np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
  ("size", "grid"),
  [
    ((8, 12), (4, 3)),  # divides
    ((5, 7), (3, 4)),  # does not
    ((6, 4), (6, 4)),  # nothing to do
    ((3, 4), (5, 6)),  # cells smaller than pixels
    ((5, 7), (1, 1)),
    ((224, 224), (14, 15)),
  ],
)
def test_reduce_mask_is_the_covered_share_of_each_cell(size, grid):
  (height, width), (h, w) = size, grid
  mask = np.random.default_rng(0).integers(0, 2, (3, height, width))
  mask[0] = 1  # a share above 1 would make L_SS1 a loss without a minimum
  # Split each pixel into h x w equal parts: then each cell holds whole parts, height x width.
  parts = mask.repeat(h, 1).repeat(w, 2).reshape(3, h, height, w, width)
  expected = parts.mean((2, 4))
  reduced = reduce_mask(jnp.float32(mask), grid)
  assert reduced.shape == (3, h, w)
  np.testing.assert_allclose(reduced, expected, atol=1e-6)
  np.testing.assert_allclose(np.mean(reduced, (1, 2)), mask.mean((1, 2)), rtol=1e-6)
  np.testing.assert_allclose(reduced[0], 1, rtol=5e-7)


def test_reduce_mask_of_a_box_by_hand():
  # 4 x 6 pixels to 2 x 4 cells of 2 x 1.5 pixels; the box covers row 1 and columns 1 and 2.
  mask = cutmix.box_mask(jnp.asarray([[1, 1, 2, 3]]), 4, 6)
  reduced = reduce_mask(mask, (2, 4))
  np.testing.assert_allclose(reduced[0], [[1 / 6, 1 / 2, 0, 0], [0, 0, 0, 0]], atol=1e-7)


# Mixing


def test_partner_pairs_neighbours_and_is_an_involution():
  np.testing.assert_array_equal(cutmix.partner(jnp.arange(6)), [1, 0, 3, 2, 5, 4])
  x = jnp.arange(4 * 3 * 2).reshape(4, 3, 2)
  swapped = cutmix.partner(x)
  np.testing.assert_array_equal(swapped, np.asarray(x)[[1, 0, 3, 2]])
  np.testing.assert_array_equal(cutmix.partner(swapped), x)


def test_an_odd_batch_has_no_pairs():
  with pytest.raises(ValueError, match="batch of 3 must be even"):
    cutmix.partner(jnp.zeros((3, 2)))


def test_mix_pastes_the_box_of_the_partner():
  images = np.random.default_rng(0).normal(size=(4, 5, 7, 3)).astype(np.float32)
  expected = images.copy()
  for i, (y_min, x_min, y_max, x_max) in enumerate(BOXES):
    place = slice(y_min, y_max), slice(x_min, x_max)
    expected[i][place] = images[i ^ 1][place]
  mixed, _ = mix(jnp.asarray(images), jnp.eye(4), jnp.asarray(BOXES))
  np.testing.assert_array_equal(mixed, expected)
  # The same for uint8 and bfloat16: pixels are chosen, never computed with.
  for dtype in (jnp.uint8, jnp.bfloat16):
    few = jnp.asarray(np.arange(4 * 5 * 7 * 3).reshape(4, 5, 7, 3) % 251, dtype)
    mixed, targets = mix(few, jnp.eye(4), jnp.asarray(BOXES))
    assert mixed.dtype == dtype
    assert targets.dtype == jnp.float32
    assert set(np.unique(mixed[0] == few[0])) == {True, False}


@pytest.mark.parametrize(("height", "width"), [(32, 32), (5, 7), (224, 200)])
def test_label_weight_is_exactly_the_pasted_share(height, width):
  batch, numbers = 16, np.arange(16)
  boxes = sample_boxes(jax.random.key(1), batch, height, width, prob=0.8)
  images = jnp.broadcast_to(jnp.float32(numbers)[:, None, None, None], (batch, height, width, 1))
  mixed, targets = mix(images, jnp.eye(batch), boxes)
  pasted = np.sum(np.asarray(mixed)[..., 0] == (numbers ^ 1)[:, None, None], (1, 2))
  weights = np.asarray(targets)[numbers, numbers ^ 1]
  assert 0 < np.count_nonzero(pasted) < batch  # some images are mixed and some are not
  for count, weight, own in zip(pasted.tolist(), weights, np.diag(targets), strict=True):
    share = Fraction(count, height * width)
    # One rounding of its own and one of 1 / (height * width), by which XLA multiplies.
    np.testing.assert_allclose(weight, float(share), rtol=2**-23)
    assert own == np.float32(1) - weight
    if (height, width) == (32, 32):  # a power of two: no rounding at all
      assert Fraction(float(weight)) == share
      assert Fraction(float(own)) == 1 - share
  others = np.asarray(targets).copy()
  others[numbers, numbers] = others[numbers, numbers ^ 1] = 0
  assert not others.any()


def test_mixed_soft_labels_equal_numpy():
  rng = np.random.default_rng(0)
  labels = rng.dirichlet(np.ones(5), size=4)
  _, targets = mix(jnp.zeros((4, 5, 7, 1)), jnp.float32(labels), jnp.asarray(BOXES))
  share = np.array([8, 6, 35, 0])[:, None] / 35
  np.testing.assert_allclose(
    targets, (1 - share) * labels + share * labels[[1, 0, 3, 2]], rtol=1e-6
  )
  np.testing.assert_allclose(np.sum(targets, 1), 1, rtol=1e-6)
