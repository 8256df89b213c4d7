"""The checks of a config that need no data: of each field, and of fields that must fit together."""

import difflib
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import ml_collections

from saol_jax.errors import UserError

_SPLITS = ("train", "validation", "test")
_CHOICES = {
  "dtype": ("float32", "bfloat16", "auto"),
  "evaluate.checkpoint": ("latest", "best"),
  "evaluate.split": ("auto", "validation", "test"),
  "localize.split": ("auto", *_SPLITS),
  "localize.threshold_split": ("auto", *_SPLITS),
  "data.bad_in_evaluation": ("fail", "count"),
}
_AT_LEAST_ONE = (
  "batch_size",
  "eval_batch_size",
  "log_every_steps",
  "eval_every_steps",
  "checkpoint_every_steps",
  "model.width",
  "loss.consistency_every",
  "optimizer.accumulate",
)
_AT_LEAST_ZERO = (
  "num_train_steps",
  "model.norm_group",
  "data.crop_padding",
  "data.brightness",
  "data.contrast",
  "data.saturation",
  "data.lighting",
  "data.randaugment_layers",
  "data.image_size",
  "data.threads",
  "loss.mask_weight",
  "loss.consistency_weight",
  "loss.distillation_weight",
  "loss.distillation_beta",
  "loss.concentration_weight",
  "optimizer.weight_decay",
  "optimizer.clip_norm",
  "localize.num_threshold_images",
)
_ABOVE_ZERO = (
  "cutmix.alpha",
  "mixup.alpha",
  "optimizer.learning_rate",
  "optimizer.decay_factor",
)
_ODD = ("model.kernel_size", "model.lateral_kernel_size")
_PROBABILITIES = ("cutmix.prob", "mixup.prob", "data.erasing")
_SHARES = ("data.eval_crop", "data.max_bad_fraction")
_BELOW_ONE = (
  "model.dropout",
  "loss.label_smoothing",
  "data.validation",
  "optimizer.momentum",
  "optimizer.warmup_share",
  "optimizer.ema_decay",
)


def check_names(fields: Collection[str], known: Collection[str]) -> None:
  """Raises UserError where a config has other fields than there are, such as by a typing error."""
  where = "All fields are in saol_jax/config.py"
  if unknown := [name for name in fields if name not in known]:
    close = difflib.get_close_matches(unknown[0], known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise UserError(
      f"the config has a field {unknown[0]!r}, which nothing reads.{hint} Remove it from the "
      f"recipe, or from the config.json of a run. {where}"
    )
  if missing := [name for name in known if name not in fields]:
    more = f", and {len(missing) - 1} more are missing" if len(missing) > 1 else ""
    raise UserError(
      f"the config has no field {missing[0]!r}{more}; a recipe begins with "
      f"saol_jax.config.default_config() and sets single fields. {where}"
    )


def check_each(fields: Mapping[str, Any]) -> None:
  """Raises UserError for a value that no run could have, whatever the other fields are.

  Args:
    fields: by their full names, tuples as lists, see `config.flat`.
  """
  for name, value in fields.items():
    if isinstance(value, list) and not all(isinstance(x, int | float) for x in value):
      raise UserError(f"{name}={tuple(value)}; expected numbers with commas between")
  for name, known in _CHOICES.items():
    if fields[name] not in known:
      raise UserError(f"{name}={fields[name]!r} is unknown; expected one of {', '.join(known)}")

  def check(names: tuple[str, ...], fits: Callable[[float], bool], expected: str) -> None:
    for name in names:
      if not fits(fields[name]):
        raise UserError(f"{name}={fields[name]}; expected {expected}")

  check(_AT_LEAST_ONE, lambda x: x >= 1, "1 or more")
  check(_AT_LEAST_ZERO, lambda x: x >= 0, "0 or more")
  check(_ABOVE_ZERO, lambda x: x > 0, "a positive number")
  check(_ODD, lambda x: x >= 1 and x % 2 == 1, "an odd number, such as 1 or 3")
  check(_PROBABILITIES, lambda x: 0 <= x <= 1, "a probability from 0 to 1")
  check(_SHARES, lambda x: 0 <= x <= 1, "a share from 0 to 1")
  check(_BELOW_ONE, lambda x: 0 <= x < 1, "a number from 0 to below 1")
  check(("data.randaugment_magnitude",), lambda x: 0 <= x <= 10, "0 to 10")
  # JAX's keys drop higher bits in silence.
  check(("seed",), lambda x: 0 <= x < 2**32, f"0 to {2**32 - 1}")
  _check_range("data.crop_area", fields["data.crop_area"], most=1)
  _check_range("data.crop_aspect", fields["data.crop_aspect"])
  for name in ("data.mean", "data.std"):
    _check_channels(name, fields[name])
  _check_milestones(tuple(fields["optimizer.milestones"]))
  for name, value in fields.items():
    if isinstance(value, float) and not math.isfinite(value):
      raise UserError(f"{name}={value}; expected a finite number")


def check_together(config: ml_collections.ConfigDict) -> None:
  """Raises UserError where fields, each of them fine by itself, do not fit together."""
  if not config.num_train_steps and config.num_epochs <= 0:
    raise UserError(
      f"num_epochs={config.num_epochs} and num_train_steps={config.num_train_steps}; "
      "expected one of them to be positive"
    )
  mixed = config.loss.mask_weight or config.loss.consistency_weight
  if config.model.head == "saol" and config.cutmix.prob == 0 and mixed:
    raise UserError(
      "cutmix.prob=0 leaves nothing for L_SS1 and L_SS2 to learn from; set it higher, or use "
      "--config.loss.mask_weight=0 --config.loss.consistency_weight=0"
    )
  if config.mixup.prob and config.cutmix.prob == 1:
    raise UserError(
      f"mixup.prob={config.mixup.prob} would do nothing: mixup is for images that CutMix leaves "
      "alone, and cutmix.prob=1 leaves none; lower that, such as --config.cutmix.prob=0.5"
    )
  optimizer = config.optimizer
  milestones = tuple(optimizer.milestones)
  if optimizer.schedule == "step" and min(milestones, default=1) < optimizer.warmup_share:
    raise UserError(
      f"optimizer.milestones={milestones} begin before optimizer.warmup_share="
      f"{optimizer.warmup_share} of the run is over; lower that, or move the milestones"
    )


def _check_range(name: str, value: list[float], most: float = math.inf) -> None:
  if len(value) != 2 or not 0 < value[0] <= value[1] <= most:
    limit = "" if most == math.inf else f" and at most {most}"
    raise UserError(f"{name}={tuple(value)}; expected two numbers, the lower first, above 0{limit}")


def _check_channels(name: str, value: list[float]) -> None:
  if len(value) not in (0, 3) or not all(0 < x <= 1 for x in value):
    raise UserError(
      f"{name}={tuple(value)}; expected three numbers above 0 and at most 1 (shares of 255), or ()"
    )


def _check_milestones(value: tuple[float, ...]) -> None:
  if any(not 0 < share < 1 for share in value) or list(value) != sorted(set(value)):
    raise UserError(
      f"optimizer.milestones={value}; expected rising shares of the run between 0 and 1"
    )
