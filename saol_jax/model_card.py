"""What a model needs to know of the data that it was trained on: `model.json` of a workdir."""

import dataclasses
import json
import logging
import math
import os
import pathlib
from typing import Any

from saol_jax.data import DatasetInfo
from saol_jax.data.folder import nfc
from saol_jax.distributed import is_main_process
from saol_jax.durable import write_text
from saol_jax.errors import UserError
from saol_jax.experiment import Experiment
from saol_jax.workdir import writing

logger = logging.getLogger(__name__)

_MODEL_JSON = "model.json"


@dataclasses.dataclass(frozen=True)
class ModelCard:
  """What a model needs to know of the data that it was trained on.

  Attributes:
    class_names: K names, by label.
    mean, std: of the three channels, as a share of 255.
    image_size: height and width of the training images.
    num_train_images: when the run began; None where it did not note this.
  """

  class_names: tuple[str, ...]
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  image_size: tuple[int, int]
  num_train_images: int | None = None


def write_model_json(experiment: Experiment, workdir: str | os.PathLike) -> None:
  """Writes what `load` needs beside config and checkpoints, so that it needs no data set.

  Warns where the data set has another number of training images than when the run began.

  Raises:
    UserError: the run was begun with other classes, or the folder cannot be written.
  """
  info = experiment.info
  check_classes(info, workdir)
  if not is_main_process():
    return
  path, now = pathlib.Path(workdir) / _MODEL_JSON, len(experiment.train)
  before = (read_model_json(workdir).num_train_images if path.exists() else None) or now
  if now != before:
    logger.warning(
      "The data set has changed since the run in %s began: %d training images then, %d now. The "
      "steps of an epoch, and with them the learning rate and the end of the run, are those of "
      "now, and a share held out for validation may have been trained on",
      workdir,
      before,
      now,
    )
  image_size = experiment.train.image_shape[:2]
  card = ModelCard(info.class_names, info.mean, info.std, image_size, before)
  with writing(path.parent):
    write_text(path, json.dumps(dataclasses.asdict(card), indent=2) + "\n")


def check_classes(info: DatasetInfo, workdir: str | os.PathLike) -> None:
  """Raises UserError where a run was trained with other classes than a data set has now.

  A label is a place in the sorted list of classes: with a folder added or renamed, the labels of a
  trained network would mean others. The Unicode form of a name does not matter.
  """
  if not (pathlib.Path(workdir) / _MODEL_JSON).exists():
    return
  before, now = (
    tuple(map(nfc, names)) for names in (read_model_json(workdir).class_names, info.class_names)
  )
  if before == now:
    return
  gone, new = sorted(set(before) - set(now)), sorted(set(now) - set(before))
  raise UserError(
    f"{workdir} was trained on {len(before)} classes, and the data set has {len(now)} now; gone: "
    f"{', '.join(gone[:5]) or 'none'}; new: {', '.join(new[:5]) or 'none'}"
    f"{'' if gone or new else '; their order is another'}. Restore the data set, or train in "
    "another --workdir"
  )


def read_model_json(workdir: str | os.PathLike) -> ModelCard:
  """Reads `model.json` of a workdir.

  Raises:
    UserError: it is absent or damaged.
  """
  path = pathlib.Path(workdir) / _MODEL_JSON
  mend = "Run the run's training command again: what is trained already is not trained anew"
  try:
    return card_of(json.loads(path.read_text()))
  except FileNotFoundError as error:
    raise UserError(
      f"{path.parent} has no {path.name}, which holds the names of the classes. {mend}, and writes "
      "the file."
    ) from error
  except (ValueError, OSError) as error:
    raise UserError(f"{path} is damaged ({error!r}). Delete it. {mend}, and writes it.") from error


def card_of(facts: Any) -> ModelCard:
  """The card that is kept in a file, maybe with other facts.

  Raises:
    ValueError: a field is missing, or not what it should be.
  """
  try:
    names, size = tuple(map(str, facts["class_names"])), tuple(map(int, facts["image_size"]))
    mean, std = (tuple(map(float, facts[name])) for name in ("mean", "std"))
    images = facts.get("num_train_images")
  except (TypeError, KeyError, OverflowError) as error:
    raise ValueError(f"a field is missing or of another kind: {error!r}") from error
  for name, good in (
    ("class_names", names and isinstance(facts["class_names"], list)),
    ("image_size", len(size) == 2 and min(size) > 0),
    ("mean", len(mean) == 3 and all(map(math.isfinite, mean))),
    ("std", len(std) == 3 and all(0 < value < math.inf for value in std)),
    ("num_train_images", images is None or isinstance(images, int)),
  ):
    if not good:
      raise ValueError(f"{name} is {facts[name]!r:.40}")
  return ModelCard(names, mean, std, size, images)
