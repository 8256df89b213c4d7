"""Real processes of main.py that are stopped, killed, or left without a disk: nothing is lost."""

import os
import random
import shutil
import signal
import subprocess
import time

import pytest

from tests.support import (
  command,
  environment,
  records,
  run,
  same_arrays,
  saved_state,
  snapshot,
  wait_until,
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  """Workdir of a run through main.py, on one device."""
  workdir = tmp_path_factory.mktemp("undisturbed")
  code, output = run(command(workdir))
  assert code == 0, output
  return workdir


def test_signal_while_compiling_leaves_at_once_and_a_restart_goes_on(undisturbed, tmp_path):
  process = start(command(tmp_path))
  wait_until((tmp_path / "metrics.jsonl").exists, process, seconds=120)
  leave(process, signal.SIGTERM)
  code, output = run(command(tmp_path))
  assert code == 0, output
  same_arrays(saved_state(undisturbed, 12), saved_state(tmp_path, 12))
  assert records(tmp_path) == records(undisturbed)


def test_signal_while_training_saves_and_a_restart_goes_on(tmp_path):
  """Both signals are handled alike, so that each is tried at one of the two moments."""
  watched = {"log_every_steps": 1, "eval_every_steps": 100_000, "checkpoint_every_steps": 100_000}
  long = command(tmp_path, num_train_steps=100_000, **watched)
  process = start(long)
  log = tmp_path / "metrics.jsonl"
  wait_until(lambda: log.exists() and log.read_text(), process, seconds=120)
  leave(process, signal.SIGINT)
  last = records(tmp_path)[-1]["step"]
  assert [int(path.name) for path in (tmp_path / "checkpoints").iterdir()] == [last]
  process = start(long)
  wait_until(lambda: records(tmp_path)[-1]["step"] > last, process, seconds=120)
  code, output = run(long)
  assert code == 2, output
  assert f"is in use: process {process.pid} on " in output
  output = leave(process, signal.SIGINT)
  assert f"Going on from step {last} " in output


def start(arguments: list[str]) -> subprocess.Popen:
  return subprocess.Popen(
    arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def leave(process: subprocess.Popen, number: signal.Signals) -> str:
  """Sends a signal and checks that it is answered soon and well; returns what was printed."""
  started = time.monotonic()
  process.send_signal(number)
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 75, output
  assert "Run the same command again" in output
  assert "Traceback" not in output
  assert time.monotonic() - started < 10
  return output


def test_kill_at_random_moments_loses_nothing(undisturbed, tmp_path):
  """kill -9, three times, anywhere between the first line of the log and the end."""
  moments = random.Random(0)
  kills = 0
  for _ in range(3):
    process = subprocess.Popen(
      command(tmp_path), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    seen = len((tmp_path / "metrics.jsonl").read_text()) if kills else 0

    def moved(seen=seen) -> bool:
      path = tmp_path / "metrics.jsonl"
      return path.exists() and len(path.read_text()) > seen

    while process.poll() is None and not moved():
      time.sleep(0.01)
    time.sleep(moments.uniform(0, 1.0))
    if process.poll() is None:
      process.kill()
      kills += 1
    process.wait()
  assert kills
  code, output = run(command(tmp_path))
  assert code == 0, output
  same_arrays(saved_state(undisturbed, 12), saved_state(tmp_path, 12))
  assert records(tmp_path) == records(undisturbed)


def test_full_disk_keeps_the_checkpoint_before(undisturbed, tmp_path):
  """A file system of 16 MB, filled up after the first checkpoint."""
  disk = tmp_path / "disk"
  disk.mkdir()
  mounted = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], capture_output=True, check=False
  )
  if mounted.returncode:
    pytest.skip("a small file system cannot be mounted here")
  try:
    workdir = disk / "run"
    shutil.copytree(undisturbed, workdir)
    shutil.rmtree(workdir / "checkpoints" / "12")
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    (workdir / "metrics.jsonl").write_text("".join(line + "\n" for line in lines[:3]))
    kept = snapshot(workdir / "checkpoints" / "10")
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filler").write_bytes(b"x" * (free - 300_000))
    code, output = run(command(workdir))
    assert code == 2, output
    assert "could not be saved" in output
    assert str(workdir / "checkpoints" / "10") in output
    assert "Traceback" not in output
    assert snapshot(workdir / "checkpoints" / "10") == kept
    (disk / "filler").unlink()
    code, output = run(command(workdir))
    assert code == 0, output[-3000:]
    assert "Going on from step 10" in output
  finally:
    subprocess.run(["umount", str(disk)], check=True)
