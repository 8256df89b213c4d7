"""What a person sees when a program of ours runs: our own lines, plain, and nothing else."""

import logging
import os
import sys
import threading

from absl import logging as absl_logging


class _Lines(logging.StreamHandler):
  """Prints on stdout. Where that cannot be written, as on a full disk, the program goes on.

  What could not be printed stays in Python's buffer, and is tried again with the next line.
  """

  def __init__(self):
    super().__init__(sys.stdout)
    self._said = False

  def handleError(self, record: logging.LogRecord) -> None:
    error = sys.exception()
    if not isinstance(error, OSError):
      super().handleError(record)
    elif not self._said and not isinstance(error, BrokenPipeError):  # `| head` has read enough
      self._said = True
      say(f"LINES LOST: stdout cannot be written: {error.strerror}")


def say(message: str) -> None:
  """Prints on stderr; where that is a full disk or a closed terminal, the exit code has to do."""
  try:
    print(message, file=sys.stderr, flush=True)
  except OSError:  # Python would try to write it again at its end, and make the exit code 120
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until then


def counted(count: int, noun: str) -> str:
  """A number of things: 1 file, 2 files."""
  return f"{count} {noun}{'' if count == 1 else 's'}"


def set_up(*, speak: bool = True) -> None:
  """Sends the progress of `saol_jax` to stdout and silences the libraries below it.

  What fails in a library reaches the main thread as an exception: Orbax raises again there what
  failed in one of its threads, after printing it from each of them, and TensorStore's threads then
  print a traceback for each array that nobody waits for any more.

  Args:
    speak: print progress; otherwise only warnings, as all but the first of several processes do.
  """
  logger = logging.getLogger("saol_jax")
  logger.setLevel(logging.INFO if speak else logging.WARNING)
  if not logger.handlers:
    logger.addHandler(_Lines())
  logger.propagate = False  # absl's root handler would print it again, with a prefix
  absl_logging.set_verbosity(absl_logging.FATAL)
  threading.excepthook = lambda failure: logger.debug("in a thread: %s", failure.exc_value)
  sys.unraisablehook = lambda failure: logger.debug("nowhere: %s", failure.exc_value)
