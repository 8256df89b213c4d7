"""Two real processes with two devices each, beside one process with four."""

import os
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from saol_jax.distributed import join_processes, stay_alone
from saol_jax.errors import PEER_LOST, Stopped, UserError
from tests.data.bad_files import BROKEN, ODD, write
from tests.support import command, environment, records, run, saved_state, wait_until

# Groups of norms and pairs inside a device, and a line of the log at every step. From the same
# parameters, gradients of one device and of four differ by 7e-7 of their norm, and training at the
# rate r makes that grow by about 1 + 2000 r a step: at 0.01 twentyfold, at 1e-4 to 1e-5 of the
# losses after 20 steps. At 1e-5 it stays below 1e-6, while a rate wrong by 1 % shows as 2e-5.
CHANGES = {"num_train_steps": 20, "log_every_steps": 1, "eval_every_steps": 10}
CHANGES |= {"checkpoint_every_steps": 10, "figures": False}
CHANGES |= {"optimizer.name": "sgd", "optimizer.learning_rate": 1e-5}


def free_port() -> int:
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]


def start_both(workdir, *more, unable=None, **changes) -> list[subprocess.Popen]:
  port = free_port()
  commands = [
    command(
      workdir,
      f"--coordinator=localhost:{port}",
      "--num_processes=2",
      f"--process_id={index}",
      *more,
      **CHANGES | changes,
    )
    for index in (0, 1)
  ]
  if unable is not None:
    commands[unable][1:1] = ["-c", UNABLE]
  return [
    subprocess.Popen(
      one,
      env=environment(2),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for one in commands
  ]


def ends(processes, timeout=300) -> list[tuple[int, str]]:
  """The exit codes and outputs; prints the latter, for pytest shortens those of an assertion."""
  outputs = [process.communicate(timeout=timeout)[0] for process in processes]
  print(*outputs, sep="\n\n")
  return [(process.returncode, text) for process, text in zip(processes, outputs, strict=True)]


def same_but_for_rounding(a: dict[str, float], b: dict[str, float]) -> None:
  """Two lines of a log. Where a ReLU is at 0 its gradient may flip: 5e-4 of the norm, once."""
  assert a.keys() == b.keys()
  for name in a:
    rtol = 1e-3 if name == "train/gradient_norm" else 1e-6
    np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("alone")
  code, output = run(command(workdir, **CHANGES), devices=4)
  assert code == 0, output
  return workdir


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
  """A run of two processes of which the second one, which is not the main one, got SIGTERM."""
  workdir = tmp_path_factory.mktemp("together")
  processes = start_both(workdir)
  wait_until(lambda: (workdir / "metrics.jsonl").exists() and records(workdir), *processes)
  processes[1].send_signal(signal.SIGTERM)
  return workdir, ends(processes)


def test_all_save_the_same_step_and_leave(stopped):
  workdir, ended = stopped
  assert [code for code, _ in ended] == [Stopped.code] * 2, ended
  last = records(workdir)[-1]["step"]
  assert last < 20
  assert (workdir / "checkpoints" / str(last)).is_dir()
  assert "images/s" in ended[0][1]
  assert "images/s" not in ended[1][1]  # one of them speaks


# main.py in a process that cannot read the newest checkpoint, though it is whole.
UNABLE = """
import runpy, sys
from saol_jax.checkpoint import Checkpoints
read = Checkpoints._read
def fail_at_the_newest(self, step, like):
  if step == self.latest:
    raise OSError("Input/output error")
  return read(self, step, like)
Checkpoints._read = fail_at_the_newest
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_what_one_process_alone_cannot_read_is_not_passed_over(stopped, tmp_path):
  """They would go on from different steps, each with a share of the same batches."""
  workdir = shutil.copytree(stopped[0], tmp_path / "run")
  newest = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
  older = workdir / "checkpoints" / "0"
  if not older.exists():
    shutil.copytree(workdir / "checkpoints" / str(newest), older)
  processes = start_both(workdir, unable=1)
  codes, outputs = zip(*ends(processes, timeout=200), strict=True)
  assert codes[1] == UserError.code, outputs
  assert f"can read step 0 at best, and the main process step {newest}" in outputs[1]
  assert codes[0] in (PEER_LOST, -signal.SIGABRT), outputs
  assert (workdir / "checkpoints" / str(newest)).is_dir()


def test_two_processes_train_as_one(stopped, alone):
  """After a stop in the middle, that is, so that resuming is tried as well."""
  workdir, _ = stopped
  ended = ends(start_both(workdir))
  assert [code for code, _ in ended] == [0, 0], ended
  expected, found = records(alone), records(workdir)
  assert [r["step"] for r in found] == [r["step"] for r in expected]
  for a, b in zip(found, expected, strict=True):
    same_but_for_rounding(a, b)
  a, b = (saved_state(folder, 20, optimizer__name="sgd") for folder in (workdir, alone))
  for name in filter(lambda name: name.startswith((".variables", ".ema")), b):
    np.testing.assert_allclose(a[name], b[name], rtol=1e-6, atol=1e-6, err_msg=name)


def test_a_killed_process_ends_the_other_and_one_device_goes_on(stopped, alone):
  """Elastic: written by two processes with two devices, taken up by one with one."""
  workdir, _ = stopped
  for path in (workdir / "checkpoints").iterdir():  # back to step 10
    if path.name == "20":
      os.rename(path, workdir / "20")
  processes = start_both(workdir, num_train_steps=20)
  wait_until(lambda: records(workdir)[-1]["step"] <= 10, *processes)
  processes[1].kill()
  (code, output), _ = ends(processes)
  # Whichever notices first: our own message, or the heartbeat of JAX, which aborts with its own.
  assert code in (PEER_LOST, -signal.SIGABRT), output
  assert "another process of this run is gone" in output or "heartbeat" in output, output
  code, output = run(command(workdir, **CHANGES))
  assert code == 0, output
  for a, b in zip(records(workdir), records(alone), strict=True):
    same_but_for_rounding(a, b)


def test_vanished_checkpoints_are_put_back_by_all(tmp_path, alone):
  processes = start_both(tmp_path)
  wait_until(lambda: (tmp_path / "checkpoints" / "10").is_dir(), *processes)
  shutil.rmtree(tmp_path / "checkpoints")
  ended = ends(processes)
  assert [code for code, _ in ended] == [0, 0], ended
  assert "CHECKPOINTS VANISHED" in ended[0][1]
  for a, b in zip(records(tmp_path), records(alone), strict=True):
    same_but_for_rounding(a, b)
  a, b = (saved_state(folder, 20, optimizer__name="sgd") for folder in (tmp_path, alone))
  assert a.keys() == b.keys()


def test_a_save_that_fails_in_one_process_keeps_none_waiting(tmp_path):
  """It would be for Orbax's 20 minutes. The save may just be done: then they are put back."""
  processes = start_both(tmp_path)
  folder = tmp_path / "checkpoints"
  begun = folder / "10.orbax-checkpoint-tmp" / "checksums.orbax-checkpoint-tmp"
  wait_until(lambda: begun.exists() or (folder / "10").exists(), *processes)
  shutil.rmtree(folder, ignore_errors=True)
  codes, outputs = zip(*ends(processes, timeout=200), strict=True)
  if codes == (0, 0):
    assert "CHECKPOINTS VANISHED" in outputs[0]
    return
  # Whichever of the two could not write says so; it takes the other one with it.
  assert UserError.code in codes, outputs
  assert set(codes) <= {UserError.code, PEER_LOST, -signal.SIGABRT}, outputs
  assert "could not be saved" in outputs[codes.index(UserError.code)]


def test_broken_images_are_replaced_and_counted_once_whoever_meets_them(tmp_path):
  files = {f"train/odd/{name}": data for name, data in ODD.items()}
  files |= {f"train/worse/{name}": data for name, (data, _) in BROKEN.items()}
  files |= {f"val/{path.removeprefix('train/')}": data for path, data in files.items()}
  write(tmp_path / "data", files)
  changes = {"data.name": "folder", "data.data_dir": tmp_path / "data", "data.image_size": 32}
  changes |= {"data.bad_in_evaluation": "count", "data.max_bad_fraction": 0.5}
  changes |= {"num_train_steps": 4, "eval_every_steps": 4, "eval_batch_size": 8}
  code, output = run(command(tmp_path / "alone", **CHANGES | changes), devices=4)
  assert code == 0, output
  ended = ends(start_both(tmp_path / "together", **changes))
  assert [code for code, _ in ended] == [0, 0]
  expected, found = records(tmp_path / "alone"), records(tmp_path / "together")
  for a, b in zip(found, expected, strict=True):
    same_but_for_rounding(a, b)
  assert sum(line.get("train/replaced_images", 0) for line in found) > len(BROKEN)
  assert found[-1]["eval/broken_images"] == len(BROKEN)
  assert "images are broken" in ended[0][1]
  assert "images are broken" not in ended[1][1]  # one of them speaks


def test_flags_go_together():
  with pytest.raises(UserError, match="--process_id missing"):
    join_processes("localhost:1", 2, None)


JOINED = """
import sys, time
from saol_jax.distributed import join_processes
join_processes(f"localhost:{sys.argv[1]}", 1, 0)
print("joined", flush=True)
time.sleep(60)
"""


def test_sigterm_ends_what_does_not_ask_to_be_stopped():
  """An evaluation, say. JAX's preemption service would take the signal and do nothing."""
  process = subprocess.Popen(
    [sys.executable, "-c", JOINED, str(free_port())],
    env=environment(1),
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "joined\n"
  process.terminate()
  process.communicate(timeout=30)
  assert process.returncode == -signal.SIGTERM


def test_alone_nothing_is_joined(monkeypatch):
  monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
  join_processes()
  stay_alone("--mode=predict", None, None, None)
  assert not jax.distributed.is_initialized()


def test_what_is_one_process_refuses_to_be_one_of_several(monkeypatch):
  with pytest.raises(UserError, match=r"--mode=predict .* without --num_processes, --process_id"):
    stay_alone("--mode=predict", None, 2, 0)
  monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
  with pytest.raises(UserError, match=r"--mode=list .* without the other tasks of SLURM"):
    stay_alone("--mode=list", None, None, None)
