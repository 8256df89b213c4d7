"""A run that was stopped, or that finds damage, ends as if nothing had happened. All in process."""

import contextlib
import functools
import itertools
import json
import os
import pathlib
import shutil
import threading
import time
import types

import jax
import pytest

from benchmarks.faults import comparison
from saol_jax.checkpoint import Checkpoints, has_checkpoints
from saol_jax.config import resolve
from saol_jax.errors import Stopped, UserError
from saol_jax.evaluate import evaluate
from saol_jax.experiment import Experiment
from saol_jax.runlog import RunLog
from saol_jax.stopping import StopRequest
from saol_jax.train import train_and_evaluate
from saol_jax.workdir import Lock
from tests.support import assert_identical, records, snapshot, tiny_config


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  """Workdir and final state of a run in this process."""
  workdir = tmp_path_factory.mktemp("undisturbed")
  return workdir, jax.device_get(train_and_evaluate(tiny_config(), workdir))


def test_run_leaves_what_it_promises(undisturbed):
  workdir, state = undisturbed
  assert int(state.step) == 12
  assert json.loads((workdir / "config.json").read_text())["model"]["width"] == 8
  steps = [record["step"] for record in records(workdir)]
  assert steps == [4, 6, 8, 12, 12]
  lines = records(workdir, timing=True)
  assert {
    "train/loss",
    "train/loss_spatial",
    "train/loss_mask",
    "train/loss_consistency",
    "train/loss_distillation",
    "train/learning_rate",
    "time/images_per_second",
  } <= lines[0].keys()
  scores = {f"{head}_{s}" for head in ("saol", "gap") for s in ("top1", "top5", "nll", "ece")}
  expected = {f"eval/{prefix}{score}" for prefix in ("", "ema_") for score in scores}
  assert expected <= lines[1].keys()
  assert list((workdir / "tensorboard").glob("events.out.tfevents.*"))
  assert {"curves.png", "predictions.png"} <= {path.name for path in workdir.iterdir()}


def test_latest_two_and_the_best_are_kept(tmp_path):
  experiment = Experiment(resolve(tiny_config()))
  state, scores = experiment.init(), {10: 0.3, 20: 0.9, 30: 0.5, 40: 0.9, 50: 0.1}
  known: dict[int, float] = {}
  checkpoints = Checkpoints(tmp_path, known)
  for step, score in scores.items():
    checkpoints.save(state.replace(step=jax.numpy.int32(step)))
    known[step] = score
  checkpoints.wait()
  assert checkpoints.steps == [20, 40, 50]
  assert (checkpoints.best, checkpoints.latest) == (20, 50)
  checkpoints.close()


def test_what_a_killed_save_left_is_no_checkpoint(tmp_path):
  assert not has_checkpoints(tmp_path)
  (tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir(parents=True)
  assert not has_checkpoints(tmp_path)
  (tmp_path / "checkpoints" / "9").mkdir()
  assert has_checkpoints(tmp_path)


def test_a_disk_without_the_space_is_said_before_anything_is_written(
  undisturbed, tmp_path, monkeypatch
):
  state = jax.device_put(undisturbed[1])
  needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  checkpoints = Checkpoints(tmp_path, {})
  with monkeypatch.context() as patch:
    patch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=needed - 1))
    message = f"the disk is full: {needed:,} bytes are needed, {needed - 1:,} are free; there was"
    with pytest.raises(UserError, match=message):
      checkpoints.save(state)
  checkpoints.close()
  assert not list((tmp_path / "checkpoints").iterdir())


def test_what_a_killed_save_left_is_deleted_by_the_next_run_alone(undisturbed, tmp_path):
  left = tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp" / "state.orbax-checkpoint-tmp" / "d"
  left.mkdir(parents=True)
  (left / "array").write_text("half of it")
  Checkpoints(tmp_path, {}, read_only=True).close()
  assert left.is_dir()
  checkpoints = Checkpoints(tmp_path, {})
  checkpoints.save_for_good(jax.device_put(undisturbed[1]))
  checkpoints.close()
  assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["12"]


@pytest.mark.parametrize("moment", ["between saves", "in a save", "bit by bit"])
def test_vanished_checkpoints_are_saved_anew(undisturbed, tmp_path, monkeypatch, caplog, moment):
  state = jax.device_put(undisturbed[1])
  at_step = {step: state.replace(step=jax.numpy.int32(step)) for step in (10, 20, 30)}
  checkpoints = Checkpoints(tmp_path, {})
  checkpoints.save(at_step[10])
  checkpoints.wait()
  checkpoints.save(at_step[20])
  if moment != "in a save":
    checkpoints.wait()
  remove = functools.partial(shutil.rmtree, tmp_path / "checkpoints", ignore_errors=True)
  if moment == "bit by bit":  # first what was being written, and soon the others
    wait = checkpoints._manager.wait_until_finished

    def fail_once():
      monkeypatch.setattr(checkpoints._manager, "wait_until_finished", wait)
      threading.Timer(0.2, remove).start()
      raise ValueError("No ArrayMetadata found")  # Orbax's words

    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", fail_once)
  else:
    remove()
  if moment == "in a save":
    checkpoints.save_for_good(at_step[20])
    assert checkpoints.steps == [20]
  checkpoints.save_for_good(at_step[30])
  assert checkpoints.latest == 30
  assert caplog.text.count("CHECKPOINTS VANISHED") == 1
  assert_identical(at_step[30], checkpoints.restore(state))
  checkpoints.close()


def test_where_the_workdir_vanishes_in_a_save_no_checkpoint_stands_alone(
  undisturbed, tmp_path, monkeypatch
):
  """Orbax makes the folder anew; without config.json a restart could not tell whose it is."""
  workdir, gone, around = tmp_path / "run", tmp_path / "gone", []
  check_space = Checkpoints._check_space

  def vanish(self, state):
    check_space(self, state)
    if int(state.step) == 12 and not gone.exists():
      workdir.rename(gone)

  def look_and_evaluate(*arguments, **options):
    if gone.exists():
      while not (workdir / "checkpoints" / "12").is_dir():
        time.sleep(0.01)
      around.append({path.name for path in workdir.iterdir()})
      around.append([record["step"] for record in records(workdir)])
    return evaluate(*arguments, **options)

  monkeypatch.setattr(Checkpoints, "_check_space", vanish)
  monkeypatch.setattr("saol_jax.train.evaluate", look_and_evaluate)
  state = train_and_evaluate(tiny_config(), workdir)
  assert around[0] >= {"config.json", "model.json", "metrics.jsonl", "train.lock"}
  assert around[1] == [4, 6, 8, 12]
  assert_identical(undisturbed[1], state)
  assert records(workdir) == records(undisturbed[0])


def test_a_workdir_in_use_is_refused_and_left_alone(undisturbed, monkeypatch):
  monkeypatch.setattr("saol_jax.workdir._LOCK_SECONDS", 0.0)
  with contextlib.closing(Lock(undisturbed[0])):
    before = snapshot(undisturbed[0])
    with pytest.raises(UserError, match="is in use"):
      train_and_evaluate(tiny_config(), undisturbed[0])
    assert snapshot(undisturbed[0]) == before


def test_a_run_whose_workdir_another_has_by_now_ends_and_leaves_it_alone(tmp_path, monkeypatch):
  """As after `mv run old` and a new start: the log of the other is not overwritten."""
  workdir, theirs = tmp_path / "run", '{"step": 1}\n'
  monkeypatch.setattr("saol_jax.workdir._LOCK_SECONDS", 0.0)

  def take_over(self, state):
    if workdir.with_name("old").exists():
      return
    workdir.rename(workdir.with_name("old"))
    stack.enter_context(contextlib.closing(Lock(workdir)))
    (workdir / "metrics.jsonl").write_text(theirs)

  monkeypatch.setattr(Checkpoints, "_check_space", take_over)
  with contextlib.ExitStack() as stack:
    config = tiny_config(eval_every_steps=12, log_every_steps=6)
    with pytest.raises(UserError, match="is in use"):
      train_and_evaluate(config, workdir)
  assert (workdir / "metrics.jsonl").read_text() == theirs


@pytest.mark.parametrize("moment", ["between saves", "at the last", "at the last, still writing"])
def test_clock_set_forward_in_a_save_costs_no_state(
  undisturbed, tmp_path, monkeypatch, caplog, moment
):
  """By an hour whenever somebody looks, until a save seems to have taken too long."""
  state, hours, now = jax.device_put(undisturbed[1]), itertools.count(), time.time
  checkpoints = Checkpoints(tmp_path, {})
  save, saves = checkpoints._manager.save, []

  def save_beside_another(step, **options):
    saves.append(step)
    if saves == [12, 12]:  # what Orbax finds where a thread of the first one was slow
      raise FileExistsError(f"File exists: {step}.orbax-checkpoint-tmp")
    return save(step, **options)

  with monkeypatch.context() as patch:
    jumping = lambda: "NOT SAVED IN TIME" not in caplog.text  # noqa: E731
    patch.setattr(time, "time", lambda: now() + 3600 * (next(hours) if jumping() else 0))
    if moment == "between saves":
      checkpoints.save(state.replace(step=jax.numpy.int32(6)))
    if moment == "at the last, still writing":
      patch.setattr(checkpoints._manager, "save", save_beside_another)
    checkpoints.save_for_good(state)
  assert caplog.text.count("NOT SAVED IN TIME") == 1
  if moment == "at the last, still writing":
    assert "NOT SAVED YET: File exists" in caplog.text
  assert checkpoints.steps == [12]
  assert_identical(state, checkpoints.restore(state))
  checkpoints.close()


def test_comparison_of_the_fault_benchmark_sees_what_is_lost(undisturbed, tmp_path):
  experiment, copy = Experiment(resolve(tiny_config())), tmp_path / "copy"
  shutil.copytree(undisturbed[0], copy)
  assert comparison.differences(undisturbed[0], copy, experiment, best_is_kept=True) == []
  log = (copy / "metrics.jsonl").read_text().splitlines()
  log[0] = log[0].replace('"train/loss": ', '"train/loss": 1')
  (copy / "metrics.jsonl").write_text("\n".join(log))
  (copy / "config.json").write_text("{}")
  shutil.rmtree(copy / "checkpoints" / "12")
  found = comparison.differences(undisturbed[0], copy, experiment, best_is_kept=False)
  starts = [
    "metrics.jsonl, line 1:",
    "the latest checkpoint is step 10 ",
    "config.json is different",
  ]
  assert [line.startswith(start) for line, start in zip(found, starts, strict=True)] == [True] * 3


@pytest.mark.parametrize("moment", ["before the first step", "step 3", "step 6", "in evaluation"])
def test_stopped_and_resumed_equals_undisturbed(undisturbed, tmp_path, monkeypatch, moment):
  """At a step without, and one with a line in the log and an evaluation; and inside that."""
  requests = []

  class Watched(StopRequest):
    def __init__(self):
      super().__init__()
      requests.append(self)

  monkeypatch.setattr("saol_jax.train.StopRequest", Watched)
  compiled = Experiment.compile

  def compile_and_watch(self):
    compiled(self)
    train_step, eval_step = self.train_step, self.eval_step
    if moment == "before the first step":
      requests[0].set()

    def watched_step(state, batch):
      state, metrics = train_step(state, batch)
      if moment.startswith("step") and int(state.step) == int(moment.split()[1]):
        requests[0].set()
      return state, metrics

    def watched_eval(*arguments):
      if moment == "in evaluation":
        requests[0].set()
      return eval_step(*arguments)

    self.train_step, self.eval_step = watched_step, watched_eval

  with monkeypatch.context() as patch:
    patch.setattr(Experiment, "compile", compile_and_watch)
    with pytest.raises(Stopped):
      train_and_evaluate(tiny_config(), tmp_path)
  state = train_and_evaluate(tiny_config(), tmp_path)
  assert_identical(undisturbed[1], state)
  assert records(tmp_path) == records(undisturbed[0])


def test_the_report_on_classes_is_there_before_the_line_of_the_evaluation(
  undisturbed, tmp_path, monkeypatch
):
  """Killed between the two, a run that found the line alone would not evaluate that step again."""
  workdir = tmp_path / "run"
  shutil.copytree(undisturbed[0], workdir)
  shutil.rmtree(workdir / "evaluation_test_latest")
  lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
  (workdir / "metrics.jsonl").write_text("".join(lines[:-1]))

  def killed(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(RunLog, "write", killed)
  with pytest.raises(KeyboardInterrupt):
    train_and_evaluate(tiny_config(), workdir)
  reported = {path.name for path in (workdir / "evaluation_test_latest").iterdir()}
  assert reported >= {"classes.csv", "confusion.csv"}


def test_finished_run_only_reports_again(undisturbed):
  workdir, state = undisturbed
  before = (workdir / "metrics.jsonl").read_text()
  assert_identical(state, train_and_evaluate(tiny_config(), workdir))
  assert (workdir / "metrics.jsonl").read_text() == before


def _truncate(checkpoint: pathlib.Path) -> None:
  largest = max(
    (path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
  )
  os.truncate(largest, largest.stat().st_size // 2)


def _remove_data(checkpoint: pathlib.Path) -> None:
  shutil.rmtree(checkpoint / "state" / "d")


def _flip_a_bit(checkpoint: pathlib.Path) -> None:
  largest = max(
    (path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
  )
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  largest.write_bytes(content)


@pytest.mark.parametrize("damage", [_truncate, _remove_data, _flip_a_bit])
def test_damaged_newest_checkpoint_falls_back(undisturbed, tmp_path, caplog, damage):
  workdir = tmp_path / "run"
  shutil.copytree(undisturbed[0], workdir)
  damage(workdir / "checkpoints" / "12")
  state = train_and_evaluate(tiny_config(), workdir)
  assert "DAMAGED CHECKPOINT: step 12" in caplog.text
  assert "going on from the one before, step 10" in caplog.text
  assert "CHECKPOINTS VANISHED" not in caplog.text
  assert (workdir / "damaged_checkpoints" / "12").is_dir()
  assert_identical(undisturbed[1], state)
  assert records(workdir) == records(undisturbed[0])


def test_a_damaged_checkpoint_that_was_asked_for_is_an_error(undisturbed, tmp_path):
  shutil.copytree(undisturbed[0] / "checkpoints", tmp_path / "checkpoints")
  _flip_a_bit(tmp_path / "checkpoints" / "12")
  checkpoints = Checkpoints(tmp_path, {})
  with pytest.raises(UserError, match=r"could be restored \(step 12: the content of"):
    checkpoints.restore(jax.device_put(undisturbed[1]), 12)
  assert checkpoints.steps[-2:] == [10, 12]
  checkpoints.close()


def test_what_is_damaged_twice_is_set_aside_twice(undisturbed, tmp_path):
  shutil.copytree(undisturbed[0] / "checkpoints", tmp_path / "checkpoints")
  checkpoints, state = Checkpoints(tmp_path, {}), jax.device_put(undisturbed[1])
  for folders in (["12"], ["12", "12-2"]):
    checkpoints.save_for_good(state)
    _remove_data(tmp_path / "checkpoints" / "12")
    assert int(checkpoints.restore(state).step) == 10
    assert sorted(path.name for path in (tmp_path / "damaged_checkpoints").iterdir()) == folders
  checkpoints.close()


@pytest.mark.parametrize(
  ("changes", "difference"),
  [
    ({"model__width": 12}, r"kernel is \(3, 3, 64, 8\) there and \(3, 3, 64, 12\) here, and"),
    ({"model__head": "gap"}, r"kernel is \(3, 3, 64, 8\) there and not here, and \d+ more"),
  ],
)
def test_a_checkpoint_of_another_network_is_not_called_damaged(
  undisturbed, tmp_path, caplog, changes, difference
):
  shutil.copytree(undisturbed[0] / "checkpoints", tmp_path / "checkpoints")
  like = Experiment(resolve(tiny_config(**changes))).abstract_state()
  checkpoints = Checkpoints(tmp_path, {})
  before = checkpoints.steps
  with pytest.raises(UserError, match=rf"step 12 holds another network: saol.*{difference}.* undo"):
    checkpoints.restore(like)
  assert "DAMAGED" not in caplog.text
  assert checkpoints.steps == before
  checkpoints.close()


def test_all_checkpoints_damaged_is_one_clear_error(undisturbed, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(undisturbed[0], workdir)
  folders = list((workdir / "checkpoints").iterdir())
  for folder in folders:
    _truncate(folder)
  with pytest.raises(UserError, match=r"No checkpoint .* could be restored"):
    train_and_evaluate(tiny_config(), workdir)
  assert sorted((workdir / "checkpoints").iterdir()) == sorted(folders)


def test_log_cut_off_in_the_middle_of_a_line_is_mended(undisturbed, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(undisturbed[0], workdir)
  shutil.rmtree(workdir / "checkpoints" / "12")
  with (workdir / "metrics.jsonl").open("a") as file:
    file.write('{"step": 12, "train/lo')
  train_and_evaluate(tiny_config(), workdir)
  assert records(workdir) == records(undisturbed[0])
