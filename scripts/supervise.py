"""Restarts a training command that crashed, as long as it makes progress.

  python scripts/supervise.py --workdir=DIR -- python main.py --config=... --workdir=DIR

A run goes on from its newest checkpoint whenever its command is started again; this does that. It
ends with the command's own exit code (128 + N where signal N ended it) when the command

  - ended well, or was asked to stop (0, 75);
  - said that a person has to mend something (2: bad input or a full disk, 3: loss not finite);
  - ended --give_up_after times in a row (3) without a newer checkpoint than before.

SIGTERM, Ctrl-C and SIGHUP (a closed terminal; not under nohup) are passed on to the command, which
saves and leaves with 75. On Linux it is also asked to stop when this program is killed.
"""

import argparse
import contextlib
import ctypes
import os
import pathlib
import signal
import subprocess
import sys
import time

_FINAL = (0, 2, 3, 75)  # exit codes, see saol_jax/errors.py
_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2), Linux alone


def newest_checkpoint(workdir: pathlib.Path) -> int:
  """Step of the newest checkpoint in a workdir; -1 without any."""
  names = [path.name for path in workdir.glob("checkpoints/*")]
  return max((int(name) for name in names if name.isdigit()), default=-1)


def _end_with_parent() -> None:
  """In the command's process: asks for SIGTERM when the supervisor dies, by a kill -9 even."""
  ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def supervise(
  command: list[str], workdir: pathlib.Path, *, give_up_after: int, pause: float
) -> int:
  """Runs a command until one of the reasons above ends it; returns its exit code."""
  process: subprocess.Popen | None = None
  stopping = False
  end_with_parent = _end_with_parent if sys.platform == "linux" else None

  def pass_on(number, frame) -> None:
    nonlocal stopping
    stopping = True
    if process is not None:
      process.send_signal(number)

  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves it
      signal.signal(number, pass_on)
  in_vain = 0
  while True:
    before = newest_checkpoint(workdir)
    # A terminal sends Ctrl-C to all that it started. In a session of its own the command sees only
    # what is passed on: it takes a second one for "leave without saving".
    try:
      process = subprocess.Popen(command, start_new_session=True, preexec_fn=end_with_parent)
    except OSError as error:
      _say(f"cannot be started: {error}; after -- goes a program that exists, and its arguments")
      return 2
    if stopping:  # perhaps since before there was a process; a SIGTERM may come twice
      process.terminate()
    code = process.wait()
    code = code if code >= 0 else 128 - code  # as shells say it
    if code in _FINAL or stopping:
      return code
    step = newest_checkpoint(workdir)
    in_vain = 0 if step > before else in_vain + 1
    if in_vain >= give_up_after:
      _say(f"ended with code {code}, {in_vain} times without a newer checkpoint: giving up")
      return code
    _say(f"ended with code {code}; its newest checkpoint is step {step}; starting it again")
    time.sleep(pause)
    if stopping:
      return code


def _say(text: str) -> None:
  """Writes to stderr; on a full disk or a closed terminal the command matters more."""
  with contextlib.suppress(OSError):  # not through Python's buffer, which is tried again at the end
    os.write(2, f"supervise: the command {text}\n".encode(errors="backslashreplace"))


def main() -> None:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="of the run")
  parser.add_argument("--give_up_after", type=int, default=3, help="crashes without progress")
  parser.add_argument("--pause", type=float, default=5.0, help="seconds before a restart")
  parser.add_argument("command", nargs="+", help="after --")
  options = parser.parse_args()
  if options.give_up_after < 1:
    parser.error(f"--give_up_after={options.give_up_after}; expected 1 or more")
  workdir = options.workdir.expanduser()
  limits = {"give_up_after": options.give_up_after, "pause": options.pause}
  sys.exit(supervise(options.command, workdir, **limits))


if __name__ == "__main__":
  main()
