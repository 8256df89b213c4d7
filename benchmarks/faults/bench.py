"""Runs that suffer faults and are started again, and the run that they must equal."""

import os
import pathlib
import random
import shutil
import tempfile
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks import record
from benchmarks.command_line import run_of, set_fields
from benchmarks.faults.clock import Clock
from benchmarks.faults.comparison import differences
from benchmarks.faults.disk import Disk
from benchmarks.faults.kinds import KINDS, Kind, Scene
from benchmarks.faults.watched import MissedError, WatchedRun, committed
from configs.digits_saol import get_config
from saol_jax.config import resolve
from saol_jax.experiment import Experiment

# Every loss, both heads, a moving average; saves that fall together with evaluations or do not.
FIELDS = {
  "batch_size": 16,
  "eval_batch_size": 400,
  "num_train_steps": 60,
  "log_every_steps": 4,
  "eval_every_steps": 20,
  "checkpoint_every_steps": 6,
  "figures": False,
  "model.width": 8,
  "model.norm_group": 4,
  "optimizer.ema_decay": 0.9,
}
_FAULTS_IN_A_ROW = 4


class Drawn(NamedTuple):
  """A fault to come: its kind, and the seed of its moment."""

  kind: str
  seed: int


class Bench:
  """Runs that suffer faults, one after the other, compared with one that does not."""

  def __init__(self, folder: pathlib.Path, disk: Disk, fields: Mapping[str, Any]):
    """Prepares both; `fields` are those of the config that are set, `FIELDS` among them."""
    self._folder, self._disk, self._clock = folder, disk, Clock(folder)
    self._fields = fields
    config = get_config()
    set_fields(config, fields)
    self._experiment = Experiment(resolve(config))
    self._undisturbed = folder / "undisturbed"
    self._start_new()

  @property
  def can(self) -> dict[str, bool]:
    """Whether each kind of fault is possible on this machine."""
    return {
      name: (self._disk.small or not kind.small_disk) and (self._clock.works or not kind.clock)
      for name, kind in KINDS.items()
    }

  def undisturbed(self) -> float:
    """Makes the run to compare with; returns its seconds."""
    started = time.monotonic()
    run = self._start(self._undisturbed)
    if run.wait() != 0:
      raise SystemExit(f"the undisturbed run failed:\n{run.output}")
    return time.monotonic() - started

  def suffer(self, drawn: Drawn) -> dict[str, object]:
    """Strikes once; goes on with the run that suffered the fault before, if it is not finished."""
    started, kind = time.monotonic(), KINDS[drawn.kind]
    rng = random.Random(drawn.seed)
    problems = []
    while True:
      run = self._start(self._workdir, kind)
      scene = Scene(
        run,
        self._workdir,
        self._disk,
        self._clock,
        rng,
        self._experiment.config.eval_every_steps,
        self._experiment.config.num_train_steps,
      )
      try:
        when = kind.strike(scene)
        break
      except MissedError:  # the run ended first; another one takes its turn
        problems += self._check_start(run) + self._end_of(run)
      finally:
        run.close()
    problems += self._check_start(run) + _check_end(kind, scene, run)
    self._faults += 1
    self._allowed = scene.damaged or committed(self._workdir)[-1:] or [None]
    self._best_is_kept &= not kind.takes_the_best
    result = {
      "kind": drawn.kind,
      "when": when,
      "run": self._run_number,
      "code": scene.code,
      "newest_checkpoint": self._allowed[0],
      "seconds": round(time.monotonic() - started, 1),
    }
    if problems:
      result["output"] = run.lines[-40:]
    if scene.code == 0:
      problems += self._compare()
    elif self._faults >= _FAULTS_IN_A_ROW:
      problems += self.finish()
    return result | {"problems": problems}

  def finish(self) -> list[str]:
    """Starts the run again and lets it end; returns what is wrong then."""
    if not self._faults:
      return []
    run = self._start(self._workdir)
    run.wait()
    return self._check_start(run) + self._end_of(run)

  def _end_of(self, run: WatchedRun) -> list[str]:
    code = run.wait()
    if code:
      problem = f"run {self._run_number} ended with code {code} by itself: {run.lines[-5:]}"
      self._start_new()
      return [problem]
    return self._compare()

  def _compare(self) -> list[str]:
    """Compares the finished run with the undisturbed one, and makes room for another."""
    try:
      problems = differences(
        self._undisturbed, self._workdir, self._experiment, best_is_kept=self._best_is_kept
      )
    except Exception as error:
      problems = [f"{type(error).__name__}: {error}"]
    outcome = "; ".join(problems) or "bitwise that of the undisturbed run"
    print(f"    run {self._run_number}, after {self._faults} fault(s): {outcome}", flush=True)
    self.compared += 1
    number = self._run_number
    shutil.rmtree(self._workdir)
    self._start_new()
    return [f"run {number}: {problem}" for problem in problems]

  compared = 0
  _run_number = 0

  def _start_new(self) -> None:
    self._run_number += 1
    self._workdir = self._disk.folder / f"run_{self._run_number}"
    self._cache = self._folder / "cache"
    self._faults, self._best_is_kept = 0, True
    self._allowed = [None]  # steps from which the next start may go on, best first

  def _start(self, workdir: pathlib.Path, kind: Kind | None = None) -> WatchedRun:
    command = run_of("configs/digits_saol.py", workdir, self._fields)
    if kind is not None and kind.cold:
      # The run keeps it: the next start finds what the killed one has written.
      self._cache = pathlib.Path(tempfile.mkdtemp(prefix="cache_", dir=self._folder))
    environment = os.environ | {
      "PYTHONPATH": os.pathsep.join(filter(None, (str(record.ROOT), os.getenv("PYTHONPATH")))),
      "PYTHONUNBUFFERED": "1",
      "JAX_COMPILATION_CACHE_DIR": str(self._cache),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    if kind is not None and kind.clock:
      self._clock.jump(0)
      environment |= self._clock.environment
    return WatchedRun(command, environment, workdir)

  def _check_start(self, run: WatchedRun) -> list[str]:
    """A run must have gone on from the newest checkpoint that was whole."""
    found = [int(step) for step in run.find(r"^Going on from step (\d+)")]
    if not found and not run.find("^The best checkpoint is chosen on"):
      return []  # it did not come so far
    step = found[0] if found else None
    problems = []
    if step not in self._allowed:
      problems.append(f"went on from step {step}; possible was {self._allowed}")
    elif step != self._allowed[0]:
      damaged = self._allowed[0]
      reported = run.find(f"DAMAGED CHECKPOINT: step {damaged} ")
      kept = (self._workdir / "damaged_checkpoints" / str(damaged)).is_dir()
      if not (reported and kept):
        problems.append(f"step {damaged} was passed over without a word, or not set aside")
    return problems


def _check_end(kind: Kind, scene: Scene, run: WatchedRun) -> list[str]:
  """The run must have ended as it promises: code, one message, the state that it says is saved."""
  problems = []
  if scene.code not in kind.codes:
    problems.append(f"exit code {scene.code}, expected one of {kind.codes}")
  if scene.code in (2, 75) and "Traceback" in run.output:
    problems.append("a traceback")
  if scene.code == 2 and len(run.find("error: ")) != 1:
    problems.append("not exactly one message")
  newest = max(committed(scene.workdir), default=-1)
  if newest < scene.newest and not (kind.takes_the_best or scene.damaged):
    problems.append(f"the newest checkpoint was {scene.newest}, now it is {newest}")
  stopped = [int(step) for step in run.find(r"^Stopped after step (\d+)")]
  if stopped and stopped != committed(scene.workdir)[-1:]:
    problems.append(f"said that step {stopped[0]} is saved; it is not")
  return problems
