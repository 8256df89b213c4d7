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
flags.DEFINE_enum("mode", "train", ["train", "evaluate", "localize", "predict"], "What to do.")
flags.DEFINE_string("images", None, "For predict: a file, a folder, or a pattern in quotes.")
flags.DEFINE_string("output", None, "For predict: where to write; else WORKDIR/predictions.")
flags.DEFINE_integer("top_k", 5, "For predict: how many classes to name.")
flags.mark_flag_as_required("workdir")


def main(argv: list[str]) -> None:
  """Runs the mode; ends the process with the exit code of `saol_jax.errors`."""
  del argv
  from saol_jax import console, errors

  console.set_up()
  code = 0
  try:
    code = run_mode()
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


def run_mode() -> int:
  """Does what --mode says; returns the exit code of what went well."""
  if FLAGS.mode == "predict":  # needs no config: the workdir knows its own
    from saol_jax.predict import predict_command

    return predict_command(FLAGS.workdir, FLAGS.images, output=FLAGS.output, top_k=FLAGS.top_k)
  if FLAGS.mode == "train":
    from saol_jax.train import train_and_evaluate as run
  elif FLAGS.mode == "evaluate":
    from saol_jax.evaluate import evaluate_workdir as run
  else:
    from saol_jax.localize import localize_workdir as run
  run(FLAGS.config, FLAGS.workdir)
  return 0


def parse_flags(argv: list[str]) -> list[str]:
  """Like absl's own parser, but every mistake is one message and exit code 2."""
  try:
    rest = FLAGS(argv)
    if FLAGS.mode == "predict" and not FLAGS.images:
      _leave("--mode=predict needs --images: a file, a folder, or a pattern in quotes")
    if FLAGS.mode != "predict" and FLAGS.config is None:
      _leave(f"--mode={FLAGS.mode} needs --config: a recipe such as configs/digits_saol.py")
    if FLAGS.config is not None:
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
