"""Augmentation on the device, inside the training step.

Each function works on the whole batch with strengths of its own for every image, and needs no
traffic between devices: no gather with an offset an image, no loop that draws until it fits.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections

# Folded into the key for options that came later. Since split(key)[i] is fold_in(key, i) in JAX,
# they are far from what flip and crop split off.
_RAND_AUGMENT, _COLOUR_JITTER, _LIGHTING, _ERASING = range(1 << 16, (1 << 16) + 4)
# Of R, G and B in the brightness of a pixel (ITU-R BT.601), as in Pillow.
_LUMA = (0.299, 0.587, 0.114)
# Principal components of ImageNet's pixels on the scale of 0 to 255, and the square roots of their
# variances: Krizhevsky et al. 2012 use them, these digits are the Torch ResNet code's.
_LIGHTING_VALUES = (55.46, 4.794, 1.148)
_LIGHTING_VECTORS = (
  (-0.5675, 0.7192, 0.4009),
  (-0.5808, -0.0045, -0.8140),
  (-0.5836, -0.6948, 0.4203),
)


def augment(
  key: jax.Array,
  images: jax.Array,
  config: ml_collections.ConfigDict,
  *,
  mean: tuple[float, ...],
  std: tuple[float, ...],
) -> jax.Array:
  """All that a config wants done to training images, in this order, and their normalisation.

  Flip and crop, RandAugment, brightness, contrast, saturation, lighting, normalisation, erasing.

  Args:
    key: random key.
    images: (B, H, W, 3) uint8.
    config: `config.data`.
    mean, std: of the three channels, as a share of 255.

  Returns:
    (B, H, W, 3) float32, normalised.
  """
  # The first uses the key itself: options that came later do not change the runs without them.
  later = functools.partial(jax.random.fold_in, key)
  images = flip_and_crop(key, images, flip=config.flip, padding=config.crop_padding)
  if config.randaugment_layers:
    images = rand_augment(
      later(_RAND_AUGMENT),
      images,
      layers=config.randaugment_layers,
      magnitude=config.randaugment_magnitude,
    )
  if config.brightness or config.contrast or config.saturation:
    images = colour_jitter(
      later(_COLOUR_JITTER),
      images,
      brightness=config.brightness,
      contrast=config.contrast,
      saturation=config.saturation,
    )
  if config.lighting:
    images = pca_lighting(later(_LIGHTING), images, std=config.lighting)
  images = normalise(images, mean, std)
  if config.erasing:
    images = random_erasing(later(_ERASING), images, prob=config.erasing)
  return images


def normalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
  """Images (B, H, W, C) of 0 to 255, any type, to float32 `(x / 255 - mean) / std`, by channel."""
  mean, std = (jnp.asarray(x, jnp.float32).reshape(1, 1, 1, -1) for x in (mean, std))
  return (images.astype(jnp.float32) / 255 - mean) / std


def flip_and_crop(key: jax.Array, images: jax.Array, *, flip: bool, padding: int) -> jax.Array:
  """Mirrors half of the images, pads all with black and crops them back at a random place.

  The crop is a product with one-hot matrices, exact for the integers 0 to 255 in any precision: a
  gather with one offset an image would be slow on accelerators and would make XLA collect the
  images of all devices.

  Args:
    key: random key.
    images: (B, H, W, C) uint8.
    flip: mirror left to right with probability 0.5.
    padding: pixels of black on each side, before the crop.

  Returns:
    (B, H, W, C) uint8.
  """
  batch, height, width = images.shape[:3]
  key_flip, key_y, key_x = jax.random.split(key, 3)
  flipped = jax.random.bernoulli(key_flip, 0.5, (batch,)) & flip
  if not padding:
    return jnp.where(_per_image(flipped), images[:, :, ::-1], images)
  shift_y, shift_x = (
    jax.random.randint(k, (batch,), -padding, padding + 1) for k in (key_y, key_x)
  )
  rows = _selection(height, shift_y, jnp.zeros_like(flipped))
  columns = _selection(width, shift_x, flipped)
  pixels = jnp.einsum("bij,bjwc->biwc", rows, images.astype(jnp.float32))
  return jnp.einsum("bkw,biwc->bikc", columns, pixels).astype(jnp.uint8)


def _selection(size: int, shift: jax.Array, flipped: jax.Array) -> jax.Array:
  """(B, size, size) one-hot rows: output i reads input i + shift, mirrored where flipped.

  A row is all zero where the input lies outside the image.
  """
  index = jnp.arange(size)[None]
  index = jnp.where(flipped[:, None], size - 1 - index, index) + shift[:, None]
  return jax.nn.one_hot(index, size, dtype=jnp.float32)


def colour_jitter(
  key: jax.Array, images: jax.Array, *, brightness: float, contrast: float, saturation: float
) -> jax.Array:
  """Changes brightness, contrast and saturation, in this order, by factors of each image.

  A factor is uniform in [max(0, 1 - strength), 1 + strength]. As torchvision's ColorJitter, but
  that one shuffles the order, and rounds after each change.

  Args:
    key: random key.
    images: (B, H, W, 3) of 0 to 255, any type.
    brightness, contrast, saturation: strengths; 0 leaves as is.

  Returns:
    (B, H, W, 3) float32 in [0, 255].
  """
  images = images.astype(jnp.float32)
  changes = ((brightness, _brighten), (contrast, _contrast), (saturation, _saturate))
  for number, (strength, change) in enumerate(changes):
    if strength:
      low, high = max(0.0, 1 - strength), 1 + strength
      draws = (images.shape[0],)
      factor = jax.random.uniform(jax.random.fold_in(key, number), draws, minval=low, maxval=high)
      images = change(images, _per_image(factor))
  return images


def pca_lighting(key: jax.Array, images: jax.Array, *, std: float) -> jax.Array:
  """Adds to each image one colour, drawn along the principal components of ImageNet's pixels.

  Krizhevsky et al. 2012, section 4.1, who use a std of 0.1.

  Args:
    key: random key.
    images: (B, H, W, 3) of 0 to 255, any type.
    std: of the normal draw that multiplies each component.

  Returns:
    (B, H, W, 3) float32; not clipped, as in the Torch code, which adds it to floats.
  """
  draws = std * jax.random.normal(key, (images.shape[0], 3))
  components = jnp.array(_LIGHTING_VECTORS) * jnp.array([_LIGHTING_VALUES])
  colours = jnp.einsum("bj,cj->bc", draws, components, precision="highest")
  return images.astype(jnp.float32) + colours[:, None, None]


def random_erasing(key: jax.Array, images: jax.Array, *, prob: float) -> jax.Array:
  """Blanks a rectangle in some images.

  Zhong et al. 2020, with torchvision's ranges: a share of 0.02 to 0.33 of the image (there up to
  0.4), the logarithm of the aspect ratio uniform between those of 0.3 and 3.3 (there the ratio
  itself). Filled with 0, the mean colour once images are normalised, torchvision's default. Both
  draw until the rectangle fits; here one that does not fit is made narrower.

  Args:
    key: random key.
    images: (B, H, W, C) float32, normalised.
    prob: share of the images that lose a rectangle.

  Returns:
    (B, H, W, C) float32.
  """
  batch, height, width = images.shape[:3]
  key_erased, key_area, key_aspect, key_y, key_x = jax.random.split(key, 5)
  erased = jax.random.bernoulli(key_erased, prob, (batch,))
  area = height * width * jax.random.uniform(key_area, (batch,), minval=0.02, maxval=0.33)
  low, high = jnp.log(jnp.float32(0.3)), jnp.log(jnp.float32(3.3))
  aspect = jnp.exp(jax.random.uniform(key_aspect, (batch,), minval=low, maxval=high))

  def inside(key: jax.Array, side: jax.Array, size: int) -> jax.Array:
    """(B, size) bool, where the rectangle is along one dimension."""
    side = jnp.clip(jnp.round(side), 1, size)
    start = jnp.floor(jax.random.uniform(key, (batch,)) * (size - side + 1))
    places = jnp.arange(size, dtype=jnp.float32)[None]
    return (places >= start[:, None]) & (places < (start + side)[:, None])

  rows = inside(key_y, jnp.sqrt(area * aspect), height) & erased[:, None]
  columns = inside(key_x, jnp.sqrt(area / aspect), width)
  return jnp.where((rows[:, :, None] & columns[:, None])[..., None], 0.0, images)


def rand_augment(key: jax.Array, images: jax.Array, *, layers: int, magnitude: float) -> jax.Array:
  """Applies to each image `layers` operations, each drawn from `RAND_AUGMENT`.

  RandAugment (Cubuk et al. 2020), with the ranges of its TensorFlow code, each turned so that the
  effect rises with the magnitude: colour, contrast, brightness and sharpness are raised or lowered,
  by chance for each image, as in torchvision, where that code lowers them below magnitude 5 and
  raises them above. Those operations are left out that accelerators do badly: equalize (a
  histogram and a look-up for each pixel) and rotate, shear, translate (gathers). What is left is
  elementwise, or needs one mean, extreme or 3 x 3 average, so that XLA fuses all operations and the
  choice into few passes over the images.

  Args:
    key: random key.
    images: (B, H, W, 3) of 0 to 255, any type.
    layers: operations an image.
    magnitude: strength of all, 0 to 10.

  Returns:
    (B, H, W, 3) float32 in [0, 255].
  """
  images = images.astype(jnp.float32)
  for layer in range(layers):
    draws = (images.shape[0],)
    key_chosen, key_sign = jax.random.split(jax.random.fold_in(key, layer))
    chosen = jax.random.randint(key_chosen, draws, 0, len(RAND_AUGMENT))
    sign = _per_image(jax.random.rademacher(key_sign, draws, jnp.float32))
    results = [operation(images, magnitude / 10, sign) for operation in RAND_AUGMENT.values()]
    cases = [_per_image(chosen == number) for number in range(len(results))]
    cases = [jnp.broadcast_to(case, images.shape) for case in cases]
    images = jnp.select(cases, results)
  return images


def _per_image(x: jax.Array) -> jax.Array:
  """(B,) to (B, 1, 1, 1)."""
  return x[:, None, None, None]


def _blend(other: jax.Array, images: jax.Array, factor: jax.Array | float) -> jax.Array:
  """Images for factor 1, `other` for 0, and beyond them; clipped to [0, 255]."""
  return jnp.clip(other + factor * (images - other), 0, 255)


def _grey(images: jax.Array) -> jax.Array:
  """(B, H, W, 1) brightness."""
  return jnp.sum(images * jnp.array(_LUMA).reshape(1, 1, 1, 3), -1, keepdims=True)


def _brighten(images: jax.Array, factor: jax.Array | float) -> jax.Array:
  return _blend(jnp.zeros_like(images), images, factor)


def _contrast(images: jax.Array, factor: jax.Array | float) -> jax.Array:
  return _blend(_grey(images).mean((1, 2), keepdims=True), images, factor)


def _saturate(images: jax.Array, factor: jax.Array | float) -> jax.Array:
  return _blend(_grey(images), images, factor)


def _sharpen(images: jax.Array, factor: jax.Array | float) -> jax.Array:
  """Blends with Pillow's 3 x 3 SMOOTH, which leaves the outermost pixels as they are."""
  height, width = images.shape[1:3]
  parts = [
    images[:, y : height - 2 + y, x : width - 2 + x] * (5.0 if y == x == 1 else 1.0)
    for y in range(3)
    for x in range(3)
  ]
  smooth = images.at[:, 1:-1, 1:-1].set(sum(parts) / 13)
  return _blend(smooth, images, factor)


def _auto_contrast(images: jax.Array) -> jax.Array:
  """Stretches each channel to 0..255."""
  low, high = images.min((1, 2), keepdims=True), images.max((1, 2), keepdims=True)
  stretched = jnp.minimum((images - low) * (255 / jnp.maximum(high - low, 1e-6)), 255)
  return jnp.where(high > low, stretched, images)


def _posterize(images: jax.Array, strength: float) -> jax.Array:
  """Keeps the highest 8 to 4 bits."""
  unit = 2.0 ** int(strength * 4)
  return jnp.floor(images / unit) * unit


def _solarize(images: jax.Array, strength: float) -> jax.Array:
  """Inverts what is brighter than 256 to 0."""
  return jnp.where(images < 256 * (1 - strength), images, 255 - images)


def _solarize_add(images: jax.Array, strength: float) -> jax.Array:
  """Brightens the darker half of the scale by up to 110."""
  return jnp.where(images < 128, jnp.clip(images + int(110 * strength), 0, 255), images)


def _enhancement(strength: float, sign: jax.Array) -> jax.Array:
  """The factor of a blend: 0.1 to 1.9."""
  return 1 + 0.9 * strength * sign


# From images (B, H, W, 3) float32, a strength of 0 to 1, and 1 or -1 for each image, to images.
RAND_AUGMENT: dict[str, Callable[[jax.Array, float, jax.Array], jax.Array]] = {
  "identity": lambda images, strength, sign: images,
  "auto_contrast": lambda images, strength, sign: _auto_contrast(images),
  "invert": lambda images, strength, sign: 255 - images,
  "posterize": lambda images, strength, sign: _posterize(images, strength),
  "solarize": lambda images, strength, sign: _solarize(images, strength),
  "solarize_add": lambda images, strength, sign: _solarize_add(images, strength),
  "colour": lambda images, strength, sign: _saturate(images, _enhancement(strength, sign)),
  "contrast": lambda images, strength, sign: _contrast(images, _enhancement(strength, sign)),
  "brightness": lambda images, strength, sign: _brighten(images, _enhancement(strength, sign)),
  "sharpness": lambda images, strength, sign: _sharpen(images, _enhancement(strength, sign)),
}
