"""Command line: `python main.py --config=configs/NAME.py[:ARGS] --workdir=DIR [--mode=MODE]`."""

import errno
import os
import pathlib
import sys
from typing import NoReturn

from absl import app, flags
from ml_collections import config_flags

FLAGS = flags.FLAGS

config_flags.DEFINE_config_file("config", None, "Recipe, such as configs/digits_saol.py.")
flags.DEFINE_string("workdir", None, "Folder of the run; the same one resumes it.")
flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
  """Runs the mode; ends the process with the exit code of `saol_jax.errors`."""
  del argv
  from saol_jax import console, errors
  from saol_jax.evaluate import evaluate_workdir
  from saol_jax.train import train_and_evaluate

  console.set_up()
  run = {"train": train_and_evaluate, "evaluate": evaluate_workdir}[FLAGS.mode]
  code = 0
  try:
    run(FLAGS.config, FLAGS.workdir)
  except (errors.UserError, errors.DivergedError) as error:
    print(f"error: {error}", file=sys.stderr)
    code = error.code
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
      raise
    print(f"error: {error}; the checkpoints saved so far are intact", file=sys.stderr)
    code = errors.UserError.code
  except errors.Stopped as stopped:
    print(f"{stopped} Run the same command again to go on.", file=sys.stderr)
    code = stopped.code
  if code:
    # A compilation may still be going on in a thread, which would keep a normal exit waiting.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def parse_flags(argv: list[str]) -> list[str]:
  """Like absl's own parser, but every mistake is one message and exit code 2."""
  try:
    rest = FLAGS(argv)
    FLAGS.config.is_locked  # noqa: B018 - a file that could not be loaded says so here
  except AttributeError as error:
    cause = error.args[0]  # config_flags wraps a KeyError
    field = cause.args[0] if isinstance(cause, KeyError) else cause
    _leave(f"unknown config field {field}\nAll fields are in saol_jax/config.py")
  except OSError as error:
    known = ", ".join(sorted(str(path) for path in pathlib.Path("configs").glob("*.py")))
    _leave(f"{error}\nThe recipes here: {known or 'none; call from the folder of main.py'}")
  except Exception as error:
    _leave(str(error))
  return rest


def _leave(message: str) -> NoReturn:
  print(f"error: {message}", file=sys.stderr)
  sys.exit(2)


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
