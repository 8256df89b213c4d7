"""The log of a run on disks that fail; no training."""

import errno
import json
import os
import shutil

import pytest

from saol_jax import runlog, tensorboard
from saol_jax.errors import UserError
from saol_jax.runlog import RunLog, read_records


@pytest.fixture
def log(tmp_path, monkeypatch):
  monkeypatch.setattr(tensorboard, "_open", lambda folder: None)  # as without TensorFlow
  log = RunLog(tmp_path / "run", 0)
  for step in (4, 8):
    log.write(step, {"train/loss": 1 / step})
  yield log
  log.close()


def test_vanished_log_is_written_again_with_all_its_lines(log, tmp_path, caplog):
  shutil.rmtree(tmp_path / "run")
  log.write(12, {"train/loss": 0.5})
  log.write(16, {"train/loss": 0.25})
  found = read_records(tmp_path / "run" / "metrics.jsonl")
  assert found == [
    {"step": s, "train/loss": x} for s, x in ((4, 1 / 4), (8, 1 / 8), (12, 0.5), (16, 0.25))
  ]
  assert caplog.text.count("LOG VANISHED") == 1


def test_replaced_log_is_written_again_with_all_its_lines(log, tmp_path, caplog):
  path = tmp_path / "run" / "metrics.jsonl"
  other = tmp_path / "other.jsonl"
  other.write_text("")
  other.replace(path)
  log.write(12, {})
  log.write(16, {})
  assert [record["step"] for record in read_records(path)] == [4, 8, 12, 16]
  assert caplog.text.count("LOG VANISHED") == 1


def test_full_disk_is_one_message_that_names_the_file(log, tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(runlog.os, "fsync", full)
  with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written: No space left on device"):
    log.write(12, {"train/loss": 0.5})


def test_file_system_without_fsync_is_no_fault(log, tmp_path, monkeypatch):
  def unknown(*_):
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

  monkeypatch.setattr(runlog.os, "fsync", unknown)
  log.write(12, {})
  assert read_records(tmp_path / "run" / "metrics.jsonl")[-1] == {"step": 12}


def test_damaged_line_costs_no_other(tmp_path, caplog):
  path = tmp_path / "metrics.jsonl"
  lines = [json.dumps({"step": step}).encode() for step in range(1, 6)]
  lines[1] = lines[1].replace(b"step", b"stdp")
  lines[2] = lines[2].replace(b"{", b"\xff")
  path.write_bytes(b"\n".join([*lines, b'{"step": 6, "tr']))
  assert read_records(path) == [{"step": 1}, {"step": 4}, {"step": 5}]
  assert [f"line {number} of" in caplog.text for number in range(1, 7)] == [
    False,
    True,
    True,
    False,
    False,
    False,
  ]


@pytest.mark.parametrize(
  "line", ['{"step": "7"}', '{"step": 1e400}', '{"step": 7, "eval/saol_top1": "0.9"}', "[7]", "7"]
)
def test_line_of_a_wrong_kind_is_left_out(tmp_path, caplog, line):
  path = tmp_path / "metrics.jsonl"
  path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 9}}\n')
  assert read_records(path) == [{"step": 1}, {"step": 9}]
  assert "line 2 of" in caplog.text
