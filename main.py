"""Command line: `python main.py --config=configs/NAME.py[:ARGS] --workdir=DIR [--mode=MODE]`."""

import functools
import importlib

from absl import app, flags
from ml_collections import config_flags

from saol_jax import command_line, distributed

FLAGS = flags.FLAGS

# Mode -> the function that does it, its arguments, and options that it also takes: all flags.
MODES = {
  "train": ("saol_jax.train.train_and_evaluate", ("config", "workdir"), ()),
  "evaluate": ("saol_jax.evaluate.evaluate_workdir", ("config", "workdir"), ()),
  "inspect": ("saol_jax.inspect_data.inspect_workdir", ("config", "workdir"), ()),
  "localize": ("saol_jax.localize.localize_workdir", ("config", "workdir"), ()),
  "predict": (
    "saol_jax.predict.predict_command",
    ("workdir", "images"),
    ("output", "top_k", "checkpoint", "weights"),
  ),
  "export": (
    "saol_jax.export.export_command",
    ("workdir",),
    ("output", "checkpoint", "weights", "fuse"),
  ),
  "list": ("saol_jax.model_list.list_command", ("backbones",), ()),
}
SEVERAL_PROCESSES = ("train", "evaluate")

config_flags.DEFINE_config_file("config", None, "Recipe, such as configs/digits_saol.py.")
flags.DEFINE(command_line.Folder(), "workdir", None, "Folder of the run; the same one resumes it.")
flags.DEFINE_enum("mode", "train", list(MODES), "What to do.")
flags.DEFINE_string("images", None, "For predict: a file, a folder, or a pattern in quotes.")
flags.DEFINE(
  command_line.Folder(), "output", None, "For predict and export: folder; else in --workdir."
)
flags.DEFINE_integer("top_k", 5, "For predict: how many classes to name.")
flags.DEFINE_string("backbones", "*", "For list: a pattern of names, such as 'resnet*'.")
flags.DEFINE_enum("checkpoint", "latest", ["latest", "best"], "For predict and export.")
flags.DEFINE_enum(
  "weights", "auto", ["auto", "raw", "ema"], "For predict and export; auto: ema if kept."
)
flags.DEFINE_bool("fuse", False, "For export: fold batch norms into convolutions.")
flags.DEFINE_string("coordinator", None, "Several processes: HOST:PORT of the first one.")
flags.DEFINE_integer("num_processes", None, "Several processes: how many.")
flags.DEFINE_integer("process_id", None, "Several processes: which one this is, from 0.")


def main(argv: list[str]) -> None:
  """Runs the mode; ends the process with the exit code of `saol_jax.errors`."""
  del argv
  command_line.run(run_mode, join)


def run_mode() -> object:
  """What --mode says; whatever it needs is imported only now."""
  path, arguments, options = MODES[FLAGS.mode]
  module, _, name = path.rpartition(".")
  function = getattr(importlib.import_module(module), name)
  return function(
    *(FLAGS[name].value for name in arguments), **{name: FLAGS[name].value for name in options}
  )


def join() -> None:
  """Makes one run of several processes, or refuses to be one of them."""
  processes = (FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
  if FLAGS.mode in SEVERAL_PROCESSES:
    distributed.join_processes(*processes)
  else:
    distributed.stay_alone(f"--mode={FLAGS.mode}", *processes)


if __name__ == "__main__":
  modes = {mode: (needed, options) for mode, (_, needed, options) in MODES.items()}
  app.run(main, flags_parser=functools.partial(command_line.parse_flags, values=FLAGS, modes=modes))
