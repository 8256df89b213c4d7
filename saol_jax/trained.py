"""A trained model read from disk: from the workdir of a run, or from an export."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp

from saol_jax.checkpoint import Checkpoints
from saol_jax.checksums import wrong_checksum
from saol_jax.config import default_config
from saol_jax.distributed import data_mesh, replicated
from saol_jax.errors import UserError
from saol_jax.experiment import create_configured, score_name
from saol_jax.fuse import fuse_norms
from saol_jax.model import FunctionalModel, Variables, variables_of
from saol_jax.model_card import ModelCard, card_of, read_model_json
from saol_jax.optimizer import make_optimizer, make_schedule
from saol_jax.preparation import seed_data
from saol_jax.runlog import read_records, scores
from saol_jax.train_step import make_init

EXPORT_FORMAT = 1  # of the folder, kept in its model.json
_PROGRAM = "labels.stablehlo"  # every export has it, and no run
WEIGHTS = ("auto", "raw", "ema")
_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
  """A trained model.

  Attributes:
    config: of the run.
    card: what it needs to know of the data.
    model: as pure functions.
    variables: what it has learnt.
    step: of the checkpoint.
    weights: "raw", or "ema" for their moving average.
  """

  config: ml_collections.ConfigDict
  card: ModelCard
  model: FunctionalModel
  variables: Variables
  step: int
  weights: str


def restore_trained(
  path: str | os.PathLike,
  *,
  dtype: str | None = None,
  checkpoint: str = "latest",
  weights: str = "auto",
) -> Trained:
  """The model of an export, or of a run.

  Args:
    path: folder of an export, or workdir of a run, finished or going on.
    dtype: "float32" or "bfloat16" of the computation; None for that of the run.
    checkpoint, weights: of a run, see `restore_run`; an export holds what was chosen for it.

  Raises:
    UserError: nothing intact is there, or an argument is unknown or not for an export.
  """
  if not (is_export(path) or (pathlib.Path(path) / _PROGRAM).exists()):
    return restore_run(path, dtype=dtype, checkpoint=checkpoint, weights=weights)
  if (checkpoint, weights) != ("latest", "auto"):
    raise UserError(
      f"{path} is an export, which holds one checkpoint and one kind of weights, so that "
      f"checkpoint={checkpoint!r} and weights={weights!r} cannot be chosen there; leave them out, "
      "or name the workdir of the run"
    )
  return _from_export(pathlib.Path(path), dtype)


def is_export(path: str | os.PathLike) -> bool:
  """Whether a folder holds an export, whole or damaged, and not a run, whole or damaged."""
  folder = pathlib.Path(path)
  return (folder / "model.json").exists() and (folder / "checkpoint").is_dir()


def restore_run(
  path: str | os.PathLike,
  *,
  dtype: str | None = None,
  checkpoint: str = "latest",
  weights: str = "auto",
) -> Trained:
  """The model of a run; its data set is not needed.

  Args:
    path: workdir of a run, finished or going on.
    dtype: see `restore_trained`.
    checkpoint: "latest", the newest that is intact, or "best", by the evaluation score.
    weights: "raw", "ema" for their moving average, or "auto": that where the run kept one.

  Raises:
    UserError: there is no run, or nothing intact in it, or no such weights, or an argument is
      unknown.
  """
  workdir = pathlib.Path(path)
  for name, value, known in (
    ("checkpoint", checkpoint, ("latest", "best")),
    ("weights", weights, WEIGHTS),
  ):
    if value not in known:
      raise UserError(f"{name}={value!r} is unknown; expected one of {', '.join(known)}")
  config = read_config(workdir / "config.json", dtype)
  card = read_model_json(workdir)
  if not (workdir / "checkpoints").is_dir():
    raise UserError(f"{workdir} has no checkpoints; train first, with --mode=train")
  model = _model(config, card)
  # The optimizer's state has the same structure whatever the length of the run.
  optimizer = make_optimizer(config.optimizer, make_schedule(config.optimizer, 1000))
  like = make_init(config, model, optimizer, data_mesh()).eval_shape(seed_data(config))
  by_step = scores(read_records(workdir / "metrics.jsonl"), score_name(config))
  checkpoints = Checkpoints(workdir, by_step, read_only=True)
  try:
    if not checkpoints.steps:
      raise UserError(f"{workdir} has no checkpoint yet; train first, with --mode=train")
    if checkpoint == "best" and checkpoints.best is None:
      raise UserError(f"{workdir} has no evaluated checkpoint; use the latest one")
    state = checkpoints.restore(like, checkpoints.best if checkpoint == "best" else None)
  finally:
    checkpoints.close()
  if weights == "ema" and state.ema is None:
    raise UserError(f"weights='ema': the run in {workdir} kept no moving average; use raw or auto")
  averaged = state.ema is not None and weights != "raw"
  variables = state.ema if averaged else state.variables
  return Trained(config, card, model, variables, int(state.step), "ema" if averaged else "raw")


def read_config(path: pathlib.Path, dtype: str | None = None) -> ml_collections.ConfigDict:
  """The config of a run.

  Args:
    path: of `config.json`.
    dtype: "float32" or "bfloat16" of the computation; None for that of the run.

  Raises:
    UserError: it is not there, or not readable.
  """
  try:
    return _config_of(json.loads(path.read_text()), dtype)
  except FileNotFoundError as error:
    if not path.parent.exists():
      raise UserError(
        f"{path.parent} does not exist; expected the workdir of a run, or an export"
      ) from error
    raise UserError(
      f"{path.parent} is no workdir of a run, since it has no {path.name}; train first, with "
      "--mode=train"
    ) from error
  except NotADirectoryError as error:
    raise UserError(
      f"{path.parent} is a file; expected a folder, the workdir of a run or an export"
    ) from error
  except (ValueError, TypeError, OSError) as error:
    raise UserError(f"{path} is not readable ({error}); restore it from a backup") from error


def for_inference(trained: Trained, *, fuse: bool = False) -> Trained:
  """The same model without what only training needs: the mask branch, and with `fuse` the norms.

  Args:
    trained: of a run.
    fuse: fold batch norms into convolutions, see `fuse.fuse_norms`.
  """
  plain = _model(trained.config, trained.card, inference=True)
  variables = _part_of(trained.variables, variables_of(plain.abstract))
  if not fuse:
    return dataclasses.replace(trained, model=plain, variables=variables)
  fused = fuse_norms(plain.merge(variables), trained.card.image_size)
  return dataclasses.replace(
    trained,
    model=_model(trained.config, trained.card, inference=True, fused=True),
    variables=variables_of(fused),
  )


def save_variables(folder: pathlib.Path, variables: Variables) -> None:
  """Writes variables as an Orbax checkpoint that `restore_trained` reads."""
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder.absolute(), dataclasses.asdict(variables))


def _from_export(folder: pathlib.Path, dtype: str | None) -> Trained:
  mend = "restore the folder, or export the run again with --mode=export"
  path = folder / "model.json"
  try:
    facts = json.loads(path.read_text())
    if facts["export_format"] != EXPORT_FORMAT:  # first: all else may be different there
      raise UserError(
        f"{path} has export_format={facts['export_format']!r}, expected {EXPORT_FORMAT}; {mend}"
      )
    saved, card = dict(facts["checksums"]), card_of(facts)
    config = _config_of(facts["config"], dtype)
    step, weights, fused = int(facts["step"]), str(facts["weights"]), bool(facts["fused_norms"])
  except (ValueError, TypeError, KeyError, OverflowError, OSError) as error:
    raise UserError(f"{path} is damaged ({error!r}); {mend}") from error
  everywhere = replicated(data_mesh())
  try:
    model = _model(config, card, inference=True, fused=fused)
    init = jax.jit(model.init, out_shardings=everywhere)
    like = dataclasses.asdict(init.eval_shape(jax.random.key(0)))
  except Exception as error:  # whatever a network that cannot be ends in
    raise UserError(f"{path} describes no model that can be made: {error}; {mend}") from error
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      variables = Variables(**checkpointer.restore((folder / "checkpoint").absolute(), like))
  except Exception as error:
    raise UserError(f"{folder / 'checkpoint'} cannot be restored ({error}); {mend}") from error
  wrong = wrong_checksum(variables, saved)
  if wrong:
    raise UserError(f"{folder / 'checkpoint'} is damaged: {wrong} is not what was saved; {mend}")
  return Trained(config, card, model, variables, step, weights)


def _model(
  config: ml_collections.ConfigDict,
  card: ModelCard,
  *,
  inference: bool = False,
  fused: bool = False,
) -> FunctionalModel:
  def create(rngs):
    model = create_configured(config, len(card.class_names), rngs, inference=inference)
    return fuse_norms(model, card.image_size) if fused else model

  return FunctionalModel(create)


def _part_of(whole, like):
  """The part of nested dictionaries that another one has."""
  if isinstance(like, Variables):
    return Variables(
      _part_of(whole.params, like.params), _part_of(whole.batch_stats, like.batch_stats)
    )
  if isinstance(like, dict):
    return {name: _part_of(whole[name], below) for name, below in like.items()}
  return whole


def _config_of(saved: Any, dtype: str | None) -> ml_collections.ConfigDict:
  """A saved config; fields that did not exist then have their defaults.

  Raises:
    UserError: dtype is unknown.
    ValueError, TypeError: what was saved is no config of a run.
  """
  if dtype not in (None, *_DTYPES):
    raise UserError(f"dtype={dtype!r} is unknown; expected {' or '.join(_DTYPES)}")
  config = default_config()
  _check_sections(saved, config, "config")
  with config.unlocked():
    config.update(saved)
  if config.dtype not in _DTYPES:  # a run has saved what "auto" was
    raise ValueError(f"config.dtype is {config.dtype!r}, expected {' or '.join(_DTYPES)}")
  config.dtype = dtype or config.dtype
  return config


def _check_sections(saved: Any, config: ml_collections.ConfigDict, name: str) -> None:
  """Raises ValueError where there is something else instead of fields."""
  if not isinstance(saved, dict):
    raise ValueError(f"{name} is {saved!r:.40} instead of fields")
  for field, value in config.items():
    if isinstance(value, ml_collections.ConfigDict) and field in saved:
      _check_sections(saved[field], value, f"{name}.{field}")
