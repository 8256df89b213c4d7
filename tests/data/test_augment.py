import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saol_jax.data.augment import flip_and_crop, normalise

augment = jax.jit(flip_and_crop, static_argnames=("flip", "padding"))

HEIGHT, WIDTH, PADDING = 6, 9, 3


def coordinates(batch):
  """Images whose pixels say where they are, 1-based (black is padding), and which image it is."""
  image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
  image[..., 0], image[..., 1] = np.mgrid[1 : HEIGHT + 1, 1 : WIDTH + 1]
  images = np.stack([image] * batch)
  images[..., 2] = 100 + np.arange(batch)[:, None, None] % 156  # 255: exact in any precision
  return images


def decode(result):
  """Mirrored or not, and shift in y and x, read off one pixel near the centre and its neighbour.

  With padding 3 of 6 and 9 pixels, the pixel at (3, 4) is never black.
  """
  left, right = result[3, 3].astype(int), result[3, 4].astype(int)
  if right[0] == 0:
    left, right = result[2, 3].astype(int), result[2, 4].astype(int)
    shift_y = right[0] - 1 - 2
  else:
    shift_y = right[0] - 1 - 3
  mirrored = left[1] == right[1] + 1
  column = WIDTH - 1 - 4 if mirrored else 4
  return bool(mirrored), shift_y, right[1] - 1 - column


def numpy_crop(image, mirrored, shift_y, shift_x):
  """Pads with black and crops at a shift; then mirrors."""
  padded = np.pad(image, ((PADDING,) * 2, (PADDING,) * 2, (0, 0)))
  top, left = PADDING + shift_y, PADDING + shift_x
  crop = padded[top : top + HEIGHT, left : left + WIDTH]
  return crop[:, ::-1] if mirrored else crop


@pytest.fixture(scope="module")
def augmented():
  images = coordinates(2000)
  return images, np.asarray(augment(jax.random.key(0), images, flip=True, padding=PADDING))


def test_every_image_is_a_mirrored_crop_of_its_padded_self(augmented):
  images, results = augmented
  assert results.dtype == np.uint8
  draws = set()
  for image, result in zip(images, results, strict=True):
    draw = decode(result)
    np.testing.assert_array_equal(result, numpy_crop(image, *draw))
    draws.add(draw)
  # Each of 2 x 7 x 7 was seen, and so compared; the zero fill with the shifts.
  assert len(draws) == 2 * (2 * PADDING + 1) ** 2


def test_draws_are_uniform_and_independent(augmented):
  draws = np.array([decode(result) for result in augmented[1]], int)
  count, shifts = len(draws), 2 * PADDING + 1
  assert abs(draws[:, 0].mean() - 0.5) < 4 * 0.5 / np.sqrt(count)
  for axis in (1, 2):
    share = np.bincount(draws[:, axis] + PADDING, minlength=shifts) / count
    assert abs(share - 1 / shifts).max() < 4 * np.sqrt(1 / shifts / count)
  correlation = np.corrcoef(draws.T)[np.triu_indices(3, 1)]
  assert abs(correlation).max() < 4 / np.sqrt(count)


def test_without_flip_nothing_is_mirrored():
  results = np.asarray(augment(jax.random.key(0), coordinates(100), flip=False, padding=PADDING))
  draws = {decode(result) for result in results}
  assert {mirrored for mirrored, _, _ in draws} == {False}
  assert len(draws) > 30  # of 49


def test_without_padding_images_stay_or_are_mirrored():
  images = np.random.default_rng(0).integers(0, 256, (64, 5, 7, 3), np.uint8)
  still = augment(jax.random.key(0), images, flip=False, padding=0)
  np.testing.assert_array_equal(still, images)
  results = np.asarray(augment(jax.random.key(0), images, flip=True, padding=0))
  same, mirrored = (
    (results == candidate).all((1, 2, 3)) for candidate in (images, images[:, :, ::-1])
  )
  assert (same ^ mirrored).all()
  assert 16 < mirrored.sum() < 48


def test_every_brightness_survives():
  image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
  results = np.asarray(augment(jax.random.key(1), image.repeat(4, 0), flip=True, padding=0))
  np.testing.assert_array_equal(np.sort(results.reshape(4, 256, 3), 1)[..., 0], [range(256)] * 4)


def test_other_keys_draw_otherwise():
  images = coordinates(20)
  results = [
    np.asarray(augment(jax.random.key(i), images, flip=True, padding=PADDING)) for i in (0, 0, 1)
  ]
  np.testing.assert_array_equal(results[0], results[1])
  assert (results[0] != results[2]).any((1, 2, 3)).mean() > 0.8


def test_normalise_equals_numpy_by_channel():
  images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
  mean, std = (0.5, 0.25, 0.125), (0.2, 0.3, 0.4)
  expected = (images / 255 - np.array(mean)) / np.array(std)
  result = normalise(jnp.asarray(images), mean, std)
  assert result.dtype == jnp.float32
  np.testing.assert_allclose(result, expected, atol=1e-6)
