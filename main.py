"""Command line: `python main.py --config=configs/NAME.py[:ARGS] --workdir=DIR [--mode=MODE]`."""

import functools

from absl import app, flags
from ml_collections import config_flags

from saol_jax import command_line

FLAGS = flags.FLAGS


def train() -> None:
  from saol_jax.train import train_and_evaluate

  train_and_evaluate(FLAGS.config, FLAGS.workdir)


def evaluate() -> None:
  from saol_jax.evaluate import evaluate_workdir

  evaluate_workdir(FLAGS.config, FLAGS.workdir)


def localize() -> None:
  from saol_jax.localize import localize_workdir

  localize_workdir(FLAGS.config, FLAGS.workdir)


def predict() -> int:
  from saol_jax.predict import predict_command

  return predict_command(FLAGS.workdir, FLAGS.images, output=FLAGS.output, top_k=FLAGS.top_k)


def export() -> None:
  from saol_jax.export import export_command

  export_command(
    FLAGS.workdir,
    FLAGS.output,
    checkpoint=FLAGS.checkpoint,
    weights=FLAGS.weights,
    fuse=FLAGS.fuse,
  )


def list_models() -> None:
  from saol_jax.model_list import list_command

  list_command(FLAGS.backbones)


def inspect() -> None:
  from saol_jax.inspect_data import inspect_workdir

  inspect_workdir(FLAGS.config, FLAGS.workdir)


# Mode -> what it does, and the flags that it cannot do without.
MODES = {
  "train": (train, ("config", "workdir")),
  "evaluate": (evaluate, ("config", "workdir")),
  "inspect": (inspect, ("config", "workdir")),
  "localize": (localize, ("config", "workdir")),
  "predict": (predict, ("workdir", "images")),  # no config: the workdir knows its own
  "export": (export, ("workdir",)),  # likewise
  "list": (list_models, ()),
}

config_flags.DEFINE_config_file("config", None, "Recipe, such as configs/digits_saol.py.")
flags.DEFINE_string("workdir", None, "Folder of the run; the same one resumes it.")
flags.DEFINE_enum("mode", "train", list(MODES), "What to do.")
flags.DEFINE_string("images", None, "For predict: a file, a folder, or a pattern in quotes.")
flags.DEFINE_string("output", None, "For predict and export: folder; else in --workdir.")
flags.DEFINE_integer("top_k", 5, "For predict: how many classes to name.")
flags.DEFINE_string("backbones", "*", "For list: a pattern of names, such as 'resnet*'.")
flags.DEFINE_enum("checkpoint", "latest", ["latest", "best"], "For export: which one.")
flags.DEFINE_enum("weights", "auto", ["auto", "raw", "ema"], "For export: auto: ema if kept.")
flags.DEFINE_bool("fuse", False, "For export: fold batch norms into convolutions.")


def main(argv: list[str]) -> None:
  """Runs the mode; ends the process with the exit code of `saol_jax.errors`."""
  del argv
  command_line.run(MODES[FLAGS.mode][0])


if __name__ == "__main__":
  needed = {mode: flags for mode, (_, flags) in MODES.items()}
  app.run(
    main, flags_parser=functools.partial(command_line.parse_flags, values=FLAGS, needed=needed)
  )
