"""How fast a run goes and how long it will take, with pauses left out."""

import contextlib
import time
from collections.abc import Iterator


class Chrono:
  """Measures training time apart from compilation, evaluation and checkpoints."""

  def __init__(self, num_train_steps: int, batch_size: int, elapsed: float):
    """Starts the clock.

    Args:
      num_train_steps: of the whole run.
      batch_size: images a step.
      elapsed: seconds that earlier processes have spent on the run.
    """
    self._num_steps, self._batch_size = num_train_steps, batch_size
    self._start = time.monotonic() - elapsed
    self._mark, self._mark_step, self._paused = None, 0, 0.0

  @property
  def elapsed(self) -> float:
    """Seconds spent on the run, with everything."""
    return time.monotonic() - self._start

  def begin(self, step: int) -> None:
    """Starts an interval at `step`."""
    self._mark, self._mark_step, self._paused = time.monotonic(), step, 0.0

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """Time inside does not count as training."""
    start = time.monotonic()
    yield
    self._paused += time.monotonic() - start

  def lap(self, step: int) -> tuple[float, float]:
    """Ends the interval and starts the next: images a second, and seconds of training left."""
    seconds = max(time.monotonic() - self._mark - self._paused, 1e-9)
    rate = (step - self._mark_step) * self._batch_size / seconds
    left = (self._num_steps - step) * self._batch_size / max(rate, 1e-9)
    self.begin(step)
    return rate, left


def clock(seconds: float) -> str:
  """Seconds as h:mm:ss."""
  minutes, seconds = divmod(round(seconds), 60)
  return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
