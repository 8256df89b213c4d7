"""Evaluation: every example counts exactly once, for each head, with and without averaging."""

import itertools
import json
import logging
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import ml_collections

from saol_jax.checkpoint import Checkpoints
from saol_jax.class_report import Sums, write_class_report
from saol_jax.config import resolve
from saol_jax.data import Source
from saol_jax.data.loader import padded_batches
from saol_jax.distributed import is_main_process
from saol_jax.durable import write_text
from saol_jax.errors import UserError
from saol_jax.experiment import Experiment, data_title
from saol_jax.metrics import classification_scores
from saol_jax.model_card import check_classes
from saol_jax.progress import Progress
from saol_jax.runlog import read_records, scores
from saol_jax.train_step import TrainState
from saol_jax.workdir import check_config, check_writable, writing

logger = logging.getLogger(__name__)


class Evaluation(NamedTuple):
  """What is known of a state after it has seen a whole split.

  Attributes:
    scores: `PREFIX/HEAD_SCORE`, and `PREFIX/ema_HEAD_SCORE` for the moving average, for each
      trained head and each of `metrics.classification_scores`.
    sums: of the moving average where it is on, by head, the main one first, see
      `train_step.make_eval_step`.
  """

  scores: dict[str, float]
  sums: Sums


def evaluate(
  experiment: Experiment,
  state: TrainState,
  source: Source,
  prefix: str,
  *,
  check_stop: Callable[[], None] = lambda: None,
) -> Evaluation:
  """Scores a state on a whole split, which is read once for the variables and their average.

  Args:
    experiment: what to evaluate with.
    state: whose variables, and their moving average where it is on.
    source: the examples.
    prefix: of the result's keys, such as "eval".
    check_stop: called between batches; may raise.

  Raises:
    UserError: an image cannot be decoded, unless those are to be counted; or none can.
  """
  candidates = {"": state.variables}
  if state.ema is not None:
    candidates["ema_"] = state.ema
  sums: dict[str, Sums] = {}
  progress = Progress("  evaluated", len(source), last_line=False)
  batches = padded_batches(source, experiment.eval_batch_size, **experiment.my_part)
  for start, batch in zip(itertools.count(0, experiment.eval_batch_size), batches, strict=False):
    check_stop()
    batch = experiment.put(batch)
    for name, variables in candidates.items():
      new = experiment.eval_step(variables, batch)
      sums[name] = jax.tree.map(jax.numpy.add, sums[name], new) if name in sums else new
    # Waiting bounds the queue of the device, and lets a stop request through soon. Several fake
    # devices of a CPU can also stop each other for good where two batches wait for their threads.
    jax.block_until_ready(sums)
    progress.add(min(experiment.eval_batch_size, len(source) - start))
  sums = jax.device_get(sums)
  results = {}
  left_out = len(source) - round(float(sums[""][experiment.heads[0]]["count"]))
  if left_out == len(source):
    raise UserError(
      f"not one of the {left_out} images of the split can be decoded, so that there is no score; "
      "see what they are with --mode=inspect"
    )
  if left_out:
    results[f"{prefix}/broken_images"] = left_out
    if is_main_process():  # a warning is heard from every process
      logger.warning("  %d of %d images are broken and not in the score", left_out, len(source))
  for name, of_heads in sums.items():
    for head in experiment.heads:
      for score, value in classification_scores(of_heads[head]).items():
        results[f"{prefix}/{name}{head}_{score}"] = value
  reported = sums["" if state.ema is None else "ema_"]
  return Evaluation(results, {head: reported[head] for head in experiment.heads})


def describe(results: dict[str, float]) -> str:
  """One line of evaluation results: percent for shares, nats for the likelihood."""
  parts = []
  for name, value in results.items():
    short = name.split("/")[-1]
    if short.endswith(("_top1", "_ece")):
      parts.append(f"{short} {100 * value:.2f} %")
    elif short.endswith("_nll"):
      parts.append(f"{short} {value:.3f}")
  return "  ".join(parts)


def evaluate_workdir(
  config: ml_collections.ConfigDict, workdir: str | pathlib.Path
) -> dict[str, float]:
  """`--mode=evaluate`: scores a checkpoint of a finished or running run.

  Reproduces the number that training logged at that step, and writes it to
  `workdir/evaluation_SPLIT_CHECKPOINT.json`, and what it says of the classes to the folder of that
  name. Nothing else in the workdir changes.

  Raises:
    UserError: no checkpoint there, or one of another config.
  """
  config, workdir = resolve(config), pathlib.Path(workdir)
  check_config(config, workdir)
  experiment = Experiment(config)
  wanted = config.evaluate.checkpoint
  split = experiment.eval_split if config.evaluate.split == "auto" else config.evaluate.split
  check_classes(experiment.info, workdir)
  source = experiment.source(split)

  state = restore_wanted(experiment, workdir)
  check_writable(workdir)
  logger.info("Evaluating step %d (%s) on %d %s images", state.step, wanted, len(source), split)
  results, sums = evaluate(experiment, state, source, split)
  logger.info("%s", describe(results))
  path = workdir / f"evaluation_{split}_{wanted}.json"
  if is_main_process():
    with writing(workdir):
      write_text(path, json.dumps({"step": int(state.step), **results}, indent=2) + "\n")
    folder = path.with_suffix("")
    whole = report_classes(experiment, sums, folder, split, int(state.step))
    logger.info("written to %s%s", path, f" and {folder}/" if whole else "")
  return results


def report_classes(
  experiment: Experiment, sums: Sums, folder: pathlib.Path, split: str, step: int
) -> bool:
  """Writes what an evaluation says of the classes; whether all is there, see `class_report`."""
  config, names = experiment.config, experiment.info.class_names
  average = ", moving average" if config.optimizer.ema_decay else ""
  title = f"{config.model.name} on {data_title(config)}, {split}, step {step}{average}"
  return write_class_report(folder, sums, names, title, pictures=config.figures)


def restore_wanted(experiment: Experiment, workdir: pathlib.Path) -> TrainState:
  """The checkpoint of a workdir that `evaluate.checkpoint` names: latest or best.

  Raises:
    UserError: there is none.
  """
  wanted = experiment.config.evaluate.checkpoint
  by_step = scores(read_records(workdir / "metrics.jsonl"), experiment.score_name)
  if not (workdir / "checkpoints").is_dir():
    raise UserError(f"{workdir} has no checkpoints; train first, with --mode=train")
  checkpoints = Checkpoints(workdir, by_step, read_only=True)
  step = checkpoints.best if wanted == "best" else checkpoints.latest
  if step is None:
    raise UserError(
      f"{workdir} has no {'evaluated ' if wanted == 'best' else ''}checkpoint; train first, with "
      "--mode=train"
    )
  state = checkpoints.restore(experiment.abstract_state(), step if wanted == "best" else None)
  checkpoints.close()
  return state
