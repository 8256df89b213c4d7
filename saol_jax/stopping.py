"""SIGTERM and SIGINT as a polite request: finish the step, save, leave."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

from saol_jax.errors import Stopped

T = TypeVar("T")


class StopRequest:
  """Inside `with`, SIGTERM and SIGINT only set a flag; a second SIGINT interrupts at once."""

  def __init__(self):
    self._event = threading.Event()
    self._previous = {}

  def __enter__(self) -> "StopRequest":
    # Python allows handlers in the main thread alone; elsewhere `set` still works.
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
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

  @property
  def requested(self) -> bool:
    """Whether a stop was asked for."""
    return self._event.is_set()

  def check(self) -> None:
    """Raises Stopped if a stop was asked for."""
    if self.requested:
      raise Stopped("Stopped; what was done so far is saved.")

  def run(self, function: Callable[[], T]) -> T:
    """Calls a long function that cannot be interrupted, such as a compilation, in a thread.

    Raises:
      Stopped: at once when a stop is asked for. The function goes on in its thread until the
        process ends.
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
