"""The supervisor around commands that crash in known ways; no training."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = pathlib.Path(__file__).parent.parent / "scripts" / "supervise.py"

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


def test_a_stop_is_passed_on(tmp_path):
  child = (
    "import signal, sys, time, pathlib\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
    f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
    "time.sleep(60)\n"
  )
  process = subprocess.Popen(supervised(tmp_path, "-c", child))
  while not (tmp_path / "ready").exists():
    assert process.poll() is None
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=30) == 75
