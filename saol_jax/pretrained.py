"""Weights to begin with: of another library, in a file, or of another run of ours."""

import functools
import logging
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from saol_jax.backbones import is_built_in
from saol_jax.errors import UserError
from saol_jax.experiment import Experiment
from saol_jax.library_weights import Path, Pretrained, joined, listed, match, walk
from saol_jax.model import Classifier, Variables
from saol_jax.train_step import TrainState
from saol_jax.trained import Trained, restore_trained
from saol_jax.weight_files import find_in_folder, read_weights

logger = logging.getLogger(__name__)


def load_pretrained(model: Classifier, source: str) -> Pretrained:
  """Puts pretrained weights into a model in place: the backbone's, and what fits of the heads.

  Args:
    model: from `create_model`, with a backbone of ours.
    source: see `find_pretrained`.

  Returns:
    What was used, what is missing and what was left over.

  Raises:
    UserError: see `find_pretrained`.
  """
  pretrained = find_pretrained(model, source)
  for path, value in pretrained.values.items():
    walk(model, path).set_value(jnp.asarray(value))
  return pretrained


def find_pretrained(model: Classifier, source: str, name: str | None = None) -> Pretrained:
  """Reads pretrained weights, and finds those that belong into a model.

  Args:
    model: perhaps without values (`nnx.eval_shape`).
    source: path of a `.safetensors` file or a PyTorch file of weights, or of a folder with one as
      the Hugging Face hub has it; `hf://org/name[/file]`; or the workdir of a run of ours or its
      export, of which the newest intact checkpoint counts, and the moving average where it has one.
    name: see `match_run`.

  Raises:
    UserError: nothing intact is there, or it is of another backbone; see `match` and `match_run`.
  """
  folder = pathlib.Path(source).expanduser()
  if not folder.is_dir() or find_in_folder(folder):
    return match(model, read_weights(source), source)
  try:
    trained = restore_trained(folder)
  except UserError as error:
    raise UserError(
      f"model.pretrained={source!r}: {error}. Expected the workdir or the export of a run, a file "
      "of weights, or a folder with model.safetensors or pytorch_model.bin"
    ) from error
  return match_run(model, trained, source, name)


def match_run(
  model: Classifier, trained: Trained, source: str, name: str | None = None
) -> Pretrained:
  """What a trained model gives to another one: its backbone, and the parts of heads that fit.

  A part, such as SAOL's attention, fits where all its arrays have the same shapes. With other
  classes the last layers of both heads stay random, and so does SAOL where the trained model has
  none.

  Args:
    model: perhaps without values (`nnx.eval_shape`).
    trained: of a run of ours, or an export of it.
    source: for messages.
    name: the model's `model.name`, where it is known; some backbones differ in nothing else that
      can be seen, such as efficientnet_b0 and tf_efficientnet_b0.

  Raises:
    UserError: the backbones differ.
  """
  theirs = _by_path(jax.device_get(trained.variables))
  variables = nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
  shapes = {path: variable.shape for path, variable in variables}
  other = {
    path
    for path in shapes.keys() | theirs.keys()
    if path not in theirs or shapes.get(path) != theirs[path].shape
  }
  options = trained.config.model
  if name not in (None, options.name) and is_built_in(name) and is_built_in(options.name):
    raise UserError(
      f"model.pretrained={source!r} has another backbone, model.name={options.name!r}, and not "
      f"{name!r}; set model.name to that of the run"
    )
  if differing := sorted(joined(path) for path in other if path[0] == "backbone"):
    raise UserError(
      f"model.pretrained={source!r} has another backbone, model.name={options.name!r}, and perhaps "
      f"its norms were folded away by --fuse; these differ: {listed(differing, 3)}. Set model.name "
      "to that of the run, and name the run itself or an export without --fuse"
    )
  parts = {path[:2] for path in other}
  values = {path: value for path, value in theirs.items() if path[:2] not in parts}
  last = (("gap", "linear"), ("saol", "classify"))
  taken = [joined(part) for part in last if any(path[:2] == part for path in values)]
  classes = len(trained.card.class_names)
  average = ", moving average" if trained.weights == "ema" else ""
  return Pretrained(
    source=f"step {trained.step}{average} of {source}",
    library="saol_jax",
    prefix="",
    values=values,
    used=tuple(map(joined, values)),
    classifier=f"of its last layers, for {classes} classes: {listed(taken, len(taken))}",
    missing=tuple(joined(path) for path in shapes if path not in values),
    left_over=tuple(joined(path) for path in theirs if path not in values),
    mean=trained.card.mean,
    std=trained.card.std,
  )


class Start:
  """Where a run begins: with random variables, or with the weights that its config names."""

  def __init__(self, experiment: Experiment):
    self._experiment = experiment

  @functools.cached_property
  def weights(self) -> Pretrained | None:
    """Those to begin with, read at the first use; None where all are random.

    Raises:
      UserError: they cannot be read, or are not of this model.
    """
    options = self._experiment.config.model
    if not options.pretrained:
      return None
    return find_pretrained(self._experiment.model.abstract, options.pretrained, options.name)

  def state(self) -> TrainState:
    """The state of step 0."""
    state = self._experiment.init()
    if self.weights is None:
      return state
    logger.info("%s", self.weights)
    self._compare_normalisation()
    variables = _overlaid(state.variables, self.weights.values)
    ema = state.ema and _overlaid(state.ema, self.weights.values)
    return state.replace(variables=variables, ema=ema)

  def _compare_normalisation(self) -> None:
    """Warns where the weights have seen images that were normalised otherwise."""
    info, weights = self._experiment.info, self.weights
    if not weights.mean or np.allclose(
      (weights.mean, weights.std), (info.mean, info.std), atol=1e-3
    ):
      return
    logger.warning(
      "model.pretrained=%r has seen images normalised with mean %s and std %s, other than here; "
      "for the same ones: --config.data.mean='%s' --config.data.std='%s'",
      self._experiment.config.model.pretrained,
      *(tuple(round(x, 4) for x in values) for values in 2 * (weights.mean, weights.std)),
    )


def _by_path(variables: Variables) -> dict[Path, np.ndarray]:
  """Parameters and statistics by their path in the model."""
  return {
    tuple(entry.key for entry in path): value
    for tree in (variables.params, variables.batch_stats)
    for path, value in jax.tree_util.tree_leaves_with_path(tree)
  }


def _overlaid(variables: Variables, values: Mapping[Path, np.ndarray]) -> Variables:
  """Variables with some of them replaced, by path."""

  def replaced(path, leaf: jax.Array) -> jax.Array:
    value = values.get(tuple(entry.key for entry in path))
    # A copy each: the step donates its state, and the moving average starts from the same values.
    return leaf if value is None else jax.device_put(value, leaf.sharding, may_alias=False)

  return Variables(
    params=jax.tree_util.tree_map_with_path(replaced, variables.params),
    batch_stats=jax.tree_util.tree_map_with_path(replaced, variables.batch_stats),
  )
