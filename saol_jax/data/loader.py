"""From a source to batches: batch k is a pure function of (seed, k)."""

import collections
import concurrent.futures
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from saol_jax.data.source import Batch, Source


class Loader:
  """Training batches of a source, shuffled anew each epoch.

  The examples of all epochs stand in one endless row, and batch k holds places k B to (k + 1) B:
  no example is repeated or missed within an epoch, also where B does not divide their number, and
  starting at batch k costs the same as starting at 0.
  """

  def __init__(
    self,
    source: Source,
    batch_size: int,
    seed: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
  ):
    """Makes a loader of this process's part of each batch.

    Args:
      source: the examples.
      batch_size: B, over all processes.
      seed: of the order.
      process_index, process_count: this process reads its equal, consecutive part of each batch.
    """
    self._source, self._batch_size, self._seed = source, batch_size, seed
    share = batch_size // process_count
    self._part = slice(process_index * share, (process_index + 1) * share)

  def indices(self, k: int) -> np.ndarray:
    """The examples of this process's part of batch k."""
    places = np.arange(k * self._batch_size, (k + 1) * self._batch_size)[self._part]
    epochs, offsets = np.divmod(places, len(self._source))
    indices = np.empty_like(places)
    for epoch in np.unique(epochs).tolist():
      here = epochs == epoch
      indices[here] = _order(self._seed, epoch, len(self._source))[offsets[here]]
    return indices

  def __getitem__(self, k: int) -> Batch:
    """Part of batch k that this process reads."""
    first = k * self._batch_size + self._part.start
    return self._source.sample(self.indices(k), self._seed, first)


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
  """The order of one epoch."""
  return np.random.default_rng((seed, epoch)).permutation(size)


def padded_batches(
  source: Source,
  batch_size: int,
  examples: np.ndarray | None = None,
  *,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Batch]:
  """Examples once each, in order, as evaluation sees them.

  Args:
    source: of the examples.
    batch_size: B, over all processes.
    examples: (n,) which ones; None for all.
    process_index, process_count: this process reads its equal, consecutive part of each batch. All
      processes get as many batches.

  Yields:
    Batches of B / `process_count` with a `mask` (float32, one an example) that is 0 where the last
    one is padded, and where an image is broken.
  """
  examples = np.arange(len(source)) if examples is None else examples
  share = batch_size // process_count
  part = slice(process_index * share, (process_index + 1) * share)

  def make(start: int) -> Batch:
    chosen = examples[start : start + batch_size]
    batch = dict(source[np.resize(chosen, batch_size)[part]])
    real = (np.arange(batch_size) < len(chosen))[part] & ~batch.pop("broken", np.False_)
    return batch | {"mask": real.astype(np.float32)}

  yield from prefetch(make, range(0, len(examples), batch_size))


def prefetch(
  make: Callable[[int], Any], numbers: Iterable[int], *, depth: int = 2
) -> Iterator[Any]:
  """Yields `make(number)` for each number, in order, prepared by threads.

  An exception of `make` is raised where its item would have come.

  Args:
    make: may be called from several threads.
    numbers: of the items.
    depth: items in the making or waiting beside the one in use.
  """
  with concurrent.futures.ThreadPoolExecutor(depth, thread_name_prefix="prefetch") as pool:
    waiting = collections.deque()
    try:
      for number in numbers:
        waiting.append(pool.submit(make, number))
        if len(waiting) > depth:
          yield waiting.popleft().result()
      while waiting:
        yield waiting.popleft().result()
    finally:
      for future in waiting:
        future.cancel()
