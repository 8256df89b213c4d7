"""SIGTERM, SIGINT and SIGHUP as a polite request: finish the step, save, leave."""

import signal
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import TypeVar

import jax
import numpy as np

from saol_jax.errors import Stopped

T = TypeVar("T")


class StopRequest:
  """Inside `with`, SIGTERM, SIGINT and SIGHUP only set a flag; a second SIGINT interrupts at once.

  SIGHUP, which a closed terminal sends, stays ignored where it is, as under nohup.

  Several processes stop after the same step, or one would wait for the others' part of it for
  ever. A request to any of them travels as a vote inside the batch; the sum that the step returns
  is the same everywhere. Until then nothing is interrupted.
  """

  def __init__(self):
    self._alone = jax.process_count() == 1
    self._event = threading.Event()
    self._agreed = False
    self._previous = {}

  def __enter__(self) -> "StopRequest":
    # Python allows handlers in the main thread alone; elsewhere `set` still works.
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
          self._previous[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _handle(self, number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT and self._event.is_set():
      raise KeyboardInterrupt
    self._event.set()

  def set(self) -> None:
    """Asks for the stop, as a signal does."""
    self._event.set()

  def vote(self, size: int) -> dict[str, np.ndarray]:
    """A field for this process's part of a batch: `stop` (size,) float32; none if it is alone."""
    if self._alone:
      return {}
    return {"stop": np.full(size, self._event.is_set(), np.float32)}

  def count(self, metrics: Mapping[str, jax.Array]) -> None:
    """Takes note of the votes in the metrics of a finished step."""
    if not self._alone:
      self._agreed = self._agreed or float(metrics["stop"]) > 0

  @property
  def requested(self) -> bool:
    """Whether a stop was asked for, and all processes know."""
    return self._event.is_set() if self._alone else self._agreed

  def check(self) -> None:
    """Raises Stopped if a stop was asked for; of several processes none stops here."""
    if self._alone and self.requested:
      raise Stopped("Stopped; what was saved so far is kept.")

  def run(self, function: Callable[[], T]) -> T:
    """Calls a long function that cannot be interrupted, such as a compilation, in a thread.

    Raises:
      Stopped: at once when a stop is asked for, see `check`. The function goes on in its thread
        until the process ends.
    """
    outcome = []

    def work() -> None:
      try:
        outcome.append((function(), None))
      except BaseException as error:
        outcome.append((None, error))

    thread = threading.Thread(target=work, name="interruptible", daemon=True)
    thread.start()
    while thread.is_alive():
      self.check()
      thread.join(0.05)
    result, error = outcome[0]
    if error is not None:
      raise error
    return result
