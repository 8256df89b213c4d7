"""CutMix: a box of one image is pasted into another, and the label is mixed by area.

CutMix (Yun et al. 2019, arXiv 1905.04899), section 3.1. The partner of an image is its neighbour
in a group of 2, where the reference code permutes the whole batch: batches are shuffled, so the
pairs are as random, and no image has to leave its device.
"""

import jax
import jax.numpy as jnp

from saol_jax.checks import check_cutmix, check_mixing


def sample_boxes(
  key: jax.Array,
  batch_size: int,
  height: int,
  width: int,
  *,
  alpha: float = 1.0,
  prob: float = 1.0,
  per_example: bool = True,
) -> jax.Array:
  """Draws the box that is pasted into each image.

  The centre is uniform over the pixels, the sides are `sqrt(1 - lambda)` of the image's, with
  `lambda ~ Beta(alpha, alpha)`, and the box is clipped at the border.

  Args:
    key: random key.
    batch_size: B.
    height, width: of the images, in pixels.
    alpha: of the Beta distribution; positive.
    prob: probability that an image is mixed at all.
    per_example: one box an image; otherwise one for the whole batch, as in the reference code.

  Returns:
    (B, 4) int32, y_min, x_min, y_max, x_max in pixels, max exclusive; zero area: not mixed.

  Raises:
    UserError: alpha or prob is out of range.
  """
  check_mixing(alpha=alpha, prob=prob)
  key_mixed, key_lambda, key_y, key_x = jax.random.split(key, 4)
  draws = (batch_size if per_example else 1,)
  mixed = jax.random.bernoulli(key_mixed, prob, draws)
  side = jnp.sqrt(1.0 - symmetric_beta(key_lambda, alpha, draws))
  y_min, y_max = _interval(key_y, side, height)
  x_min, x_max = _interval(key_x, side, width)
  boxes = jnp.stack([y_min, x_min, y_max, x_max], axis=-1) * mixed[:, None].astype(jnp.int32)
  return jnp.broadcast_to(boxes, (batch_size, 4))


def symmetric_beta(key: jax.Array, alpha: float, shape: tuple[int, ...]) -> jax.Array:
  """Draws from Beta(alpha, alpha)."""
  if alpha == 1:  # uniform, and without the rejection loops that a device would have to wait for
    return jax.random.uniform(key, shape)
  return jax.random.beta(key, alpha, alpha, shape)


def _interval(key: jax.Array, side: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
  """One dimension of the boxes: start and end, in pixels, of `side` (n,) of `size`, clipped."""
  length = (size * side).astype(jnp.int32)
  start = jax.random.randint(key, side.shape, 0, size) - length // 2
  return jnp.maximum(start, 0), jnp.minimum(start + length // 2 * 2, size)


def box_mask(boxes: jax.Array, height: int, width: int) -> jax.Array:
  """(B, height, width) float32: 1 inside `boxes` (B, 4), 0 outside."""
  y_min, x_min, y_max, x_max = (boxes[:, i, None] for i in range(4))
  rows, columns = jnp.arange(height)[None], jnp.arange(width)[None]
  inside_y = (rows >= y_min) & (rows < y_max)
  inside_x = (columns >= x_min) & (columns < x_max)
  return (inside_y[:, :, None] & inside_x[:, None, :]).astype(jnp.float32)


def reduce_mask(mask: jax.Array, grid: tuple[int, int]) -> jax.Array:
  """The share of each cell of `grid` (h, w) that `mask` (B, height, width) covers, (B, h, w).

  Exact area weighting, also where the cells do not divide the image.
  """
  rows, columns = _overlap(mask.shape[1], grid[0]), _overlap(mask.shape[2], grid[1])
  return jnp.einsum("ih,bhw,jw->bij", rows, mask, columns, precision="highest")


def _overlap(pixels: int, cells: int) -> jax.Array:
  """(cells, pixels) share of each cell that each pixel covers; rows sum to 1."""
  # In the unit of which a pixel has `cells` and a cell has `pixels`, all edges are integers.
  starts, positions = jnp.arange(cells)[:, None] * pixels, jnp.arange(pixels)[None] * cells
  ends = jnp.minimum(positions + cells, starts + pixels)
  return jnp.maximum(ends - jnp.maximum(positions, starts), 0).astype(jnp.float32) / pixels


def partner(x: jax.Array) -> jax.Array:
  """X (B, ...) with neighbours swapped inside groups of 2; an involution.

  Raises:
    ValueError: B is odd.
  """
  if x.shape[0] % 2:
    raise ValueError(f"CutMix pairs neighbours, so a batch of {x.shape[0]} must be even")
  pairs = x.reshape(-1, 2, *x.shape[1:])
  return pairs[:, ::-1].reshape(x.shape)


def mix(images: jax.Array, targets: jax.Array, boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Pastes each box of the partner into the image, and mixes the labels by area.

  Args:
    images: (B, H, W, C), B even.
    targets: (B, K), label distributions.
    boxes: (B, 4), from `sample_boxes`; box i is cut from image `partner(i)`.

  Returns:
    Mixed images (B, H, W, C) and mixed targets (B, K); the partner's weight is exactly the share
    of the image that the clipped box covers.

  Raises:
    ValueError: B is odd or differs, the targets are no distributions (B, K), or the boxes are not
      in pixels.
  """
  check_cutmix(images, targets, boxes)
  height, width = images.shape[1:3]
  inside = box_mask(boxes, height, width)[..., None] > 0
  sides = boxes[:, 2:] - boxes[:, :2]
  share = (sides[:, 0] * sides[:, 1]).astype(jnp.float32)[:, None] / (height * width)
  mixed = jnp.where(inside, partner(images), images)
  return mixed, (1.0 - share) * targets + share * partner(targets)
