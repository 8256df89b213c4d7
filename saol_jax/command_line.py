"""What `main.py` and other programs of ours share: flags with clear mistakes, and exit codes."""

import errno
import functools
import itertools
import operator
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import jax
import ml_collections
from absl import flags

from saol_jax import compilation_cache, console, distributed, errors
from saol_jax.config import default_config, flat

_SAVED_CONFIG = pathlib.Path(__file__).parent / "saved_config.py"

# A person can mend these; another OSError is a bug of ours, and its traceback is wanted.
_OF_THE_DISK = {
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EROFS,
  errno.EACCES,
  errno.EPERM,
  errno.EIO,
  errno.ESTALE,
  errno.ENAMETOOLONG,
  errno.ELOOP,
}
# What a flag is for, said where it is missing.
_FLAG_HELP = {
  "config": "a recipe such as configs/digits_saol.py",
  "workdir": "the folder of the run",
  "images": "a file, a folder, or a pattern in quotes",
}
# What there is for other modes than those that take a flag.
_INSTEAD = {"checkpoint": " (evaluate and localize take --config.evaluate.checkpoint)"}
# What a field of the config takes, by the type of its default.
_KINDS = {
  bool: "true or false",
  int: "a whole number",
  float: "a number",
  str: "a text",
  tuple: 'numbers with commas between, in quotes: "(0.3,0.6)"',
}
_NO_CONFIG = "--config names a file without a function get_config(argument) that returns a config"
_PEER_LOST = (
  "another process of this run is gone, or the network between them. Start all processes again "
  "with the same command: the run goes on from its newest checkpoint"
)


class Folder(flags.ArgumentParser):
  """Parses a flag that names a folder: `~` is the home folder, and nothing, the flag left out."""

  def parse(self, argument: str) -> str | None:
    """Returns the folder; None for an empty name, as an unset variable of a shell makes one.

    Raises:
      ValueError: it is an address such as gs://bucket/run.
    """
    if "://" in argument:
      raise ValueError(
        "an address, where a folder was expected. Mount the bucket or share (gcsfuse, Filestore, "
        "NFS) and name the folder where it is mounted"
      )
    return os.path.expanduser(argument) or None


def parse_flags(
  argv: list[str],
  values: flags.FlagValues,
  modes: Mapping[str, tuple[Sequence[str], Sequence[str]]],
) -> list[str]:
  """Like absl's own parser, but every mistake is one message and exit code 2.

  Where `--config` is left out, a mode that needs it gets the one that the workdir's run has.

  Args:
    argv: the command line.
    values: where the flags are defined, `mode`, `config` and `workdir` among them.
    modes: mode -> names of the flags that it cannot do without, and of those that it also takes.

  Returns:
    The name of the program; nothing else may be left of the command line.
  """
  needed_by_mode = {mode: needed for mode, (needed, _) in modes.items()}
  try:
    arguments = values.read_flags_from_files(argv[1:], force_gnu=False)
    rest = values(_with_saved_config(argv, arguments, needed_by_mode, values["mode"].default))
    if rest[1:]:
      _leave(
        f"unexpected {rest[1]!r}: every argument begins with --, and a pattern stands in quotes, "
        "such as --images='photos/*.jpg'"
      )
    for name in modes[values.mode][0]:
      if values[name].value is None:
        if name == "config" and values[name].present:
          _leave(_NO_CONFIG)
        _leave(f"--mode={values.mode} needs --{name}: {_FLAG_HELP[name]}{_no_run(values, name)}")
    _check_taken(values, {mode: {*needed, *options} for mode, (needed, options) in modes.items()})
    if values.config is not None:
      values.config.is_locked  # noqa: B018 - a file that could not be loaded says so here
  except flags.IllegalFlagValueError as error:
    _leave(_illegal(error))
  except flags.UnrecognizedFlagError as error:
    if error.flagname in flat(default_config()):
      _leave(f"unknown flag --{error.flagname}; did you mean --config.{error.flagname}?")
    _leave(str(error))
  except (AttributeError, KeyError) as error:
    if isinstance(error, AttributeError) and error.name == "get_config":
      _leave(_NO_CONFIG)
    cause = error.args[0]  # config_flags may wrap a KeyError
    field = cause.args[0] if isinstance(cause, KeyError) else cause
    _leave(f"unknown config field {field}\nAll fields are in saol_jax/config.py")
  except OSError as error:
    known = ", ".join(sorted(str(path) for path in pathlib.Path("configs").glob("*.py")))
    _leave(f"{error}\nThe recipes here: {known or 'none; call from the folder of main.py'}")
  except Exception as error:
    if "before a value for --config" in str(error):
      _leave("--config=RECIPE stands before the fields that change it, --config.FIELD=VALUE")
    _leave(str(error))
  return rest


def _with_saved_config(
  argv: list[str], arguments: Sequence[str], needed_by_mode: Mapping[str, Sequence[str]], mode: str
) -> list[str]:
  """The command line, with the config of the workdir's run where it needs one and names none.

  Args:
    argv: the command line.
    arguments: the same without the program, and with what stands in flag files.
    needed_by_mode: names of the flags that a mode cannot do without.
    mode: where the command line names none.
  """
  given = {}
  words = itertools.takewhile(lambda word: word != "--", arguments)
  for word in words:
    name, separator, value = word.lstrip("-").partition("=")
    if word.startswith("-") and name in ("config", "workdir", "mode"):
      given[name] = value if separator else next(words, "")
  if "config" in given or "config" not in needed_by_mode.get(given.get("mode", mode), ()):
    return argv
  workdir = os.path.expanduser(given.get("workdir", ""))
  if not workdir or not os.path.exists(os.path.join(workdir, "config.json")):
    return argv
  # Relative, since a colon ends the path.
  return [argv[0], f"--config={os.path.relpath(_SAVED_CONFIG)}:{workdir}", *argv[1:]]


def run(function: Callable[[], object], join: Callable[[], None] | None = None) -> None:
  """Calls a function as a program: progress on stdout, one message for what a user can mend.

  Ends the process with the exit code that the function returns, if that is what it returns, or
  with that of `saol_jax.errors`; and by SIGINT where that interrupted the function.

  Args:
    function: the program.
    join: makes one run of several processes, of which the first one speaks, or refuses to.
  """
  console.set_up()
  compilation_cache.set_up()
  try:
    code, several = _run(function, join)
  except KeyboardInterrupt:
    _end_as_interrupted()
  try:
    sys.stdout.flush()
  except OSError:  # Python would try again at its end, and make the exit code 120
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until then
  if code or several:
    # A normal exit waits for a compilation that still goes on in a thread. In one of several
    # processes it also takes the connections apart, which can abort another that is doing the same.
    os._exit(code)


def _run(function: Callable[[], object], join: Callable[[], None] | None) -> tuple[int, bool]:
  """Exit code, and whether this is one of several processes."""
  who = ""
  try:
    if join is not None:
      join()
      if jax.distributed.is_initialized() and jax.process_count() > 1:
        who = f"process {jax.process_index()}: "
        console.set_up(speak=distributed.is_main_process())
    code = _exit_code_of(function, who)
    distributed.leave_processes()
  except (errors.UserError, errors.DivergedError) as error:
    console.say(f"{who}error: {error}")
    code = error.code
  except ModuleNotFoundError as error:
    console.say(f"{who}error: {errors.missing_package(error)}")
    code = errors.UserError.code
  except OSError as error:
    if error.errno not in _OF_THE_DISK:
      raise
    console.say(
      f"{who}error: {error}; what was saved so far is as it was. Free some space or mend the "
      "folder, then run the same command again to go on."
    )
    code = errors.UserError.code
  except jax.errors.JaxRuntimeError as error:
    if not who:
      raise
    console.say(f"{who}error: {_PEER_LOST} ({str(error).splitlines()[0]})")
    code = errors.PEER_LOST
  return code, bool(who)


def _end_as_interrupted() -> NoReturn:
  """Ends by SIGINT itself, once all has been tidied up: whoever started this sees how it ended."""
  console.say("interrupted; what was saved before is as it was")
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  os.kill(os.getpid(), signal.SIGINT)
  os._exit(128 + signal.SIGINT)  # the first process of a container is not ended by it


def _exit_code_of(function: Callable[[], object], who: str) -> int:
  """Calls the function; all processes come to its end together, or stop at the same step."""
  try:
    result = function()
  except errors.Stopped as stopped:
    console.say(f"{who}{stopped} Run the same command again to go on.")
    return stopped.code
  return result if isinstance(result, int) else 0


def _check_taken(values: flags.FlagValues, taken: Mapping[str, set[str]]) -> None:
  """Leaves where a flag was given that does nothing in the mode; a recipe and a workdir may be."""
  for name in sorted(set().union(*taken.values()) - {"config", "workdir"} - taken[values.mode]):
    if values[name].present:
      others = " and ".join(f"--mode={mode}" for mode in taken if name in taken[mode])
      _leave(
        f"--{name} is for {others}, and would do nothing in --mode={values.mode}; leave it out"
        + _INSTEAD.get(name, "")
      )


def _no_run(values: flags.FlagValues, name: str) -> str:
  """Why a run's own config was not taken for a missing one."""
  folder = values["workdir"].value
  if name != "config" or folder is None:
    return ""
  return f"; or a --workdir that holds a run: {folder} " + (
    "has no config.json" if os.path.exists(folder) else "does not exist"
  )


def _illegal(error: flags.IllegalFlagValueError) -> str:
  """What absl says of a flag's value, in our words where it is that of a field of the config."""
  flag = str(error).removesuffix(f": {error.__context__}")
  name, _, value = flag.removeprefix("flag --config.").partition("=")
  if name.startswith("flag --"):
    return str(error)
  try:
    field = functools.reduce(operator.getitem, name.split("."), default_config())
  except (KeyError, TypeError):  # of the recipe's own
    return str(error)
  if isinstance(field, ml_collections.ConfigDict):
    hint = f" Did you mean --config.{name}.name={value}?" if "name" in field else ""
    return (
      f"{name} is a group of fields; expected --config.{name}.FIELD={value}, FIELD being one of "
      f"{', '.join(field)}.{hint}"
    )
  return f"--config.{name}={value}; expected {_KINDS[type(field)]}"


def _leave(message: str) -> NoReturn:
  console.say(f"error: {message}")
  sys.exit(errors.UserError.code)
