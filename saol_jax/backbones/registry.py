"""Backbones by name."""

import difflib
import inspect
from collections.abc import Callable, Sequence
from numbers import Integral

import jax.numpy as jnp
from flax import nnx

from saol_jax.errors import UserError

Builder = Callable[..., nnx.Module]

_BUILDERS: dict[str, Builder] = {}


def register(builder: Builder) -> Builder:
  """Decorator: makes a builder known under the name of the function.

  A builder takes `rngs`, `dtype`, `norm_group`, `last_stride` (with the family's default, itself
  or in its `**options`; a family with one stride for all stages has neither) and, where the family
  drops at random, a parameter spelled `dropout`. It returns an `nnx.Module` with

    stage_channels: tuple, channels of each stage map
    stage_strides: tuple, total stride of each stage map relative to the image
    __call__(images (B, H, W, 3), *, train: bool) -> tuple of (B, h, w, c), coarse last

  Raises:
    ValueError: another builder has that name.
  """
  name = builder.__name__
  if name in _BUILDERS:
    raise ValueError(
      f"two backbones are registered as {name!r}; give the function another name, or restart the "
      "kernel where a cell of a notebook was run again (an imported module registers once)"
    )
  _BUILDERS[name] = builder
  return builder


def list_backbones() -> tuple[str, ...]:
  """The names that `create_backbone` knows, sorted."""
  return tuple(sorted(_BUILDERS))


def is_built_in(name: str) -> bool:
  """Whether a backbone is one of ours, which needs no recipe to register it."""
  return name in _BUILDERS and _BUILDERS[name].__module__.startswith("saol_jax.")


def create_backbone(
  name: str,
  *,
  rngs: nnx.Rngs,
  dtype: jnp.dtype = jnp.float32,
  norm_group: int | None = None,
  dropout: float = 0.0,
  last_stride: int | None = None,
) -> nnx.Module:
  """Makes a backbone with random weights.

  Inside `nnx.eval_shape` nothing is allocated, so that shapes and parameter counts are cheap.

  Args:
    name: one of `list_backbones()`.
    rngs: source of the initial weights and of the first dropout keys.
    dtype: of the computation and of the stage maps. Parameters and statistics are float32.
    norm_group: examples a group of the batch normalisation; None for the whole batch.
    dropout: share dropped inside the blocks in training, in [0, 1): of the values, or of the
      examples where the family drops a block's whole branch (stochastic depth) or disturbs it
      (ShakeDrop).
    last_stride: stride of the last stage, 1 or 2; None for the family's default.

  Returns:
    An `nnx.Module` with `stage_channels`, `stage_strides` and
    `__call__(images (B, H, W, 3), *, train: bool) -> tuple of (B, h, w, c), coarse last`.

  Raises:
    UserError: unknown name, dropout out of range, another last_stride, or either in a family
      without it; or a builder of one's own does not fit.
  """
  if name not in _BUILDERS:
    close = difflib.get_close_matches(str(name), _BUILDERS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise UserError(
      f"backbone {name!r} is unknown.{hint} Choose one of: {', '.join(list_backbones())}. One of "
      "your own has to be registered first: give --config with the recipe that does it, or import "
      "the module that does, see saol_jax.backbones.register."
    )
  if not 0 <= dropout < 1:
    raise UserError(f"dropout={dropout} is out of range: choose a share in [0, 1).")
  if last_stride not in (None, 1, 2):
    raise UserError(
      f"last_stride={last_stride!r} is not possible: choose 1 or 2, or for the default of the "
      "backbone leave it out (model.last_stride=0 in a config)."
    )
  options = {"rngs": rngs, "dtype": dtype, "norm_group": norm_group}
  if last_stride is not None:
    if not _has_last_stride(name):
      raise UserError(
        f"backbone {name!r} has one stride for all stages, so last_stride={last_stride} cannot be "
        "chosen: leave it at None, or choose another backbone."
      )
    options["last_stride"] = last_stride
  if dropout:
    if not _has_dropout(name):
      others = ", ".join(filter(_has_dropout, list_backbones()))
      raise UserError(
        f"backbone {name!r} has no dropout, so dropout={dropout} would do nothing: "
        f"set it to 0, or choose one of: {others}."
      )
    options["dropout"] = dropout
  signature = inspect.signature(_BUILDERS[name])
  try:
    signature.bind(**options)
  except TypeError as error:
    raise UserError(
      f"backbone {name!r} is made by {name}{signature}, which cannot be called with "
      f"{', '.join(options)}: {error}. Expected: def {name}(*, rngs, dtype, norm_group, "
      "last_stride=None)"
    ) from error
  backbone = _BUILDERS[name](**options)
  check_backbone(backbone, "stage_channels", "stage_strides")
  return backbone


def check_backbone(backbone: nnx.Module, *of_each_stage: str) -> None:
  """Raises UserError where something is no backbone.

  Args:
    backbone: what should be one.
    of_each_stage: names of its attributes that should have a number above 0 for each stage.
  """
  found = [getattr(backbone, name, None) for name in of_each_stage]
  fits = isinstance(backbone, nnx.Module) and all(
    isinstance(values, Sequence)
    and len(values) == len(found[0]) > 0
    and all(isinstance(value, Integral) and value > 0 for value in values)
    for values in found
  )
  if not fits or not _takes(type(backbone).__call__, "train"):
    raise UserError(
      f"{backbone if not isinstance(backbone, nnx.Module) else type(backbone)!r} is no backbone; "
      "expected a name, or an nnx.Module that is called as backbone(images, train=train), returns "
      f"maps (B, h, w, c), coarse last, and has a tuple with a number for each of them in "
      f"{' and '.join(of_each_stage)}; here: {', '.join(map(str, found))}"
    )


def _takes(function: Callable, name: str) -> bool:
  """Whether a function has a parameter of that name, or takes any."""
  parameters = inspect.signature(function).parameters
  return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _has_dropout(name: str) -> bool:
  return "dropout" in inspect.signature(_BUILDERS[name]).parameters


def _has_last_stride(name: str) -> bool:
  return _takes(_BUILDERS[name], "last_stride")
