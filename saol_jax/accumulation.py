"""Parts of a batch: gradient accumulation, and losses that are taken on a share of it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Batch = dict[str, jax.Array]


def every_nth_chunk(x: jax.Array, *, n: int, chunk: int) -> jax.Array:
  """One of each `n` chunks of consecutive examples of x (B, ...): (B / n, ...).

  Each device has as many of them, where its share of the batch is a multiple of `n * chunk`.
  """
  if n == 1:
    return x
  return x.reshape(-1, n, chunk, *x.shape[1:])[:, 0].reshape(-1, *x.shape[1:])


def mean_over_parts(
  function: Callable[[Batch, jax.Array], Any],
  batch: Batch,
  key: jax.Array,
  *,
  parts: int,
  chunk: int,
  unroll: bool = False,
) -> Any:
  """Mean of `function(part, key)` over equal parts of a batch, one after the other.

  A part takes every `parts`-th chunk of consecutive examples, so that pairs and groups stay whole
  and each device has a share of each part. Each part starts from the same batch statistics, so
  their mean is what the whole batch would have given, if norms look at groups that fit in a part.

  Args:
    function: from a part of the batch and a random key to a pytree of means over the part.
    batch: arrays (B, ...).
    key: random key, split over the parts.
    parts: number of parts; 1 calls `function` on the whole batch.
    chunk: consecutive examples that must stay together; `parts * chunk` divides B.
    unroll: write the parts out one after the other instead of in a loop: longer to compile, and the
      compiler may no longer keep to the memory of one part.

  Returns:
    What `function` returns, averaged over the parts; what is no float, of the last part.
  """
  if parts == 1:
    return function(batch, key)

  def split(x: jax.Array) -> jax.Array:
    chunks = x.reshape(-1, parts, chunk, *x.shape[1:]).swapaxes(0, 1)
    return chunks.reshape(parts, -1, *x.shape[1:])

  def floating(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)

  def add(total, part_and_key):
    found = function(*part_and_key)
    return jax.tree.map(lambda x, y: x + y if floating(y) else y, total, found), None

  inputs = (jax.tree.map(split, batch), jax.random.split(key, parts))
  first = jax.tree.map(lambda x: x[0], inputs)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, *first))
  total, _ = jax.lax.scan(add, zeros, inputs, unroll=unroll)
  return jax.tree.map(lambda x: x / parts if floating(x) else x, total)
