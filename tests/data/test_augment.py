import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from configs.digits_saol import get_config
from saol_jax.data import augment as lib
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
  assert results.dtype == np.uint8


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


# Colour


@pytest.fixture(scope="module")
def photos():
  """Smooth coloured images with all brightnesses, uint8."""
  rng = np.random.default_rng(0)
  small = rng.integers(0, 256, (8, 5, 4, 3), dtype=np.uint8)
  return np.stack(
    [np.asarray(Image.fromarray(x).resize((24, 20), Image.Resampling.BICUBIC)) for x in small]
  )


def pillow(change, photos, factor):
  return np.stack([np.asarray(change(Image.fromarray(x)).enhance(factor)) for x in photos])


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize(
  ("ours", "enhance", "tolerance"),
  [
    (lib._brighten, ImageEnhance.Brightness, 1.01),
    (lib._contrast, ImageEnhance.Contrast, 2.01),  # Pillow rounds the mean
    (lib._saturate, ImageEnhance.Color, 2.01),  # and the grey
    (lib._sharpen, ImageEnhance.Sharpness, 2.01),
  ],
)
def test_enhancements_are_pillows(photos, factor, ours, enhance, tolerance):
  result = np.asarray(ours(jnp.asarray(photos, jnp.float32), factor))
  assert np.abs(result - pillow(enhance, photos, factor)).max() < tolerance
  if factor == 1:
    np.testing.assert_allclose(result, photos, atol=1e-3)


def test_smooth_is_pillows_filter(photos):
  ours = np.asarray(lib._sharpen(jnp.asarray(photos, jnp.float32), 0.0))
  reference = [np.asarray(Image.fromarray(x).filter(ImageFilter.SMOOTH)) for x in photos]
  assert np.abs(ours - np.stack(reference)).max() <= 1


@pytest.mark.parametrize(
  ("name", "strength", "change"),
  [
    ("auto_contrast", 0.9, ImageOps.autocontrast),
    ("invert", 0.9, ImageOps.invert),
    ("posterize", 0.9, lambda image: ImageOps.posterize(image, 5)),
    ("posterize", 1.0, lambda image: ImageOps.posterize(image, 4)),
    ("posterize", 0.0, lambda image: ImageOps.posterize(image, 8)),
    ("solarize", 0.75, lambda image: ImageOps.solarize(image, 64)),
    ("solarize", 0.0, lambda image: ImageOps.solarize(image, 256)),
    ("identity", 0.9, lambda image: image),
  ],
)
def test_operations_are_pillows(photos, name, strength, change):
  ours = lib.RAND_AUGMENT[name](jnp.asarray(photos, jnp.float32), strength, 1.0)
  reference = np.stack([np.asarray(change(Image.fromarray(x))) for x in photos])
  assert np.abs(np.asarray(ours) - reference).max() <= 1


def test_solarize_add_brightens_the_dark_half(photos):
  x = photos.astype(int)
  expected = np.where(x < 128, np.minimum(x + 55, 255), x)
  ours = lib.RAND_AUGMENT["solarize_add"](jnp.asarray(photos, jnp.float32), 0.5, 1.0)
  np.testing.assert_array_equal(np.asarray(ours), expected)


def test_auto_contrast_of_one_colour_is_that_colour():
  plain = jnp.full((1, 4, 4, 3), 77.0)
  np.testing.assert_array_equal(lib.RAND_AUGMENT["auto_contrast"](plain, 0.5, 1.0), plain)


def test_colour_jitter_draws_factors_of_its_range_for_each_image(photos):
  plain = np.full((2000, 1, 1, 3), 100, np.uint8)
  jitter = jax.jit(lib.colour_jitter, static_argnames=("brightness", "contrast", "saturation"))
  options = {"contrast": 0.0, "saturation": 0.0}
  factors = np.asarray(jitter(jax.random.key(0), plain, brightness=0.4, **options))[:, 0, 0] / 100
  np.testing.assert_array_equal(factors[:, 0], factors[:, 2])
  assert 0.6 <= factors.min() < 0.61
  assert 1.39 < factors.max() <= 1.4
  assert abs(factors.mean() - 1) < 0.02
  strong = np.asarray(jitter(jax.random.key(0), plain, brightness=3.0, **options))
  assert strong.min() < 5  # factors from 0, not from -2
  assert strong.max() == 255
  # In order: brightness, contrast, saturation, each with a factor of its own.
  result = jitter(jax.random.key(1), photos, brightness=0.4, contrast=0.4, saturation=0.4)
  expected = jnp.asarray(photos, jnp.float32)
  for number, change in enumerate((lib._brighten, lib._contrast, lib._saturate)):
    key = jax.random.fold_in(jax.random.key(1), number)
    factor = jax.random.uniform(key, (8,), minval=0.6, maxval=1.4)
    expected = change(expected, factor[:, None, None, None])
  np.testing.assert_allclose(result, expected, atol=1e-3)


def test_lighting_has_the_covariance_of_its_components():
  grey = np.full((20_000, 1, 1, 3), 128, np.uint8)
  result = np.asarray(jax.jit(lib.pca_lighting)(jax.random.key(0), grey, std=0.1))[:, 0, 0] - 128
  vectors, values = np.array(lib._LIGHTING_VECTORS), np.array(lib._LIGHTING_VALUES)
  expected = vectors @ np.diag((0.1 * values) ** 2) @ vectors.T
  assert np.abs(np.cov(result.T) - expected).max() < 0.03 * expected.max()
  assert np.abs(result.mean(0)).max() < 0.1
  np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=2e-3)


def test_erasing_blanks_one_rectangle_of_the_stated_size():
  height, width = 40, 60
  images = np.ones((1000, height, width, 1), np.float32)
  erased = (
    np.asarray(jax.jit(lib.random_erasing)(jax.random.key(0), images, prob=0.25))[..., 0] == 0
  )
  hit = erased.any((1, 2))
  assert 200 < hit.sum() < 300
  shares, aspects = [], []
  for mask in erased[hit]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert mask.sum() == len(rows) * len(columns)
    shares.append(mask.mean())
    aspects.append(len(rows) / len(columns))
  assert 0.015 < min(shares) < 0.05
  assert 0.28 < max(shares) < 0.34
  assert min(aspects) < 0.5 < 2 < max(aspects)
  assert 0.8 < np.median(aspects) < 1.25  # that of a uniform aspect is 1.8
  # Every border is reached.
  assert all(edge.any() for edge in (erased[:, 0], erased[:, -1], erased[..., 0], erased[..., -1]))


SIGNED = ("colour", "contrast", "brightness", "sharpness")


def test_a_blend_of_the_highest_magnitude_is_by_a_tenth_or_nineteen_tenths():
  assert lib._enhancement(1.0, 1.0) == pytest.approx(1.9)
  assert lib._enhancement(1.0, -1.0) == pytest.approx(0.1)
  assert lib._enhancement(0.0, 1.0) == 1


@pytest.mark.parametrize("name", SIGNED)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_higher_magnitude_changes_more(photos, name, sign):
  """In the TensorFlow code magnitude 5 leaves the image as it is, and 0 changes it most."""
  images = jnp.asarray(photos, jnp.float32)
  change = [
    float(jnp.abs(lib.RAND_AUGMENT[name](images, strength, sign) - images).mean())
    for strength in (0.0, 0.3, 0.6, 0.9)
  ]
  assert change[0] < 1e-3
  assert change == sorted(change)
  assert change[3] > 1


def test_rand_augment_applies_each_operation_as_often(photos):
  image = np.broadcast_to(photos[:1], (1200, *photos.shape[1:]))
  run = jax.jit(lib.rand_augment, static_argnames=("layers", "magnitude"))
  results = np.asarray(run(jax.random.key(0), image, layers=1, magnitude=5.0))
  one = jnp.asarray(photos[:1], jnp.float32)
  single = {
    (name, sign): np.asarray(operation(one, 0.5, sign))[0]
    for name, operation in lib.RAND_AUGMENT.items()
    for sign in ((1.0, -1.0) if name in SIGNED else (1.0,))
  }
  counts = dict.fromkeys(single, 0)
  for result in results:
    (case,) = [case for case, x in single.items() if np.abs(result - x).max() < 1e-2]
    counts[case] += 1
  halves = [count for (name, _), count in counts.items() if name in SIGNED]
  wholes = [count for (name, _), count in counts.items() if name not in SIGNED]
  assert 35 < min(halves) < max(halves) < 90
  assert 80 < min(wholes) < max(wholes) < 160
  twice = np.asarray(run(jax.random.key(0), image, layers=2, magnitude=9.0))
  assert np.abs(twice - results).max() > 10
  assert twice.min() >= 0
  assert twice.max() <= 255


def test_each_option_reaches_its_step_and_the_steps_their_order(photos):
  """With values that are not the functions' usual ones, and no two the same."""
  config = get_config().data.copy_and_resolve_references()
  config.update(
    flip=True,
    crop_padding=2,
    randaugment_layers=1,
    randaugment_magnitude=4.0,
    brightness=0.1,
    contrast=0.2,
    saturation=0.3,
    lighting=0.05,
    erasing=0.4,
  )
  key, mean, std = jax.random.key(7), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
  of = lambda number: jax.random.fold_in(key, number)  # noqa: E731
  x = flip_and_crop(key, photos, flip=True, padding=2)
  x = lib.rand_augment(of(lib._RAND_AUGMENT), x, layers=1, magnitude=4.0)
  x = lib.colour_jitter(of(lib._COLOUR_JITTER), x, brightness=0.1, contrast=0.2, saturation=0.3)
  x = normalise(lib.pca_lighting(of(lib._LIGHTING), x, std=0.05), mean, std)
  expected = lib.random_erasing(of(lib._ERASING), x, prob=0.4)
  assert 0 < (expected != x).any((1, 2, 3)).sum() < len(photos)
  found = lib.augment(key, jnp.asarray(photos), config, mean=mean, std=std)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_all_together_and_each_option_alone(photos):
  """Options act only when they are on, and do not disturb the draws of one another."""
  config = get_config().data
  mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)

  def run(**options):
    changed = config.copy_and_resolve_references()
    changed.update(options)
    key = jax.random.key(7)
    return np.asarray(lib.augment(key, jnp.asarray(photos), changed, mean=mean, std=std))

  key, padding = jax.random.key(7), config.crop_padding
  plain = normalise(flip_and_crop(key, photos, flip=config.flip, padding=padding), mean, std)
  np.testing.assert_array_equal(run(), plain)
  options = {
    "randaugment_layers": 2,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "lighting": 0.1,
    "erasing": 1.0,
  }
  for name, value in options.items():
    assert np.abs(run(**{name: value}) - plain).max() > 0.01, name
  alone, beside = run(lighting=0.1), run(lighting=0.1, erasing=1.0)
  assert ((beside == alone) | (beside == 0)).all()
  assert np.isfinite(run(**options)).all()
  np.testing.assert_array_equal(run(**options), run(**options))
