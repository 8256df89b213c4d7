"""How fast a run goes and how long it will take, with pauses left out."""

import contextlib
import logging
import time
from collections.abc import Iterator

logger = logging.getLogger(__name__)

_STARVING = 0.1  # share of the time; above it the accelerator is worth feeding better
_LINES_IN_A_ROW = 3
_SECONDS_BETWEEN_LINES = 10.0


class Chrono:
  """Measures training time apart from compilation, evaluation and checkpoints."""

  def __init__(self, num_train_steps: int, batch_size: int, elapsed: float):
    """Starts the clock.

    Args:
      num_train_steps: of the whole run.
      batch_size: images a step.
      elapsed: seconds that were spent on the run before.
    """
    self._num_steps, self._batch_size = num_train_steps, batch_size
    self._start = time.monotonic() - elapsed
    self.begin(0)
    self._starved_lines, self._warned = 0, False

  @property
  def elapsed(self) -> float:
    """Seconds spent on the run, with everything."""
    return time.monotonic() - self._start

  def begin(self, step: int) -> None:
    """Starts an interval at `step`."""
    self._mark = self._said = time.monotonic()
    self._mark_step, self._paused, self._waited = step, 0.0, 0.0

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """Time inside does not count as training."""
    start = time.monotonic()
    yield
    seconds = time.monotonic() - start
    self._paused += seconds
    self._said += seconds

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Time inside is spent waiting for data."""
    start = time.monotonic()
    yield
    self._waited += time.monotonic() - start

  def lap(self, step: int) -> tuple[float, float, float]:
    """Ends the interval and starts the next.

    Warns, once, when three intervals in a row had to wait for data for a tenth of their time.

    Returns:
      Images a second, the share of the time that was spent waiting for data, and the seconds of
      training that are left.
    """
    seconds, rate, left = self._pace(step)
    waited = min(self._waited / seconds, 1.0)
    self._starved_lines = self._starved_lines + 1 if waited > _STARVING else 0
    if self._starved_lines >= _LINES_IN_A_ROW and not self._warned:
      self._warned = True
      logger.warning(
        "Training waits for data for %.0f %% of the time. What helps: a copy with smaller images "
        "(python -m saol_jax.data.resize), data on a local disk, more cores for this process, a "
        "smaller data.image_size",
        100 * waited,
      )
    self.begin(step)
    return rate, waited, left

  def glance(self, step: int) -> tuple[float, float] | None:
    """Images a second and the seconds that are left, where nobody has said so for a while.

    The interval goes on. None where it has just begun, or where `lap` or this said something in the
    last seconds.
    """
    now = time.monotonic()
    if now - self._said < _SECONDS_BETWEEN_LINES or step <= self._mark_step:
      return None
    self._said = now
    return self._pace(step)[1:]

  def _pace(self, step: int) -> tuple[float, float, float]:
    """Seconds of the interval so far, its images a second, and the seconds left at that speed."""
    seconds = max(time.monotonic() - self._mark - self._paused, 1e-9)
    rate = (step - self._mark_step) * self._batch_size / seconds
    return seconds, rate, (self._num_steps - step) * self._batch_size / max(rate, 1e-9)


class Progress:
  """A line of the log now and then: how many images, percent, images/s, time left."""

  def __init__(self, what: str, total: int, *, last_line: bool = True):
    """Starts the clock.

    Args:
      what: is done to the images, or to which; begins the line.
      total: images that there are.
      last_line: say when all are done, however soon that is.
    """
    self._what, self._total, self._last_line = what, total, last_line
    self._done = self._new = 0
    self._start = self._last = time.monotonic()

  def skip(self, count: int) -> None:
    """Notes images whose time says nothing of the others'; the rate is of those that follow.

    An earlier call has dealt with them, or they had to wait for a compilation.
    """
    self._done, self._new, self._start = self._done + count, 0, time.monotonic()

  def add(self, count: int) -> None:
    """Notes images that are done."""
    self._done, self._new = self._done + count, self._new + count
    now, at_end = time.monotonic(), self._done == self._total
    if now - self._last > _SECONDS_BETWEEN_LINES or (at_end and self._last_line):
      self._last, rate = now, self._new / max(now - self._start, 1e-9)
      logger.info(
        "%s: %d of %d images (%.0f %%), %.*f images/s, %s left",
        self._what,
        self._done,
        self._total,
        100 * self._done / self._total,
        0 if rate >= 10 else 1,
        rate,
        clock((self._total - self._done) / rate),
      )


def clock(seconds: float) -> str:
  """Seconds as h:mm:ss."""
  minutes, seconds = divmod(round(seconds), 60)
  return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
