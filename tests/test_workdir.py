"""Who a workdir belongs to, and who may train in it; no training."""

import errno
import os
import shutil
import subprocess
import sys

import pytest

from saol_jax import workdir as workdirs
from saol_jax.config import resolve
from saol_jax.errors import UserError
from saol_jax.workdir import Lock, check_config
from tests.support import tiny_config

HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("process 7 on node3", file=file, flush=True)
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
  monkeypatch.setattr(workdirs, "_LOCK_SECONDS", 0.0)


def test_second_run_is_refused_until_the_first_one_is_killed(tmp_path):
  command = [sys.executable, "-c", HOLDER, str(tmp_path / "train.lock")]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "locked\n"
  with pytest.raises(UserError, match=r"in use: process 7 on node3 .* another --workdir"):
    Lock(tmp_path)
  process.kill()
  process.communicate()
  Lock(tmp_path).close()
  Lock(tmp_path).close()
  assert (tmp_path / "train.lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_run_that_is_just_ending_is_waited_for(tmp_path, monkeypatch):
  first, waits = Lock(tmp_path), []

  def end(seconds):
    waits.append(seconds)
    first.close()

  monkeypatch.setattr(workdirs, "_LOCK_SECONDS", 60.0)
  monkeypatch.setattr(workdirs.time, "sleep", end)
  Lock(tmp_path).close()
  assert len(waits) == 1


def test_vanished_lock_is_taken_anew_unless_another_run_has_it(tmp_path):
  workdir = tmp_path / "run"
  lock = Lock(workdir)
  shutil.rmtree(workdir)
  lock.put_back()
  with pytest.raises(UserError, match="is in use"):
    Lock(workdir)
  workdir.rename(tmp_path / "gone")
  other = Lock(workdir)
  with pytest.raises(UserError, match=f"is in use: process {os.getpid()} on "):
    lock.put_back()
  other.close()
  lock.put_back()
  lock.close()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog, number):
  def refuse(*_):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(workdirs.fcntl, "flock", refuse)
  lock = Lock(tmp_path)
  lock.put_back()
  lock.close()
  assert caplog.text.count("NO LOCK") == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_lock_that_fails_otherwise_is_an_error(tmp_path, monkeypatch, number):
  def refuse(*_):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(workdirs.fcntl, "flock", refuse)
  with pytest.raises(UserError, match=f"cannot be written: {os.strerror(number)}"):
    Lock(tmp_path)


def test_what_could_not_be_written_in_the_end_is_said_at_the_start(tmp_path):
  workdirs.check_writable(tmp_path)
  assert not list(tmp_path.iterdir())
  with pytest.raises(UserError, match="nowhere cannot be written: No such file"):
    workdirs.check_writable(tmp_path / "nowhere")


def test_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match=r"file/run cannot be written: Not a directory"):
    Lock(tmp_path / "file" / "run")


def test_a_workdir_of_another_run_keeps_its_config(tmp_path):
  workdirs.claim(resolve(tiny_config()), tmp_path)
  before = (tmp_path / "config.json").read_bytes()
  with pytest.raises(UserError, match="another config"):
    workdirs.claim(resolve(tiny_config(model__width=16)), tmp_path)
  assert (tmp_path / "config.json").read_bytes() == before


def test_a_config_that_cannot_be_read_is_said(tmp_path):
  (tmp_path / "config.json").mkdir()
  with pytest.raises(UserError, match=r"config\.json is not readable \(.*Is a directory"):
    check_config(tiny_config(), tmp_path)


@pytest.mark.parametrize("text", [b"[]", b"3", b'"x"', b"null", b"", b"\xff"])
def test_a_config_that_is_none_is_not_readable(tmp_path, text):
  path = tmp_path / "config.json"
  path.write_bytes(text)
  with pytest.raises(UserError, match=r"config\.json is not readable .* another --workdir"):
    check_config(tiny_config(), tmp_path)
