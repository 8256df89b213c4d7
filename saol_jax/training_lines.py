"""The lines of a run while it trains: what it is, how far it is, and how well it goes."""

import logging

import jax
import jax.numpy as jnp
import numpy as np

from saol_jax.config import default_config
from saol_jax.data import Source
from saol_jax.distributed import replicated
from saol_jax.experiment import Experiment, data_title
from saol_jax.progress import Chrono, clock
from saol_jax.runlog import RunLog
from saol_jax.train_step import TrainState, loss_weights

logger = logging.getLogger(__name__)


def introduce(experiment: Experiment, evaluation: Source, state: TrainState) -> None:
  """Says what will be trained on what."""
  config, info = experiment.config, experiment.info
  logger.info("%s", _overview(state.variables.params))
  if experiment.multipliers.rules:
    logger.info("Learning rates: %s", experiment.multipliers.describe(state.variables.params))
  logger.info(
    "%s with head %s on %s: %d training and %d %s images of %d classes; %d steps of %d images in "
    "%s on %d %s device(s)",
    config.model.name,
    config.model.head,
    data_title(config),
    len(experiment.train),
    len(evaluation),
    experiment.eval_split,
    len(info.class_names),
    experiment.num_train_steps,
    config.batch_size,
    config.dtype,
    experiment.mesh.size,
    jax.default_backend(),
  )
  if config.num_train_steps and config.num_epochs != default_config().num_epochs:
    logger.warning(
      "num_epochs=%g does nothing, since num_train_steps=%d: --config.num_train_steps=0 trains for "
      "epochs",
      config.num_epochs,
      config.num_train_steps,
    )
  if experiment.eval_split == "test":
    logger.info(
      "The best checkpoint is chosen on the test split: report the last one, or hold out a share "
      "of train with --config.data.validation=0.1"
    )
  elif experiment.report_split != "test":
    logger.info(
      "There are no test images: the best checkpoint is chosen on the held-out ones, the only ones "
      "that are scored; report the last checkpoint"
    )


def _overview(params: dict) -> str:
  """A table of the parameters, or their number where clu, which draws it, is not installed."""
  try:
    from clu import parameter_overview
  except ImportError:
    return f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters"
  return parameter_overview.get_parameter_overview(params, include_stats=False)


def log_progress(
  experiment: Experiment, state: TrainState, log: RunLog, chrono: Chrono
) -> TrainState:
  """Writes the means since the last line, and starts new ones."""
  totals = {name: float(value) for name, value in jax.device_get(state.totals).items()}
  steps, step = totals.pop("steps"), int(state.step)
  means = {name: total / steps for name, total in totals.items()}
  parts = {name: means[name] for name in loss_weights(experiment.config)}
  rate = float(experiment.schedule(jnp.int32(step - 1)))
  images_per_second, waited, left = chrono.lap(step)
  # Counted, not averaged: images that stood in for broken ones.
  replaced = {"train/replaced_images": totals.pop("replaced")} if "replaced" in totals else {}
  log.write(
    step,
    {
      "train/loss": means["loss"],
      **{f"train/loss_{name}": value for name, value in parts.items()},
      "train/top1": means["top1"],
      "train/gradient_norm": means["gradient"],
      "train/learning_rate": rate,
      **replaced,
      "time/images_per_second": images_per_second,
      "time/data_wait_share": waited,
      "time/elapsed_seconds": chrono.elapsed,
    },
  )
  logger.info(
    "%s  loss %.3f (%s)  lr %.2e  %.0f images/s%s  %s left",
    _place(experiment, step),
    means["loss"],
    " ".join(f"{name} {value:.3f}" for name, value in parts.items()),
    rate,
    images_per_second,
    f" (waited for data {100 * waited:.0f} %)" if waited >= 0.01 else "",
    clock(left),
  )
  # A buffer each, since the step donates them; `device_put` would compare them between processes.
  everywhere = replicated(experiment.mesh)
  zeros = {
    name: jax.make_array_from_callback((), everywhere, lambda _: np.float32(0))
    for name in state.totals
  }
  return state.replace(totals=zeros)


def say_pace(experiment: Experiment, step: int, chrono: Chrono) -> None:
  """A line of progress while the next one of the log is far."""
  pace = chrono.glance(step)
  if pace is not None:
    images_per_second, left = pace
    logger.info(
      "%s  %.0f images/s  %s left", _place(experiment, step), images_per_second, clock(left)
    )


def _place(experiment: Experiment, step: int) -> str:
  """How far a run is."""
  last = experiment.num_train_steps
  return f"step {step:{len(str(last))}}/{last} {100 * step / last:5.1f} %"
