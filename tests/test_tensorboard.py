"""TensorBoard's events, where they can be written and where not; no training."""

import sys
import threading

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from saol_jax import tensorboard
from saol_jax.runlog import RunLog, read_records
from saol_jax.tensorboard import TensorBoard


def test_numbers_and_images_are_shown_in_order(tmp_path):
  board = TensorBoard(tmp_path / "events")
  for step in (1, 2, 3):
    board.write_scalars(step, {"train/loss": 1 / step})
  board.write_image(3, "figures/maps", np.zeros((4, 5, 3), np.uint8))
  board.wait()
  shown = EventAccumulator(str(tmp_path / "events")).Reload()
  assert [event.step for event in shown.Tensors("train/loss")] == [1, 2, 3]
  assert [event.step for event in shown.Tensors("figures/maps")] == [3]
  board.close()


def test_nothing_is_opened_before_the_first_event(tmp_path, monkeypatch):
  monkeypatch.setattr(tensorboard, "import_tensorflow", lambda: pytest.fail("imported"))
  TensorBoard(tmp_path / "events").close()
  assert not (tmp_path / "events").exists()


def test_training_does_not_wait_for_the_import(tmp_path, monkeypatch):
  imported, opened = threading.Event(), []

  def slow():
    imported.wait(60)
    opened.append(threading.current_thread())

  monkeypatch.setattr(tensorboard, "import_tensorflow", slow)
  log = RunLog(tmp_path, 0)
  log.write(4, {"train/loss": 1.0})
  log.write(8, {"train/loss": 0.5})
  assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [4, 8]
  assert not opened
  imported.set()
  log.close()
  assert [thread is threading.current_thread() for thread in opened] == [False]


def test_failing_writer_is_given_up(tmp_path, monkeypatch, caplog):
  class Broken:
    def write_scalars(self, *_):
      raise RuntimeError("events cannot be written")

  monkeypatch.setattr(tensorboard, "_open", lambda folder: Broken())
  log = RunLog(tmp_path, 0)
  log.write(12, {})
  log.write(16, {})
  log.close()
  assert caplog.text.count("No more TensorBoard events: events cannot be written") == 1
  assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [12, 16]


def test_writer_that_cannot_be_opened_is_one_warning(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(tensorboard, "import_tensorflow", lambda: 1 / 0)
  log = RunLog(tmp_path, 0)
  log.write(4, {})
  log.write(8, {})
  log.close()
  assert caplog.text.count("No TensorBoard events: division by zero") == 1
  assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [4, 8]


def test_without_tensorflow_one_line_says_so(tmp_path, monkeypatch, caplog):
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  tensorboard.import_tensorflow.cache_clear()
  caplog.set_level("INFO")
  board = TensorBoard(tmp_path / "events")
  board.write_scalars(1, {})
  board.write_scalars(2, {})
  board.close()
  tensorboard.import_tensorflow.cache_clear()
  assert caplog.text.count("No TensorBoard events: tensorflow is not installed") == 1


def test_what_comes_after_the_end_is_dropped(tmp_path):
  board = TensorBoard(tmp_path / "events")
  board.close()
  board.write_image(1, "figures/maps", np.zeros((4, 5, 3), np.uint8))
  assert not (tmp_path / "events").exists()
