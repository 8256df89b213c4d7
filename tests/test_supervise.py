"""The supervisor around commands that crash in known ways; no training."""

import os
import signal
import subprocess
import sys

import pytest

from tests.support import ROOT, wait_until

SCRIPT = ROOT / "scripts" / "supervise.py"

# Each start counts itself, saves a checkpoint if told to, and ends with the next of some codes.
CHILD = """
import pathlib, sys
workdir, saves, codes = pathlib.Path(sys.argv[1]), sys.argv[2] == "yes", sys.argv[3].split(",")
starts = workdir / "starts"
count = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (count + 1))
if saves:
  (workdir / "checkpoints" / str(count)).mkdir(parents=True)
sys.exit(int(codes[min(count, len(codes) - 1)]))
"""


def supervised(workdir, *command) -> list[str]:
  options = [f"--workdir={workdir}", "--pause=0", "--give_up_after=3"]
  return [sys.executable, str(SCRIPT), *options, "--", sys.executable, *command]


@pytest.mark.parametrize(
  ("saves", "codes", "ends_with", "starts"),
  [
    ("no", "0", 0, 1),
    ("no", "1,1,0", 0, 3),
    ("no", "1", 1, 3),  # no progress: given up
    ("yes", "1,1,1,1,1,0", 0, 6),  # progress each time: never given up
    ("yes", "1,2", 2, 2),  # a person has to mend something
    ("yes", "69,3", 3, 2),
    ("yes", "75", 75, 1),
  ],
)
def test_restarts_only_what_may_help(tmp_path, saves, codes, ends_with, starts):
  command = supervised(tmp_path, "-c", CHILD, str(tmp_path), saves, codes)
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == ends_with, done.stderr
  assert len((tmp_path / "starts").read_text()) == starts
  assert done.stderr.count("starting it again") == starts - 1
  assert ("giving up" in done.stderr) == (codes == "1")


def test_giving_up_after_no_crash_at_all_is_refused(tmp_path):
  command = [
    sys.executable,
    str(SCRIPT),
    f"--workdir={tmp_path}",
    "--give_up_after=0",
    "--",
    "true",
  ]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 2
  assert "--give_up_after=0; expected 1 or more" in done.stderr


def test_progress_is_seen_in_a_workdir_below_home(tmp_path):
  command = supervised("~/run", "-c", CHILD, str(tmp_path / "run"), "yes", "1,1,1,1,0")
  (tmp_path / "run").mkdir()
  home = os.environ | {"HOME": str(tmp_path)}
  assert subprocess.run(command, env=home, check=False).returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a full disk that Linux has")
def test_a_log_on_a_full_disk_does_not_end_the_run(tmp_path):
  command = supervised(tmp_path, "-c", CHILD, str(tmp_path), "no", "1,0")
  with open("/dev/full", "w") as full:
    assert subprocess.run(command, stderr=full, check=False).returncode == 0


def test_an_end_by_a_signal_is_said_as_shells_do(tmp_path):
  kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
  done = subprocess.run(supervised(tmp_path, "-c", kill), check=False)
  assert done.returncode == 128 + signal.SIGKILL


def test_a_command_that_cannot_be_started_is_one_message(tmp_path):
  command = supervised(tmp_path)
  command[-1] = str(tmp_path / "pyhton")
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 2, done.stderr
  assert command[-1] in done.stderr
  assert len(done.stderr.splitlines()) == 1


# Notes when it is up; at the first signal it saves for a while, and notes how many came by then.
STOPPED = """
import os, pathlib, signal, sys, time
workdir, seen = pathlib.Path(sys.argv[1]), []
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
  signal.signal(number, lambda number, _: seen.append(signal.Signals(number).name))
(workdir / f"ready in {os.getpgrp()}").touch()
deadline = time.monotonic() + 60
while not seen and time.monotonic() < deadline:
  time.sleep(0.01)
time.sleep(0.5)
(workdir / "saved").write_text(" ".join(seen))
sys.exit(75)
"""


def start(workdir) -> subprocess.Popen:
  """A supervised command that has come to its work, in a process group as a terminal makes one."""
  command = supervised(workdir, "-c", STOPPED, str(workdir))
  before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's tests would pass on "ignored"
  process = subprocess.Popen(command, start_new_session=True)
  signal.signal(signal.SIGHUP, before)
  wait_until(lambda: any(workdir.glob("ready in *")), process, seconds=60)
  return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stop_is_passed_on(tmp_path, number):
  process = start(tmp_path)
  process.send_signal(number)
  assert process.wait(timeout=30) == 75
  assert (tmp_path / "saved").read_text() == number.name


# The supervisor, to which a stop comes when its command has started and it does not know that yet.
STOPPED_WHILE_STARTING = """
import os, runpy, signal, subprocess, sys
class Popen(subprocess.Popen):
  def __init__(self, *arguments, **options):
    super().__init__(*arguments, **options)
    os.kill(os.getpid(), signal.SIGTERM)
subprocess.Popen = Popen
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_stop_while_the_command_starts_is_passed_on(tmp_path):
  python, *arguments = supervised(tmp_path, "-c", "import time; time.sleep(60)")
  command = [python, "-c", STOPPED_WHILE_STARTING, *arguments]
  assert subprocess.run(command, timeout=30, check=False).returncode == 128 + signal.SIGTERM


def test_ctrl_c_reaches_the_command_once(tmp_path):
  """A terminal sends it to the whole group; a second one would interrupt the save."""
  process = start(tmp_path)
  assert not (tmp_path / f"ready in {process.pid}").exists()  # two at once may be seen as one
  os.killpg(process.pid, signal.SIGINT)
  assert process.wait(timeout=30) == 75
  assert (tmp_path / "saved").read_text() == "SIGINT"


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_the_command_ends_with_a_killed_supervisor(tmp_path):
  process = start(tmp_path)
  process.kill()
  process.wait()
  wait_until(lambda: (tmp_path / "saved").exists() and (tmp_path / "saved").read_text(), seconds=30)
  assert (tmp_path / "saved").read_text() == "SIGTERM"
