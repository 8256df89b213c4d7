"""Convolution, with a quick way to the kernel's gradient on a CPU."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

_NHWC = ("NHWC", "HWIO", "NHWC")
_PATCH_BYTES = 5 << 18  # of patches at once: they should stay in a core's cache
_LEAST_BYTES = 4 << 20  # of an input map; below, where it fits a cache, XLA's way is as quick


def convolve(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  **options,
) -> jax.Array:
  """`jax.lax.conv_general_dilated` as `nnx.Conv` calls it, for its `conv_general_dilated`.

  On one CPU device the gradient of the kernel is that of `kernel_gradient` where the input is
  large. With several devices the batch is split over them, and a loop over the batch would have to
  gather it.
  """
  plain = (
    x.ndim == 4
    and x.dtype == kernel.dtype == jnp.float32
    and isinstance(x.shape[0], int)  # not a size that an exported program leaves open
    and 4 * x.size >= _LEAST_BYTES
    and options.get("feature_group_count", 1) == 1
    and all(set(options.get(name) or (1,)) == {1} for name in ("lhs_dilation", "rhs_dilation"))
    and options.get("out_sharding") is None
  )
  if not plain or jax.default_backend() != "cpu" or jax.device_count() != 1:
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
  return _convolve(x, kernel, tuple(strides), tuple(map(tuple, padding)))


def kernel_gradient(
  x: jax.Array,
  gradient: jax.Array,
  size: tuple[int, int],
  strides: tuple[int, int],
  padding: Sequence[tuple[int, int]],
) -> jax.Array:
  """The gradient of a convolution's kernel, as products of matrices.

    dK = sum over images of patches(x)^T @ gradient

  XLA computes it on CPUs as a convolution of a few huge windows, which takes longer. Patches of a
  few images at once stay in the cache; of a whole batch they are slower than XLA's way.

  Args:
    x: (B, H, W, C), the input.
    gradient: (B, h, w, K), of the result.
    size: of the kernel, i and j.
    strides: in y and x.
    padding: before and after, in y and x.

  Returns:
    (i, j, C, K).
  """
  batch, height, width, features = gradient.shape
  channels = x.shape[3]
  row = size[0] * size[1] * channels  # numbers in a patch
  most = max(_PATCH_BYTES // (4 * height * width * row), 1)
  images = max(n for n in range(1, batch + 1) if batch % n == 0 and n <= most)

  def window(x: jax.Array, i: int, j: int) -> jax.Array:
    end = (i + (height - 1) * strides[0] + 1, j + (width - 1) * strides[1] + 1)
    return lax.slice(x, (0, i, j, 0), (images, *end, channels), (1, *strides, 1))

  def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    x, gradient = part
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    windows = [window(x, i, j) for i in range(size[0]) for j in range(size[1])]
    patches = jnp.concatenate(windows, axis=-1).reshape(-1, row)
    return total + patches.T @ gradient.reshape(-1, features), None

  parts = (x.reshape(-1, images, *x.shape[1:]), gradient.reshape(-1, images, *gradient.shape[1:]))
  total, _ = lax.scan(add, jnp.zeros((row, features), x.dtype), parts)
  return total.reshape(*size, channels, features)


def _plain(x, kernel, strides, padding):
  return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_NHWC)


_convolve = jax.custom_vjp(_plain, nondiff_argnums=(2, 3))


def _forward(x, kernel, strides, padding):
  return _plain(x, kernel, strides, padding), (x, kernel)


def _backward(strides, padding, saved, gradient):
  x, kernel = saved
  _, pull = jax.vjp(lambda x: _plain(x, kernel, strides, padding), x)
  return *pull(gradient), kernel_gradient(x, gradient, kernel.shape[:2], strides, padding)


_convolve.defvjp(_forward, _backward)
