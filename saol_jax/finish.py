"""What a run leaves for a person to look at: pictures and a short summary."""

import logging
import os
import pathlib
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence

import ml_collections

from saol_jax.backbones import is_built_in
from saol_jax.curves import draw_curves
from saol_jax.data import Source, is_registered
from saol_jax.experiment import Experiment
from saol_jax.figures import Figures
from saol_jax.train_step import TrainState

logger = logging.getLogger(__name__)

# What these commands are for needs no more than one process.
_OF_PROCESSES = ("--coordinator=", "--num_processes=", "--process_id=")


def finish(
  experiment: Experiment,
  state: TrainState,
  source: Source,
  figures: Figures,
  records: list[dict[str, float]],
  workdir: pathlib.Path,
) -> str:
  """Writes `curves.png` and, with SAOL, `predictions.png`.

  Args:
    experiment: the run's.
    state: after the last step.
    source: the evaluation split.
    figures: draw the predictions.
    records: of `metrics.jsonl`.
    workdir: where the pictures go.

  Returns:
    A summary to print.
  """
  files = {
    "checkpoints": str(workdir / "checkpoints"),
    "metrics": str(workdir / "metrics.jsonl"),
    "curves": str(workdir / "curves.png"),
  }
  if (workdir / "tensorboard").is_dir():
    files["TensorBoard"] = str(workdir / "tensorboard")
  draw_curves(workdir / "curves.png", records)
  predictions = figures.at_the_end(state)
  if predictions is not None:
    files["predictions"] = str(predictions)
  splits = {"eval": experiment.eval_split, "test": "test"}  # by prefix of the scores' names
  for split in dict.fromkeys(splits.values()):
    classes = workdir / f"evaluation_{split}_latest"
    if classes.is_dir():
      files[f"{split} classes"] = str(classes)

  final = next(record for record in reversed(records) if experiment.score_name in record)
  rates = [r["time/images_per_second"] for r in records if "time/images_per_second" in r]
  return summary(
    top1={
      (split, _head_name(name, prefix)): value
      for prefix, split in splits.items()
      for name, value in final.items()
      if name.startswith(f"{prefix}/") and name.endswith("_top1")
    },
    seconds=final["time/elapsed_seconds"],
    images_per_second=statistics.median(rates) if rates else 0.0,
    files=files,
    next_commands=_next_commands(
      workdir, bool(len(source.boxed)), _needs_no_recipe(experiment.config)
    ),
  )


def summary(
  *,
  top1: Mapping[tuple[str, str], float],
  seconds: float,
  images_per_second: float | None,
  files: Mapping[str, str | os.PathLike],
  next_commands: Sequence[tuple[str, str]] = (),
) -> str:
  """The last words of a run: accuracy, time, where everything lies, what to try next.

  Args:
    top1: share in [0, 1] by names of split and head, e.g. {("test", "SAOL"): 0.9721}.
    seconds: wall time of the run.
    images_per_second: training throughput without compilation; None where nothing was trained.
    files: path by label, e.g. {"checkpoints": workdir / "checkpoints"}.
    next_commands: pairs of a description and a command line.

  Returns:
    Aligned lines of plain text, without a line break at the end. Commands stand alone on their
    line, to be copied.
  """
  rows = [(f"{split} top-1 {head}", f"{100 * x:6.2f} %") for (split, head), x in top1.items()]
  rows.append(("time", _duration(seconds)))
  if images_per_second is not None:
    rows.append(("training speed", f"{images_per_second:,.0f} images/s"))
  rows += [(label, os.fspath(path)) for label, path in files.items()]
  column = max(len(label) for label, _ in rows) + 2
  lines = [f"  {label:<{column}}{value}" for label, value in rows]
  if next_commands:
    lines.append("Next:")
    for description, command in next_commands:
      lines += [f"  # {description}", f"  {command}"]
  return "\n".join(["Done.", *lines])


def _head_name(metric: str, prefix: str) -> str:
  """eval/ema_saol_top1 -> SAOL, EMA."""
  head = metric.removeprefix(f"{prefix}/").removesuffix("_top1")
  name = {"saol": "SAOL", "gap": "GAP-FC"}[head.removeprefix("ema_")]
  return f"{name}, EMA" if head.startswith("ema_") else name


def _needs_no_recipe(config: ml_collections.ConfigDict) -> bool:
  """Whether the config says it all: no backbone and no data set is registered by a recipe."""
  return is_built_in(config.model.name) and not is_registered(config.data.name)


def _next_commands(
  workdir: pathlib.Path, with_boxes: bool, built_in: bool
) -> list[tuple[str, str]]:
  """What to try after this run, as commands to copy; none where it was not started by main.py.

  Args:
    workdir: of the run, which has its config.
    with_boxes: there are true boxes.
    built_in: backbone and data set are ours; others are registered by the recipe, which the
      commands then name again.
  """
  if pathlib.Path(sys.argv[0]).name != "main.py":
    return []
  ours = [part for part in sys.argv if not part.startswith(_OF_PROCESSES)]
  arguments = [ours[0], f"--workdir={workdir}"] if built_in else ours
  same = shlex.join([_python(), *arguments])
  commands = [
    ("evaluate the best checkpoint", f"{same} --mode=evaluate --config.evaluate.checkpoint=best")
  ]
  if with_boxes:
    commands.append(("score its maps against the true boxes", f"{same} --mode=localize"))
  predict = f"{same} --mode=predict --images=FOLDER"
  commands.append(("see what it makes of your images", predict))
  return commands


def _python() -> str:
  """The interpreter that runs, as a person would call it from here."""
  here = pathlib.Path.cwd()
  interpreter = pathlib.Path(sys.executable)
  if os.environ.get("VIRTUAL_ENV") or not interpreter.is_relative_to(here):
    return "python"
  return str(interpreter.relative_to(here))


def _duration(seconds: float) -> str:
  """Hours, minutes and seconds, the two largest that matter: '4 min 12 s'."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours} h {minutes:02d} min"
  return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
