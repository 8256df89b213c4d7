"""Pooling over windows, with gradients that repeat bit for bit on every device."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

Padding = tuple[tuple[int, int], tuple[int, int]]


def max_pool(
  x: jax.Array, size: int = 3, stride: int = 2, padding: Padding = ((1, 1), (1, 1))
) -> jax.Array:
  """Maxima over windows; by default halves a map as the stem of a ResNet in PyTorch does.

  The gradient goes to a window's maximum, to the first one of equals in reading order. So it does
  in XLA and in PyTorch, but there it is scattered: on a GPU by atomic additions, whose order is
  left to chance. Here each cell gathers from the windows that it lies in, which the compiler fuses
  into one pass, and whose order is fixed. The backward pass keeps a byte a window, not the map.

  Args:
    x: (B, H, W, C), of a floating type.
    size: side of a window.
    stride: between windows.
    padding: cells of -inf before and after, vertically and horizontally.

  Returns:
    (B, h, w, C), of the type of x; h = (H + padding - size) // stride + 1.
  """
  return _max_pool(x, _Windows(size, stride, padding, x.shape[1:3]))


def same_padding(shape: tuple[int, ...], size: int, stride: int) -> Padding:
  """TensorFlow's 'SAME' for maps (B, H, W, C): ceil(side / stride) windows a side."""

  def side(length: int) -> tuple[int, int]:
    missing = max((-(-length // stride) - 1) * stride + size - length, 0)
    return missing // 2, missing - missing // 2

  return side(shape[1]), side(shape[2])


def average_pool(x: jax.Array, size: int, stride: int, padding: str) -> jax.Array:
  """Means over windows, of the cells that there are, taken in float32.

  Args:
    x: (B, H, W, C).
    size: side of a window.
    stride: 1 or 2.
    padding: "VALID" to leave out what does not fill a window; "SAME" to keep ceil(side / stride)
      windows, as few as possible of them over the border and the odd one at the far end: for 2x2
      at stride 2, PyTorch's `ceil_mode`.

  Returns:
    (B, h, w, C), of the type of x.
  """
  means = nnx.avg_pool(
    x.astype(jnp.float32),
    (size, size),
    strides=(stride, stride),
    padding=padding,
    count_include_pad=False,
  )
  return means.astype(x.dtype)


class _Windows(NamedTuple):
  size: int
  stride: int
  padding: Padding
  sides: tuple[int, int]  # H, W of the map


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x: jax.Array, windows: _Windows) -> jax.Array:
  size, stride, padding, _ = windows
  return nnx.max_pool(x, (size, size), strides=(stride, stride), padding=padding)


def _forward(x: jax.Array, windows: _Windows) -> tuple[jax.Array, jax.Array]:
  """The maxima, and which cell of its window each is."""
  size, stride, padding, _ = windows
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
  rows, columns = ((side - size) // stride * stride + 1 for side in x.shape[1:3])
  maxima = winner = None
  for place in range(size * size):
    i, j = divmod(place, size)
    cell = x[:, i : i + rows : stride, j : j + columns : stride]
    if maxima is None:
      maxima, winner = cell, jnp.zeros(cell.shape, jnp.uint8)
    else:
      winner = jnp.where(cell > maxima, jnp.uint8(place), winner)
      maxima = jnp.maximum(maxima, cell)  # unlike a choice by `>`, hands on what is not a number
  return maxima, winner


def _backward(windows: _Windows, winner: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
  """The sum of the gradients of those windows whose maximum a cell is, by cell.

  A cell lies in ceil(size / stride) windows each way; one that there is not has no winner. The
  border of such windows is written out: on an H200 a kernel that asks at each read whether there is
  a window takes 1.6 times as long (benchmarks/results/stem_variants_nvidia_h200.json).
  """
  vertical, horizontal = (
    _Axis(windows.size, windows.stride, before, side, number)
    for (before, _), side, number in zip(
      windows.padding, windows.sides, winner.shape[1:3], strict=True
    )
  )
  border = ((0, 0, 0), vertical.border, horizontal.border, (0, 0, 0))
  nobody, nowhere = windows.size**2, windows.size**2 + 1
  zero = jnp.zeros((), gradient.dtype)
  winner = jax.lax.optimization_barrier(winner)  # nor should the padding compute the maxima anew
  winner, gradient = jax.lax.optimization_barrier(
    (jax.lax.pad(winner, jnp.uint8(nobody), border), jax.lax.pad(gradient, zero, border))
  )
  total = zero
  for back in range(vertical.reach):
    for left in range(horizontal.reach):
      chosen, share = (
        horizontal.of_cells(vertical.of_cells(x, back, axis=1), left, axis=2)
        for x in (winner, gradient)
      )
      row = vertical.places(back).reshape(1, -1, 1, 1)
      column = horizontal.places(left).reshape(1, 1, -1, 1)
      inside = (row < windows.size) & (column < windows.size)
      place = jnp.where(inside, row * windows.size + column, nowhere).astype(jnp.uint8)
      total = total + jnp.where(chosen == place, share, zero)
  return (total,)


class _Axis(NamedTuple):
  """Windows and cells along one side of a map."""

  size: int
  stride: int
  before: int  # padding
  side: int  # cells
  number: int  # windows

  @property
  def reach(self) -> int:
    """Windows that a cell may lie in."""
    return -(-self.size // self.stride)

  @property
  def border(self) -> tuple[int, int, int]:
    """Windows to add before and after, as `lax.pad` wants it, so that each cell has `reach`."""
    first = self.before // self.stride - (self.reach - 1)
    return -first, self._last - (self.number - 1), 0

  @property
  def _last(self) -> int:
    return (self.side - 1 + self.before) // self.stride

  def of_cells(self, x: jax.Array, back: int, axis: int) -> jax.Array:
    """By cell, the entry of x of the last window that begins at or before it, or of one `back`."""
    start = self.reach - 1 - back
    stop = start + self._last + 1 - self.before // self.stride
    x = jnp.repeat(jax.lax.slice_in_dim(x, start, stop, axis=axis), self.stride, axis=axis)
    first = self.before % self.stride
    return jax.lax.slice_in_dim(x, first, first + self.side, axis=axis)

  def places(self, back: int) -> jax.Array:
    """By cell, which one it is in that window; from `size` on for one that it does not lie in."""
    return (jnp.arange(self.side) + self.before) % self.stride + back * self.stride


_max_pool.defvjp(_forward, _backward)
