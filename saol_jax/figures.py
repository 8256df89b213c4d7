"""Pictures of what the network sees: the same evaluation images, with their maps and boxes."""

import concurrent.futures
import functools
import logging
import os
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from PIL import Image

from saol_jax.compiler import compiler_options
from saol_jax.data import Source
from saol_jax.data.augment import normalise
from saol_jax.distributed import is_main_process
from saol_jax.experiment import Experiment, data_title
from saol_jax.explain import score_maps
from saol_jax.localization import BOX_MAP, BOX_THRESHOLD, boxes_from_maps
from saol_jax.model import Variables
from saol_jax.report import draw_predictions
from saol_jax.runlog import RunLog
from saol_jax.train_step import TrainState

logger = logging.getLogger(__name__)

_NUM_PICTURES = 16


class Figures:
  """Draws in a thread of its own: training waits for a copy of the variables and no more.

  A picture that cannot be drawn is a line in the log, and no more either. Of several processes the
  first one draws, on a device of its own.
  """

  def __init__(self, experiment: Experiment, source: Source, workdir: pathlib.Path, log: RunLog):
    """Makes the folder's writer; computes nothing.

    Args:
      experiment: the run's.
      source: the evaluation split.
      workdir: gets `figures/step_STEP.png` and, after the last step, `predictions.png`.
      log: whose TensorBoard gets the pictures too.
    """
    self._experiment, self._source, self._workdir, self._log = experiment, source, workdir, log
    self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="figures")
    self._last: concurrent.futures.Future | None = None

  def __enter__(self) -> "Figures":
    return self

  def __exit__(self, kind: type | None, *_) -> None:
    # A run that was stopped leaves at once.
    self._pool.shutdown(wait=kind is None, cancel_futures=True)

  @property
  def wanted(self) -> bool:
    """Whether there is anything to draw, and this process is the one that draws."""
    return self._experiment.config.model.head == "saol" and is_main_process()

  def after_evaluation(self, state: TrainState) -> None:
    """Starts to draw `figures/step_STEP.png`, once the picture before is finished."""
    if self.wanted and self._experiment.config.figures:
      step = int(state.step)
      digits = len(str(self._experiment.num_train_steps))
      self._start(state, self._workdir / "figures" / f"step_{step:0{digits}d}.png", show=True)

  def at_the_end(self, state: TrainState) -> pathlib.Path | None:
    """Draws `predictions.png`, and waits for it; None where there is no picture."""
    if not self.wanted:
      return None
    path = self._workdir / "predictions.png"
    self._start(state, path, show=False)
    return path if self._last.result() else None

  def _start(self, state: TrainState, path: pathlib.Path, *, show: bool) -> None:
    if self._last is not None:
      self._last.result()  # one copy of the variables at a time
    variables = state.variables if state.ema is None else state.ema
    # The next step takes the device's arrays away.
    variables = jax.tree.map(np.array, jax.device_get(variables))
    self._last = self._pool.submit(self._draw, variables, int(state.step), path, show)

  def _draw(self, variables: Variables, step: int, path: pathlib.Path, show: bool) -> bool:
    """Draws, and shows it in TensorBoard; tells whether it went well."""
    try:
      path.parent.mkdir(exist_ok=True)
      temporary = path.with_suffix(".tmp")
      self._draw_examples(variables, step, temporary)
      os.replace(temporary, path)
      if show:
        self._log.write_image(step, "figures/maps", np.asarray(Image.open(path)))
    except Exception as error:  # whatever it is, training is worth more
      logger.warning("%s could not be drawn (%s: %s)", path, type(error).__name__, error)
      return False
    return True

  def _draw_examples(self, variables: Variables, step: int, path: pathlib.Path) -> None:
    experiment, batch = self._experiment, self._batch
    log_probs, predicted, maps = jax.device_get(self._predict(variables, batch["image"]))
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
      title=f"{experiment.config.model.name} on {data_title(experiment.config)}, step {step}",
    )

  @functools.cached_property
  def _batch(self) -> dict[str, np.ndarray]:
    """The images: chosen once, whatever the seed of the run; without broken ones."""
    chosen = np.random.default_rng(0).permutation(len(self._source))[:_NUM_PICTURES]
    batch = dict(self._source[np.sort(chosen)])
    whole = ~batch.pop("broken", np.zeros(len(chosen), bool))
    return {name: values[whole] for name, values in batch.items()}

  @functools.cached_property
  def _predict(self) -> Callable:
    """A jitted function from variables and images to log-probabilities, labels and maps."""
    experiment = self._experiment

    def predict(variables, images):
      images = normalise(images, experiment.info.mean, experiment.info.std)
      names = ("attention", "class", BOX_MAP)
      maps, output = score_maps(experiment.model, variables, images, None, names)
      log_probs = output.spatial.log_probs
      return log_probs, log_probs.argmax(-1), maps

    return jax.jit(predict, compiler_options=compiler_options(experiment.mesh))
