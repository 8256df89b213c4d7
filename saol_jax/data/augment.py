"""Augmentation on the device, inside the training step."""

import jax
import jax.numpy as jnp


def normalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
  """uint8 images (B, H, W, C) to float32 `(x / 255 - mean) / std`, by channel."""
  mean, std = (jnp.asarray(x, jnp.float32).reshape(1, 1, 1, -1) for x in (mean, std))
  return (images.astype(jnp.float32) / 255 - mean) / std


def flip_and_crop(key: jax.Array, images: jax.Array, *, flip: bool, padding: int) -> jax.Array:
  """Mirrors half of the images, pads all with black and crops them back at a random place.

  Both are products with one-hot matrices, exact for the integers 0 to 255 in any precision: a
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
