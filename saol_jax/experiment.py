"""A config made real: data, model, optimizer and compiled functions, checked against each other."""

import functools
import itertools
import logging
import math
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from saol_jax.backbones import is_built_in
from saol_jax.backbones.stem import read_in_blocks
from saol_jax.compiler import few_channels_are_slow, quick_random_bits
from saol_jax.data import BadImages, Geometry, NoTestSplit, Reading, Source, load_source
from saol_jax.distributed import data_mesh, put_batch, split_batch
from saol_jax.errors import UserError
from saol_jax.model import FunctionalModel, Variables, create_model, variables_of
from saol_jax.multipliers import Multipliers
from saol_jax.optimizer import make_optimizer, make_schedule
from saol_jax.preparation import seed_data
from saol_jax.train_step import (
  TrainState,
  examples_kept_together,
  loss_weights,
  make_eval_step,
  make_init,
  make_train_step,
)

logger = logging.getLogger(__name__)

_OF_BATCH = ("image", "label", "mask", "replaced", "stop")  # what the steps need


class Experiment:
  """What training and evaluation share.

  Attributes:
    config: resolved.
    train: the training split.
    info: of the data set.
    mesh: of the devices, one axis `data`.
    model: as pure functions.
    heads: those that are trained, the main one first.
    num_train_steps: length of the run.
    schedule: learning rate by step, jitted.
    multipliers: of it, by parameter.
    train_step, eval_step: jitted, see `train_step`.
  """

  def __init__(self, config: ml_collections.ConfigDict, mesh: Mesh | None = None):
    """Loads the training data and builds everything from a resolved config.

    Args:
      config: resolved.
      mesh: of other devices than all that there are.

    Raises:
      UserError: unknown names, data that is not there, or sizes that do not fit together.
    """
    self.config = config
    self.mesh = data_mesh() if mesh is None else mesh
    _check_batch_size(config, self.mesh.size)
    self.train = self.source("train")
    self.info = self.train.info
    if len(self.info.class_names) < 2:
      raise UserError(
        f"data.name={config.data.name!r} has one class, {self.info.class_names[0]!r}, so that "
        "there is nothing to tell apart; expected two or more. In a folder of images each class "
        "has a folder of its own, DIR/train/<class>/*"
      )
    self.model = FunctionalModel(self._create)
    self.heads = ("gap",)
    if config.model.head == "saol":
      self.heads = ("saol", "gap") if "distillation" in loss_weights(config) else ("saol",)
    epochs_in_steps = round(config.num_epochs * len(self.train) / config.batch_size)
    self.num_train_steps = config.num_train_steps or max(epochs_in_steps, 1)
    schedule = make_schedule(config.optimizer, self.num_train_steps)
    self.schedule = jax.jit(schedule)
    optimizer = make_optimizer(config.optimizer, schedule)
    self.multipliers = Multipliers.parse(config.optimizer.multipliers)
    variables = variables_of(self.model.abstract)
    self.multipliers.check(variables.params)
    _check_norms(config, variables)
    self._init = make_init(config, self.model, optimizer, self.mesh)
    self.train_step = make_train_step(config, self.info, self.model, optimizer, self.mesh)
    self.eval_step = make_eval_step(config, self.info, self.model, self.heads, self.mesh)
    self._check_network()

  @property
  def eval_split(self) -> str:
    """The split that is evaluated during training."""
    return "validation" if self.config.data.validation else "test"

  @functools.cached_property
  def report_split(self) -> str:
    """The split that scores are reported of: test, or validation where there are no test images.

    Raises:
      UserError: some images are held out, and the test images cannot be opened.
    """
    if not self.config.data.validation:
      return "test"  # whoever opens it says where there is none
    try:
      self.source("test")
    except NoTestSplit:
      return "validation"
    return "test"

  @property
  def eval_batch_size(self) -> int:
    """The configured one, rounded up to a multiple of the devices."""
    return -(-self.config.eval_batch_size // self.mesh.size) * self.mesh.size

  @property
  def score_name(self) -> str:
    """See the function of that name."""
    return score_name(self.config)

  def source(self, split: str) -> Source:
    """Opens a split of the data set."""
    data = self.config.data
    try:
      source = load_source(
        data.name,
        split,
        data_dir=data.data_dir or None,
        validation=data.validation,
        reading=_reading(data),
      )
    except NoTestSplit as error:
      if not data.validation:
        raise
      raise NoTestSplit(
        f"{data_title(self.config)} has no test images; those that are held out are the split "
        "validation: --config.evaluate.split=validation, or --config.localize.split=validation"
      ) from error
    if split != "train":
      self._check_like_train(source, split)
    return source

  def abstract_state(self) -> TrainState:
    """Shapes, types and shardings of the state, without computing it."""
    return self._init.eval_shape(seed_data(self.config))

  def init(self) -> TrainState:
    """The state of step 0, all of it random."""
    with quick_random_bits(self.mesh):
      return self._init(seed_data(self.config))

  @property
  def my_part(self) -> dict[str, int]:
    """Which part of each batch this process reads, as the loader wants it told."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}

  def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """What the steps need of a batch, split over the devices."""
    return put_batch(self.mesh, {name: batch[name] for name in _OF_BATCH if name in batch})

  def compile(self) -> None:
    """Compiles both steps now rather than at their first call, for the sizes of the config."""
    state = self.abstract_state()
    shapes = {"image": (self.train.image_shape, jnp.uint8), "label": ((), jnp.int32)}
    replaced = {"replaced": ((), jnp.float32)} if self.config.data.image_size else {}
    stop = {"stop": ((), jnp.float32)} if jax.process_count() > 1 else {}
    mask = {"mask": ((), jnp.float32)}

    def abstract(size: int, fields: dict) -> dict[str, jax.ShapeDtypeStruct]:
      sharding = split_batch(self.mesh)
      return {
        name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in fields.items()
      }

    batch = abstract(self.config.batch_size, shapes | replaced | stop)
    eval_batch = abstract(self.eval_batch_size, shapes | mask)
    self.train_step = self.train_step.lower(state, batch).compile()
    self.eval_step = self.eval_step.lower(state.variables, eval_batch).compile()

  def _create(self, rngs: nnx.Rngs) -> nnx.Module:
    model = create_configured(self.config, len(self.info.class_names), rngs)
    return read_in_blocks(model) if few_channels_are_slow(self.mesh) else model

  def _check_like_train(self, source: Source, split: str) -> None:
    """Raises UserError where a split has other classes than train, or images of another size."""
    where = f"data.name={self.config.data.name!r}: its {split} split has"
    if source.info.class_names != self.info.class_names:
      pairs = itertools.zip_longest(source.info.class_names, self.info.class_names)
      label, (found, expected) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
      raise UserError(
        f"{where} other classes than train: of label {label} {found!r}, and not {expected!r}; "
        "expected the same names in the same order"
      )
    if source.image_shape != self.train.image_shape:
      raise UserError(
        f"{where} images of {source.image_shape}, train has {self.train.image_shape}; expected one "
        "size"
      )

  def _check_network(self) -> None:
    """Raises UserError where the last stage is too small, or evaluation would not repeat."""
    height, width = self.train.image_shape[:2]
    stride = self.model.abstract.backbone.stage_strides[-1]
    cells = 2 if self.config.model.head == "saol" else 1
    if min(height, width) < cells * stride:
      raise UserError(
        f"Images of {height} x {width} pixels are too small for model.name="
        f"{self.config.model.name!r} with head {self.config.model.head!r}: its last stage has "
        f"stride {stride}, so at least {cells * stride} x {cells * stride} are needed. Use a "
        "backbone with a smaller stride, or --config.model.last_stride=1"
      )
    if is_built_in(self.config.model.name):
      return
    images = jax.random.normal(jax.random.key(0), (2, *self.train.image_shape))
    if changed := self.model.changed_by_evaluation(self.init().variables, images):
      raise UserError(
        f"model.name={self.config.model.name!r} changes {changed[0]} when it is called with "
        "train=False, so that scores would depend on eval_batch_size or on chance. Pass `train` "
        "on: nnx.BatchNorm needs use_running_average=not train, nnx.Dropout deterministic=not "
        "train; saol_jax.norm.GhostBatchNorm takes train=train"
      )


def _reading(data: ml_collections.ConfigDict) -> Reading:
  """How `config.data` wants images to be read."""
  geometry = None
  if data.image_size:
    geometry = Geometry(
      data.image_size, tuple(data.crop_area), tuple(data.crop_aspect), data.eval_crop
    )
  return Reading(
    geometry=geometry,
    bad_images=BadImages(data.max_bad_fraction, data.bad_in_evaluation),
    threads=data.threads,
    mean=tuple(data.mean),
    std=tuple(data.std),
    train_split=data.train_split,
    test_split=data.test_split,
    image_field=data.image_field,
    label_field=data.label_field,
    box_field=data.box_field,
  )


def score_name(config: ml_collections.ConfigDict) -> str:
  """The metric by which the best checkpoint is chosen: top-1 of the main head, averaged if kept."""
  return f"eval/{'ema_' if config.optimizer.ema_decay else ''}{config.model.head}_top1"


def data_title(config: ml_collections.ConfigDict) -> str:
  """What a person calls the data: the data set, or the folder that the images are in."""
  folder = pathlib.PurePath(config.data.data_dir).name if config.data.name == "folder" else ""
  return folder or config.data.name


def create_configured(
  config: ml_collections.ConfigDict, num_classes: int, rngs: nnx.Rngs, *, inference: bool = False
) -> nnx.Module:
  """The model that a resolved config describes; for inference without what only training needs."""
  options = config.model
  return create_model(
    options.name,
    num_classes,
    head=options.head,
    width=options.width,
    kernel_size=options.kernel_size,
    lateral_kernel_size=options.lateral_kernel_size,
    mask_branch=not inference and "mask" in loss_weights(config),
    dropout=options.dropout,
    last_stride=options.last_stride or None,
    norm_group=options.norm_group or None,
    dtype=jnp.dtype(config.dtype),
    rngs=rngs,
  )


def _check_norms(config: ml_collections.ConfigDict, variables: Variables) -> None:
  """Warns where the parts of an accumulated batch would be normalised each by itself."""
  parts = config.optimizer.accumulate
  if parts > 1 and not config.model.norm_group and variables.batch_stats:
    size = config.batch_size // parts
    logger.warning(
      "optimizer.accumulate=%d with model.norm_group=0: batch norms see parts of %d images, not "
      "the batch of %d, which is another recipe. --config.model.norm_group=%d gives the same "
      "result for any number of parts",
      parts,
      size,
      config.batch_size,
      size,
    )


def _check_batch_size(config: ml_collections.ConfigDict, devices: int) -> None:
  """Raises UserError where the batch cannot be divided as the config wants."""
  size, parts, group = config.batch_size, config.optimizer.accumulate, config.model.norm_group
  every = config.loss.consistency_every if "consistency" in loss_weights(config) else 1
  together = parts * every * examples_kept_together(config)
  divisors = (
    (devices, f"the {devices} devices"),
    (parts, f"optimizer.accumulate={parts}"),
    (group or 1, f"model.norm_group={group}"),
    (2 if config.cutmix.prob or config.mixup.prob else 1, "CutMix's or mixup's pairs"),
    (every, f"loss.consistency_every={every}"),
    (together, "pairs and norm groups in each accumulated part and each share for L_SS2"),
  )
  least = math.lcm(*(divisor for divisor, _ in divisors))
  for divisor, what in divisors:
    if size % divisor:
      raise UserError(
        f"batch_size={size} cannot be divided by {what}; expected a multiple of {least}, which all "
        f"fields allow, such as --config.batch_size={-(-size // least) * least}"
      )
  if size // devices % together:
    logger.warning(
      "batch_size=%d on %d devices splits CutMix pairs or norm groups between devices: the result "
      "is the same, but they will have to exchange images or statistics in every step",
      size,
      devices,
    )
