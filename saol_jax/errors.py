"""How a run can end early; `main.py` prints the message without a traceback and exits with `code`.

2   bad input, or a disk or folder that cannot be used
3   a loss or gradient was not finite
4   predict: images that could not be read were skipped, the others are done
69  another process of the run is gone: start all again
75  stopped by SIGTERM, SIGINT or SIGHUP with its state saved: run the same command again to go on
"""

PEER_LOST = 69  # EX_UNAVAILABLE of sysexits.h


def missing_package(error: ModuleNotFoundError) -> str:
  """How to install a missing package; the head alone needs only a few."""
  return (
    f"the package {error.name!r} is not installed; install all that training, evaluation and "
    "pictures need: pip install 'FOLDER[training]', FOLDER being that of saol_jax's pyproject.toml"
  )


class UserError(Exception):
  """Bad input: the message names the value, what was expected, and how to mend it."""

  code = 2


class DivergedError(Exception):
  """A loss or the gradient was not finite."""

  code = 3


class Stopped(Exception):
  """The run was asked to stop, and did."""

  code = 75  # EX_TEMPFAIL of sysexits.h: try again later
