"""Training, from a config to a trained model, in the order in which it happens."""

import collections
import contextlib
import dataclasses
import functools
import logging
import pathlib
import threading
import time
from collections.abc import Iterator

import jax
import ml_collections

from saol_jax import workdir as workdirs
from saol_jax.checkpoint import Checkpoints, has_checkpoints
from saol_jax.config import resolve
from saol_jax.data import Source
from saol_jax.data.loader import Loader, prefetch
from saol_jax.distributed import as_main_process_says, is_main_process, wait_for_all
from saol_jax.errors import DivergedError, Stopped, UserError
from saol_jax.evaluate import describe, evaluate, report_classes
from saol_jax.experiment import Experiment
from saol_jax.figures import Figures
from saol_jax.finish import finish
from saol_jax.model_card import write_model_json
from saol_jax.pretrained import Start
from saol_jax.progress import Chrono
from saol_jax.runlog import RunLog, scores
from saol_jax.stopping import StopRequest
from saol_jax.train_step import TrainState
from saol_jax.training_lines import introduce, log_progress, say_pace

logger = logging.getLogger(__name__)

_STEPS_IN_FLIGHT = 2  # enough to keep a device busy, and few enough to stop soon


def train_and_evaluate(
  config: ml_collections.ConfigDict, workdir: str | pathlib.Path
) -> TrainState:
  """Trains to the end, or goes on where an earlier call was stopped or killed.

  Args:
    config: see `config.default_config`.
    workdir: gets `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/` and pictures; one
      run at a time trains in it.

  Returns:
    The state after the last step.

  Raises:
    UserError: bad input, and nothing in the workdir has changed; or a save failed, and the
      checkpoint before it is intact.
    DivergedError: a loss or the gradient was not finite; nothing broken was saved.
    Stopped: by SIGTERM, SIGINT or SIGHUP, with the state saved.
  """
  began = time.monotonic()
  config, workdir = resolve(config), pathlib.Path(workdir)
  with contextlib.ExitStack() as stack:
    stop = stack.enter_context(StopRequest())
    experiment = stop.run(lambda: Experiment(config))
    evaluation = stop.run(lambda: experiment.source(experiment.eval_split))
    stop.run(lambda: experiment.report_split)  # what is needed last shows its mistakes now

    start = Start(experiment)
    if not as_main_process_says(has_checkpoints(workdir)):
      stop.run(lambda: start.weights)  # a mistake shows before the workdir is claimed

    workdirs.check_config(config, workdir)
    lock = stack.enter_context(contextlib.closing(workdirs.Lock(workdir)))
    workdirs.claim(config, workdir)
    write_model_json(experiment, workdir)
    scored: dict[int, float] = {}
    checkpoints = Checkpoints(workdir, scored, before_commit=lambda: run.put_back())
    stack.enter_context(contextlib.closing(checkpoints))
    state = _restore_or_begin(experiment, checkpoints, start, stop)
    log = stack.enter_context(contextlib.closing(RunLog(workdir, int(state.step))))
    scored.update(scores(log.records, experiment.score_name))

    introduce(experiment, evaluation, state)
    started = time.monotonic()
    stop.run(experiment.compile)
    logger.info("Compiled in %.0f s", time.monotonic() - started)
    wait_for_all("compiled")

    figures = stack.enter_context(Figures(experiment, evaluation, workdir, log))
    run = _Run(
      experiment, evaluation, workdir, lock, checkpoints, log, scored, figures, stop, began
    )
    state = run.to_the_end(state)
    run.save(state, for_good=True)
    if is_main_process():
      log.wait()
      logger.info("%s", finish(experiment, state, evaluation, figures, log.records, workdir))
    return state


@dataclasses.dataclass
class _Run:
  """The steps, and what is due after some of them.

  What is due after step k is done in an order that makes a kill at any moment harmless: the line of
  the log, then the checkpoint, then the evaluation, whose own line comes after its tables. A run
  that goes on at k finds its line written, and its evaluation if that was finished; only a picture
  that was being drawn is missing.
  """

  experiment: Experiment
  evaluation: Source
  workdir: pathlib.Path
  lock: workdirs.Lock
  checkpoints: Checkpoints
  log: RunLog
  scored: dict[int, float]  # by step; what is in it has been evaluated
  figures: Figures
  stop: StopRequest
  began: float  # by the monotonic clock
  _putting_back: threading.Lock = dataclasses.field(default_factory=threading.Lock)

  def to_the_end(self, state: TrainState) -> TrainState:
    """Trains from a state on; raises Stopped once a stop is requested and the state is saved."""
    config, last_step = self.experiment.config, self.experiment.num_train_steps
    step = first_step = int(state.step)
    chrono = Chrono(last_step, config.batch_size, elapsed=self._elapsed())
    chrono.begin(step)
    loader = Loader(
      self.experiment.train, config.batch_size, config.seed, **self.experiment.my_part
    )
    numbers = range(first_step, last_step)
    votes = functools.partial(self.stop.vote, config.batch_size // jax.process_count())
    in_flight = collections.deque()

    def due(every: int) -> bool:
      return step > 0 and (step % every == 0 or step == last_step)

    with contextlib.closing(
      prefetch(lambda k: self.experiment.put(loader[k] | votes()), numbers)
    ) as batches:
      while True:
        if due(config.log_every_steps) and step > first_step:
          self.put_back()
          _check_finite(state)
          state = log_progress(self.experiment, state, self.log, chrono)

        evaluation_due = due(config.eval_every_steps) and step not in self.scored
        if evaluation_due or due(config.checkpoint_every_steps) or self.stop.requested:
          with chrono.pause():
            self.save(state)
        if self.stop.requested:
          self.save(state, for_good=True)
          raise Stopped(f"Stopped after step {step} of {last_step}; its state is saved.")
        if evaluation_due:
          with chrono.pause():
            self._evaluate(state, step, last_step, chrono)

        if step == last_step:
          return state
        state, metrics = self.experiment.train_step(state, self._next(batches, state, chrono))
        step += 1
        in_flight.append(metrics)
        if len(in_flight) > _STEPS_IN_FLIGHT:
          self.stop.count(jax.block_until_ready(in_flight.popleft()))
          say_pace(self.experiment, step - len(in_flight), chrono)

  def _next(self, batches: Iterator, state: TrainState, chrono: Chrono) -> dict[str, jax.Array]:
    """The next batch; what is trained so far is saved if the data cannot be read any more.

    One process of several cannot save: the others are in the middle of a step by then.
    """
    try:
      with chrono.waiting():
        return next(batches)
    except UserError:
      if jax.process_count() == 1:
        self.save(state, for_good=True)
      raise

  def save(self, state: TrainState, *, for_good: bool = False) -> None:
    """Starts to save a state, or sees it on disk; a workdir that has vanished is put back."""
    _check_finite(state)
    self.put_back()
    if for_good:
      self.checkpoints.save_for_good(state)
    else:
      self.checkpoints.save(state)

  def put_back(self) -> None:
    """Makes anew what has vanished of the workdir around the checkpoints; in any thread.

    Raises:
      UserError: another run has the folder of that name by now, or it cannot be written.
    """
    with self._putting_back:
      self.lock.put_back()
      if workdirs.put_back(self.experiment.config, self.workdir):
        write_model_json(self.experiment, self.workdir)
      self.log.put_back()

  def _evaluate(self, state: TrainState, step: int, last_step: int, chrono: Chrono) -> None:
    """Scores a state; the last one on the test split too, if another split was used so far."""
    sources = {"eval": self.evaluation}
    if step == last_step and self.experiment.report_split != self.experiment.eval_split:
      sources["test"] = self.experiment.source("test")
    results, by_split = {}, {}
    for prefix, source in sources.items():
      found = evaluate(self.experiment, state, source, prefix, check_stop=self.stop.check)
      results |= found.scores
      by_split[self.experiment.eval_split if prefix == "eval" else prefix] = found
    self.put_back()
    if step == last_step and is_main_process():
      for split, found in by_split.items():
        folder = self.workdir / f"evaluation_{split}_latest"
        report_classes(self.experiment, found.sums, folder, split, step)
    self.log.write(step, results | {"time/elapsed_seconds": chrono.elapsed})
    self.scored[step] = results[self.experiment.score_name]
    for split, found in by_split.items():
      logger.info("  evaluation at step %d, %s: %s", step, split, describe(found.scores))
    self.figures.after_evaluation(state)

  def _elapsed(self) -> float:
    """Seconds spent on the run so far, by earlier processes and by this one."""
    earlier = self.log.records[-1].get("time/elapsed_seconds", 0.0) if self.log.records else 0.0
    return earlier + time.monotonic() - self.began


def _restore_or_begin(
  experiment: Experiment, checkpoints: Checkpoints, start: Start, stop: StopRequest
) -> TrainState:
  """The newest intact checkpoint, or the state of step 0."""
  if not checkpoints.steps:
    return stop.run(start.state)
  state = checkpoints.restore(experiment.abstract_state())
  step, last_step = int(state.step), experiment.num_train_steps
  if step < last_step:
    logger.info("Going on from step %d of %d", step, last_step)
  else:
    logger.info("This run is finished, at step %d; its pictures are drawn anew", step)
  return state


def _check_finite(state: TrainState) -> None:
  """Raises DivergedError if a loss or the gradient was not finite at any step so far."""
  bad = {name: int(step) for name, step in jax.device_get(state.bad_step).items() if step}
  if bad:
    first = min(bad.values())
    names = " and ".join(
      name if name == "gradient" else f"loss_{name}" for name, step in bad.items() if step == first
    )
    raise DivergedError(
      f"{names} not finite at step {first}. The newest checkpoint is from before. Lower "
      "optimizer.learning_rate, lengthen optimizer.warmup_share or set optimizer.clip_norm, and "
      "train in another --workdir."
    )
