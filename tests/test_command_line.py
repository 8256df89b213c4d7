"""How a program ends, with stand-ins for what main.py does."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest
from absl import flags

from saol_jax import command_line
from saol_jax.command_line import Folder
from saol_jax.errors import DivergedError, Stopped, UserError
from tests.support import environment

PROGRAM = """
import sys
from saol_jax import command_line, errors

def program():
  raise getattr(errors, sys.argv[1])("as told")

command_line.run(program)
"""

TALKING = """
import logging
from saol_jax import command_line

def program():
  for k in range(3):
    logging.getLogger("saol_jax.train").info("step %d", k)

command_line.run(program)
"""


WAITING = """
import signal, sys, tempfile, time
from saol_jax import command_line

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests run under

def program():
  with tempfile.TemporaryDirectory(dir=sys.argv[1], prefix=".partial-"):
    print("ready", flush=True)
    time.sleep(60)

command_line.run(program)
"""


def test_ctrl_c_tidies_up_and_ends_the_program(tmp_path: pathlib.Path):
  """What is half done is taken away, one line says why, and whoever waits sees the signal."""
  command = [sys.executable, "-c", WAITING, str(tmp_path)]
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
  with subprocess.Popen(command, env=environment(), **pipes) as process:
    assert process.stdout.readline() == "ready\n"
    assert list(tmp_path.iterdir())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
  assert process.returncode == -signal.SIGINT
  assert errors == "interrupted; what was saved before is as it was\n"
  assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a full disk that Linux has")
@pytest.mark.parametrize("outcome", [Stopped, UserError, DivergedError])
def test_exit_code_survives_a_log_on_a_full_disk(outcome):
  """As with `> log 2>&1`, or in a terminal that was closed."""
  command = [sys.executable, "-c", PROGRAM, outcome.__name__]
  with open("/dev/full", "w") as full:
    done = subprocess.run(command, stdout=full, stderr=full, env=environment(), check=False)
  assert done.returncode == outcome.code


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a full disk that Linux has")
def test_a_program_whose_lines_cannot_be_printed_goes_on_and_says_so_once():
  command = [sys.executable, "-c", TALKING]
  with open("/dev/full", "w") as full:
    done = subprocess.run(
      command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False
    )
    both = subprocess.run(command, stdout=full, stderr=full, env=environment(), check=False)
  assert done.stderr == "LINES LOST: stdout cannot be written: No space left on device\n"
  assert done.returncode == both.returncode == 0


NEEDED = {"train": ("config", "workdir"), "evaluate": ("config", "workdir"), "list": ()}


@pytest.mark.parametrize(
  ("given", "taken"),
  [
    ("--workdir=run", True),
    ("--mode=evaluate --workdir run --config.evaluate.checkpoint=best", True),
    ("--flagfile=flags.txt", True),
    ("--workdir=run -- --config=r.py", True),
    ("--workdir=run --config.a=1 --config=r.py", False),
    ("--config r.py --workdir=run", False),
    ("--workdir=run --flagfile=recipe.txt", False),
    ("--mode=list --workdir=run", False),  # which needs none
    ("--workdir=nothing", False),  # where there is no run
    ("--mode=dance --workdir=run", False),
    ("--workdir", False),
    ("a.jpg --images=b", False),
  ],
)
def test_the_recipe_may_be_the_one_of_the_run(monkeypatch, tmp_path, given, taken):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "config.json").write_text("{}")
  (tmp_path / "flags.txt").write_text("--workdir=run\n")
  (tmp_path / "recipe.txt").write_text("--config=r.py\n")
  argv = ["main.py", *given.split()]
  read = flags.FlagValues().read_flags_from_files(argv[1:], force_gnu=False)
  found = command_line._with_saved_config(argv, read, NEEDED, "train")
  saved = f"--config={os.path.relpath(command_line._SAVED_CONFIG)}:run"
  assert found == (["main.py", saved, *argv[1:]] if taken else argv)


def folder(text: str) -> str | None:
  """What a program gets for `--workdir=text`."""
  values = flags.FlagValues()
  flags.DEFINE(Folder(), "workdir", None, "a folder", values)
  values(["program", f"--workdir={text}"])
  return values.workdir


def test_a_folder_below_home_is_not_below_one_that_is_called_tilde(monkeypatch):
  """Bash leaves the ~ in --workdir=~/run as it is."""
  monkeypatch.setenv("HOME", "/home/me")
  assert folder("~/runs/a") == "/home/me/runs/a"
  assert folder("runs/~a") == "runs/~a"


def test_a_folder_without_a_name_is_missing():
  """Not the folder where we are, which `pathlib.Path("")` is."""
  assert folder("") is None


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket/run", "file:///runs/a"])
def test_an_address_is_no_folder(address):
  """It would become a folder gs: here; the hint says how to write to a bucket."""
  with pytest.raises(flags.IllegalFlagValueError, match=rf"--workdir={address}.*gcsfuse"):
    folder(address)


def test_a_field_of_the_recipes_own_is_said_in_absls_words():
  error = flags.IllegalFlagValueError("flag --config.mine=abc: invalid literal")
  assert command_line._illegal(error) == str(error)
