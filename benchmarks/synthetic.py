"""The variants that are compared, on images that are made up: no data set is needed."""

import argparse
from typing import Any

import ml_collections
import numpy as np
from jax.sharding import Mesh

from benchmarks.command_line import set_fields
from configs import digits_saol
from saol_jax.config import default_config, resolve
from saol_jax.data import ArraySource
from saol_jax.data.source import DatasetInfo
from saol_jax.experiment import Experiment

# The first one is what the others are compared with.
VARIANTS = {
  "gap": ("GAP-FC + CutMix", {"model.head": "gap"}),
  "saol_without_ss2": ("SAOL without L_SS2", {"loss.consistency_weight": 0.0}),
  "saol_half_ss2": ("SAOL, L_SS2 on half", {"loss.consistency_every": 2}),
  "saol": ("SAOL", {}),
}

_SCHEDULE_STEPS = 10_000  # for recipes that give their length in epochs
_SEED = 0


class SyntheticExperiment(Experiment):
  """An experiment on images in memory instead of a prepared data set."""

  def __init__(
    self, config: ml_collections.ConfigDict, images: ArraySource, mesh: Mesh | None = None
  ):
    """Builds everything that a run with this resolved config has."""
    self._images = images
    super().__init__(config, mesh)

  def source(self, split: str) -> ArraySource:
    """The same images for every split."""
    return self._images


def synthetic_images(options: argparse.Namespace) -> ArraySource:
  """One batch of noise with random labels, always the same."""
  rng = np.random.default_rng(_SEED)
  size = (options.batch_size, options.image_size, options.image_size, 3)
  names = tuple(str(label) for label in range(options.num_classes))
  return ArraySource(
    images=rng.integers(0, 256, size, np.uint8),
    labels=rng.integers(0, options.num_classes, options.batch_size, np.int32),
    info=DatasetInfo(class_names=names, mean=(0.5, 0.5, 0.5), std=(0.29, 0.29, 0.29)),
  )


def make_config(options: argparse.Namespace, changes: dict[str, Any]) -> ml_collections.ConfigDict:
  """The recipe of a variant, with changed fields, see `set_fields`; resolved."""
  demo = options.backbone == "resnet8"
  config = digits_saol.get_config() if demo else default_config()
  config.data.name = "noise"
  config.model.name = options.backbone
  config.model.width = options.width or config.model.width
  config.batch_size = options.batch_size
  config.dtype = options.dtype
  config.num_train_steps = config.num_train_steps or _SCHEDULE_STEPS
  set_fields(config, changes)
  return resolve(config)
