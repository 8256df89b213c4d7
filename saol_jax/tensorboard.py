"""TensorBoard's events, written where training does not wait for them."""

import logging
import pathlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from saol_jax.tensorflow_cpu import import_tensorflow

logger = logging.getLogger(__name__)


class TensorBoard:
  """Writes `folder/events.out.tfevents.*` in a thread of its own, where TensorFlow is installed.

  The first event imports TensorFlow, which takes seconds; a run that has not trained yet has better
  things to do. Whatever fails is one line in the log, and the end of the events: `metrics.jsonl`
  has them too.
  """

  def __init__(self, folder: pathlib.Path):
    """Takes the name of the folder; opens nothing."""
    self._folder = folder
    self._thread = ThreadPoolExecutor(1, "tensorboard")
    self._writer: Any = None
    self._given_up = self._closed = False

  def write_scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Shows numbers by name; returns at once, as `write_image` does."""
    values = dict(values)
    self._show(lambda writer: writer.write_scalars(step, values))

  def write_image(self, step: int, name: str, image: np.ndarray) -> None:
    """Shows an image (H, W, 3) uint8."""
    self._show(lambda writer: writer.write_images(step, {name: image[None]}))

  def wait(self) -> None:
    """Waits until all that was to be shown is on disk."""
    if not self._closed:
      self._thread.submit(lambda: None).result()

  def close(self) -> None:
    """Waits likewise, and closes the file."""
    if not self._closed:
      self._closed = True
      self._thread.submit(self._close)
      self._thread.shutdown()

  def _show(self, write: Callable[[Any], None]) -> None:
    if not self._closed:  # as where a stopped run was still drawing a picture
      self._thread.submit(self._write, write)

  def _write(self, write: Callable[[Any], None]) -> None:
    if self._given_up:
      return
    try:
      if self._writer is None:
        self._writer = _open(self._folder)
        if self._writer is None:
          self._given_up = True
          return
      write(self._writer)
      self._writer.flush()
    except Exception as error:  # TensorFlow has its own
      self._give_up(error)

  def _close(self) -> None:
    try:
      if self._writer is not None and not self._given_up:
        self._writer.close()
    except Exception as error:  # as above
      self._give_up(error)

  def _give_up(self, error: Exception) -> None:
    self._given_up = True
    more = "No" if self._writer is None else "No more"
    logger.warning("%s TensorBoard events: %s", more, (str(error).splitlines() or [error])[0])


def _open(folder: pathlib.Path) -> Any:
  """The writer of clu; None, and a line that says so, where that or TensorFlow is not installed."""
  try:
    import_tensorflow()
    from clu import metric_writers
  except ModuleNotFoundError as error:
    logger.info("No TensorBoard events: %s is not installed", error.name)
    return None
  return metric_writers.SummaryWriter(str(folder))
