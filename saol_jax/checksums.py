"""Checksums of arrays, by which a damaged file is told from a good one."""

import zlib
from typing import Any

import jax
import numpy as np


def checksums(tree: Any) -> dict[str, int]:
  """CRC-32 of each array of a pytree, by its path; random keys count as their numbers."""
  return {
    jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(_bytes(leaf)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def wrong_checksum(tree: Any, saved: dict[str, int]) -> str | None:
  """The first path whose array is not what was saved, or is there or was saved alone; or None."""
  found = checksums(tree)
  return next((name for name in [*found, *saved] if found.get(name) != saved.get(name)), None)


def _bytes(leaf: jax.Array) -> np.ndarray:
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  return np.asarray(leaf)
