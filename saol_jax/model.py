"""A backbone with its output layers, and the same as pure functions."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct

from saol_jax.backbones import check_backbone, create_backbone
from saol_jax.checks import check_counts, check_images
from saol_jax.errors import UserError
from saol_jax.heads import SAOL, GapFC, SpatialOutput

HEADS = ("saol", "gap")

# SAOL with 1 x 1 kernels and half the width: options of `create_model`, fields of `config.model`.
LIGHT_HEAD = {"width": 64, "kernel_size": 1}


@struct.dataclass
class ModelOutput:
  """What a classifier says of a batch of images.

  Attributes:
    gap_logits: (B, K) float32, of GAP-FC.
    spatial: of SAOL; None for `head="gap"`.
  """

  gap_logits: jax.Array
  spatial: SpatialOutput | None


class Classifier(nnx.Module):
  """A backbone with GAP-FC on its last stage and, if wanted, SAOL on its last stages."""

  def __init__(self, backbone: nnx.Module, gap: GapFC, saol: SAOL | None):
    self.backbone = backbone
    self.gap = gap
    self.saol = saol

  def __call__(self, images: jax.Array, *, train: bool) -> ModelOutput:
    """Classifies images (B, H, W, 3), normalised floats.

    Raises:
      ValueError: they have another shape or type.
    """
    check_images(images)
    return self.classify(self.backbone(images, train=train), train=train)

  def classify(self, stages: Sequence[jax.Array], *, train: bool) -> ModelOutput:
    """What the heads say of stage maps (B, h, w, c), coarse last."""
    spatial = self.saol(stages, train=train) if self.saol is not None else None
    return ModelOutput(gap_logits=self.gap(stages[-1]), spatial=spatial)


def create_model(
  name: str | nnx.Module,
  num_classes: int,
  *,
  head: str = "saol",
  width: int = 128,
  kernel_size: int = 3,
  lateral_kernel_size: int = 1,
  mask_branch: bool = True,
  dropout: float = 0.0,
  last_stride: int | None = None,
  norm_group: int | None = None,
  dtype: jnp.dtype = jnp.float32,
  rngs: nnx.Rngs,
) -> Classifier:
  """Makes a classifier.

  Args:
    name: of a backbone, see `list_backbones()`; or a backbone of your own: an `nnx.Module` called
      as `backbone(images, train=train)` that returns its stage feature maps (B, h, w, c), coarse
      last, and has `stage_channels`.
    num_classes: K.
    head: "saol" for SAOL and GAP-FC side by side, "gap" for GAP-FC alone, the baseline.
    width, kernel_size, lateral_kernel_size, mask_branch: of SAOL, see there.
    dropout: rate inside the backbone's blocks, where the family has it.
    last_stride: 1 or 2, of the backbone's last stage; None for the family's own. Both are for
      backbones made here by name.
    norm_group: examples a group of the batch normalisation; None for the whole batch.
    dtype: of the computation. Parameters, statistics, GAP-FC, softmax and results are float32.
    rngs: stream `params` initialises, stream `dropout` drops.

  Returns:
    A module: `model(images, train=...) -> ModelOutput`.

  Raises:
    UserError: unknown backbone or head, an option that the backbone does not have, or a size that
      cannot be.
  """
  if head not in HEADS:
    raise UserError(f"model.head={head!r} is unknown; expected one of {', '.join(HEADS)}")
  if norm_group is not None:
    check_counts(norm_group=norm_group)
  if isinstance(rngs, int | jax.Array):  # Flax takes other things than nnx.Rngs, too
    raise UserError(f"rngs={rngs!r}; expected flax.nnx.Rngs, such as nnx.Rngs(0)")
  backbone = name
  if isinstance(name, str):
    backbone = create_backbone(
      name, dropout=dropout, last_stride=last_stride, norm_group=norm_group, dtype=dtype, rngs=rngs
    )
  else:
    check_backbone(name, "stage_channels")
    if dropout or last_stride is not None:
      raise UserError(
        f"dropout={dropout} and last_stride={last_stride} would do nothing to a backbone of your "
        "own: give them to the backbone where you make it, and leave them out here"
      )
  channels = backbone.stage_channels
  gap = GapFC(channels[-1], num_classes, rngs=rngs)
  saol = None
  if head == "saol":
    saol = SAOL(
      channels,
      num_classes,
      width=width,
      kernel_size=kernel_size,
      lateral_kernel_size=lateral_kernel_size,
      mask_branch=mask_branch,
      norm_group=norm_group,
      dtype=dtype,
      rngs=rngs,
    )
  return Classifier(backbone, gap, saol)


@struct.dataclass
class Variables:
  """What a model has learnt, as nested dictionaries of arrays.

  Attributes:
    params: what the optimizer changes.
    batch_stats: running means and variances of the normalisation.
  """

  params: dict[str, Any]
  batch_stats: dict[str, Any]


def variables_of(model: nnx.Module) -> Variables:
  """The variables that a module holds."""
  _, params, batch_stats, _ = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
  return Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats))


class FunctionalModel:
  """A model as two pure functions, `init` and `apply`.

  Attributes:
    abstract: the module, with shapes and types in place of arrays.
  """

  def __init__(self, create: Callable[[nnx.Rngs], nnx.Module]):
    """Traces `create(rngs)`, without computing anything.

    Raises:
      UserError: the model holds other arrays than parameters and batch statistics.
    """
    self._create = create
    self.abstract = nnx.eval_shape(lambda: create(_rngs(jax.random.key(0))))
    _check_arrays(self.abstract)
    self._graph, _, _, self._streams = nnx.split(
      self.abstract, nnx.Param, nnx.BatchStat, nnx.RngState
    )

  def init(self, key: jax.Array) -> Variables:
    """Fresh variables; pure, so that it can be jitted."""
    return variables_of(self._create(_rngs(key)))

  def apply(
    self, variables: Variables, images: jax.Array, *, train: bool, key: jax.Array | None = None
  ) -> tuple[Any, dict[str, Any]]:
    """Calls the model.

    Args:
      variables: from `init`.
      images: (B, H, W, 3), normalised floats.
      train: use batch statistics, and dropout where the model has it.
      key: for dropout and other random streams; needed in training where the model has any.

    Returns:
      The model's output, and the batch statistics after the call.

    Raises:
      ValueError: the model draws at random in training, and there is no key.
    """
    model = self.merge(variables)
    names = {stream.tag for _, stream in nnx.to_flat_state(self._streams)}
    if key is not None:
      others = enumerate(sorted(names - {"dropout"}))
      nnx.reseed(model, dropout=key, **{name: jax.random.fold_in(key, i) for i, name in others})
    elif train and names:
      raise ValueError("this model drops at random in training: apply needs a key")
    output = model(images, train=train)
    return output, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

  def changed_by_evaluation(self, variables: Variables, images: jax.Array) -> list[str]:
    """Names of the statistics and random streams that a call with `train=False` changes.

    There should be none, or what the model says of an image depends on others, or on chance.
    """

    def states(model: nnx.Module) -> dict[str, Any]:
      return nnx.to_pure_dict(nnx.state(model, nnx.Any(nnx.BatchStat, nnx.RngCount)))

    @jax.jit
    def call(variables, images):
      model = self.merge(variables)
      before = states(model)
      model(images, train=False)
      return jax.tree.map(lambda old, new: (old != new).any(), before, states(model))

    changed = jax.tree.leaves_with_path(call(variables, images))
    return [".".join(str(entry.key) for entry in path) for path, found in changed if found]

  def merge(self, variables: Variables) -> nnx.Module:
    """The module with these variables: for calling its parts, inside one trace."""
    streams = jax.tree.map(_blank, self._streams)
    # A copy: the caller's arrays belong to an outer trace, which must not see the model's updates.
    return nnx.merge(self._graph, variables.params, variables.batch_stats, streams, copy=True)


def _check_arrays(model: nnx.Module) -> None:
  """Raises UserError where a model has arrays that would not be kept with its variables."""
  kept = (nnx.Param, nnx.BatchStat, nnx.RngState)
  arrays = (nnx.Variable, jax.Array, np.ndarray, jax.ShapeDtypeStruct)
  for path, node in nnx.iter_graph(model):
    if isinstance(node, arrays) and not isinstance(node, kept):
      name = ".".join(map(str, path))
      raise UserError(
        f"the model's {name} is an array that is neither nnx.Param nor nnx.BatchStat, so that it "
        "would be lost: make it nnx.BatchStat(array), which is kept and not trained, or make the "
        "array where it is needed, in __call__"
      )


def _rngs(key: jax.Array) -> nnx.Rngs:
  params, dropout = jax.random.split(key)
  return nnx.Rngs(params=params, dropout=dropout)


def _blank(leaf: jax.ShapeDtypeStruct) -> jax.Array:
  """A stand-in for a random stream's key or count, which `apply` sets anew."""
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return jax.random.key(0)
  return jnp.zeros(leaf.shape, leaf.dtype)
