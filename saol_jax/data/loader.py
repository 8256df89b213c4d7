"""From a source to batches: batch k is a pure function of (seed, k)."""

import functools
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from saol_jax.data.source import ArraySource

Batch = Mapping[str, np.ndarray]

_END = object()  # after the last item of `prefetch`; a StopIteration of `make` is an error


class Loader:
  """Training batches of a source, shuffled anew each epoch.

  The examples of all epochs stand in one endless row, and batch k holds places k B to (k + 1) B:
  no example is repeated or missed within an epoch, also where B does not divide their number, and
  starting at batch k costs the same as starting at 0.
  """

  def __init__(
    self,
    source: ArraySource,
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
    return self._source[self.indices(k)]


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
  """The order of one epoch."""
  return np.random.default_rng((seed, epoch)).permutation(size)


def padded_batches(source: ArraySource, batch_size: int) -> Iterator[Batch]:
  """Every example once, in order, with a `mask` (B,) that is 0 where the last batch is padded."""
  for start in range(0, len(source), batch_size):
    places = np.arange(start, start + batch_size)
    real = places < len(source)
    yield {**source[np.where(real, places, 0)], "mask": real.astype(np.float32)}


def prefetch(
  make: Callable[[int], Any], numbers: Iterator[int] | range, *, depth: int = 2
) -> Iterator[Any]:
  """Yields `make(number)` for each number, prepared in a thread, at most `depth` ahead.

  An exception of `make` is raised where its item would have come.
  """
  items: queue.Queue = queue.Queue(depth)
  closed = threading.Event()

  def put(item) -> None:
    while not closed.is_set():
      try:
        return items.put(item, timeout=0.1)
      except queue.Full:
        continue

  def work() -> None:
    try:
      for number in numbers:
        put((make(number), None))
        if closed.is_set():
          return
      put((_END, None))
    except Exception as error:
      put((None, error))

  thread = threading.Thread(target=work, name="prefetch", daemon=True)
  thread.start()
  try:
    while True:
      item, error = items.get()
      if error is not None:
        raise error
      if item is _END:
        return
      yield item
  finally:
    closed.set()
    thread.join()
