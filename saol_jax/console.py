"""What a person sees when a program of ours runs: our own lines, plain, and nothing else."""

import logging
import sys
import threading

from absl import logging as absl_logging


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
    logger.addHandler(logging.StreamHandler(sys.stdout))
  logger.propagate = False  # absl's root handler would print it again, with a prefix
  absl_logging.set_verbosity(absl_logging.FATAL)
  threading.excepthook = lambda failure: logger.debug("in a thread: %s", failure.exc_value)
  sys.unraisablehook = lambda failure: logger.debug("nowhere: %s", failure.exc_value)
