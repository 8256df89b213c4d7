"""What a run leaves for a person to look at: pictures and a short summary."""

import logging
import os
import pathlib
import shlex
import statistics
import sys

import jax
import numpy as np

from saol_jax.curves import draw_curves
from saol_jax.data import Source
from saol_jax.data.augment import normalise
from saol_jax.experiment import Experiment
from saol_jax.explain import saol_maps
from saol_jax.localization import BOX_MAP, BOX_THRESHOLD, boxes_from_maps
from saol_jax.report import draw_predictions, summary
from saol_jax.train_step import TrainState

logger = logging.getLogger(__name__)

_NUM_PICTURES = 16


def finish(
  experiment: Experiment,
  state: TrainState,
  source: Source,
  records: list[dict[str, float]],
  workdir: pathlib.Path,
) -> str:
  """Writes `curves.png` and, with SAOL, `predictions.png`.

  Args:
    experiment: the run's.
    state: after the last step.
    source: the evaluation split.
    records: of `metrics.jsonl`.
    workdir: where the pictures go.

  Returns:
    A summary to print.
  """
  files = {
    "checkpoints": str(workdir / "checkpoints"),
    "metrics": str(workdir / "metrics.jsonl"),
    "TensorBoard": str(workdir / "tensorboard"),
    "curves": str(workdir / "curves.png"),
  }
  draw_curves(workdir / "curves.png", records)
  with_maps = experiment.config.model.head == "saol"
  if with_maps:
    files["predictions"] = str(workdir / "predictions.png")
    _draw_examples(experiment, state, source, workdir / "predictions.png")

  final = next(record for record in reversed(records) if experiment.score_name in record)
  rates = [r["time/images_per_second"] for r in records if "time/images_per_second" in r]
  return summary(
    heads={
      _head_name(name): value
      for name, value in final.items()
      if name.startswith("eval/") and name.endswith("_top1")
    },
    seconds=final["time/elapsed_seconds"],
    images_per_second=statistics.median(rates) if rates else 0.0,
    files=files,
    next_commands=_next_commands(workdir, with_maps, bool(len(source.boxed))),
  )


def _head_name(metric: str) -> str:
  """eval/ema_saol_top1 -> SAOL, EMA."""
  head = metric.removeprefix("eval/").removesuffix("_top1")
  name = {"saol": "SAOL", "gap": "GAP-FC"}[head.removeprefix("ema_")]
  return f"{name}, EMA" if head.startswith("ema_") else name


def _next_commands(
  workdir: pathlib.Path, with_maps: bool, with_boxes: bool
) -> list[tuple[str, str]]:
  """What to try after this run, as commands to copy; none where it was not started by main.py."""
  if pathlib.Path(sys.argv[0]).name != "main.py":
    return []
  same = shlex.join([_python(), *sys.argv])
  commands = [
    ("evaluate the best checkpoint", f"{same} --mode=evaluate --config.evaluate.checkpoint=best")
  ]
  if with_maps and with_boxes:
    commands.append(("score its maps against the true boxes", f"{same} --mode=localize"))
  predict = shlex.join([_python(), sys.argv[0], f"--workdir={workdir}", "--mode=predict"])
  commands.append(("see what it makes of your images", f"{predict} --images=FOLDER"))
  return commands


def _python() -> str:
  """The interpreter that runs, as a person would call it from here."""
  here = pathlib.Path.cwd()
  interpreter = pathlib.Path(sys.executable)
  if os.environ.get("VIRTUAL_ENV") or not interpreter.is_relative_to(here):
    return "python"
  return str(interpreter.relative_to(here))


def _draw_examples(
  experiment: Experiment, state: TrainState, source: Source, path: pathlib.Path
) -> None:
  """A grid of evaluation images with their maps and boxes."""
  chosen = np.random.default_rng(0).permutation(len(source))[:_NUM_PICTURES]
  batch = dict(source[np.sort(chosen)])
  whole = ~batch.pop("broken", np.zeros(len(chosen), bool))
  batch = {name: values[whole] for name, values in batch.items()}
  variables = state.variables if state.ema is None else state.ema

  @jax.jit
  def predict(variables, images):
    images = normalise(images, experiment.info.mean, experiment.info.std)
    spatial = experiment.model.apply(variables, images, train=False)[0].spatial
    predicted = spatial.log_probs.argmax(-1)
    return spatial.log_probs, predicted, saol_maps(spatial, predicted)

  log_probs, predicted, maps = jax.device_get(predict(variables, batch["image"]))
  size = batch["image"].shape[1:3]
  draw_predictions(
    path,
    batch["image"],
    labels=batch["label"],
    predicted=predicted,
    probabilities=np.exp(log_probs.max(-1)),
    class_names=experiment.info.class_names,
    attention=maps["attention"],
    class_maps=maps["class"],
    boxes=boxes_from_maps(maps[BOX_MAP], size, BOX_THRESHOLD),
    true_boxes=batch.get("box"),
    title=f"{experiment.config.model.name} on {experiment.config.data.name}",
  )
