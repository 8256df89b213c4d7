"""The optimizer and the learning-rate schedule that a config asks for, both optax."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import optax

from saol_jax.errors import UserError
from saol_jax.multipliers import Multipliers

SCHEDULES = ("cosine", "step", "one_cycle", "constant")
OPTIMIZERS = ("sgd", "adamw")


def make_schedule(
  config: ml_collections.ConfigDict, num_train_steps: int
) -> Callable[[jax.Array], jax.Array]:
  """Learning rate by step.

  Linear warm-up over `warmup_share` of the run, then:

    cosine     lr/2 (1 + cos(pi t)), t the share of the rest that is done
    step       lr * decay_factor^(milestones passed), milestones as shares of the run
    one_cycle  optax.cosine_onecycle_schedule: up over the first 30 %, down to nothing; has a
               warm-up of its own
    constant   lr

  Args:
    config: `config.optimizer`.
    num_train_steps: of the whole run.

  Raises:
    UserError: unknown schedule.
  """
  peak, name = config.learning_rate, config.schedule
  milestones, factor = config.milestones, config.decay_factor
  warmup_steps = round(config.warmup_share * num_train_steps)
  rest = max(num_train_steps - warmup_steps, 1)
  if name == "cosine":
    schedule = optax.cosine_decay_schedule(peak, rest)
  elif name == "step":
    steps = [round(share * num_train_steps) - warmup_steps for share in milestones]
    # In a short run several milestones may fall on one step.
    factors = {step: factor ** steps.count(step) for step in steps}
    schedule = optax.piecewise_constant_schedule(peak, factors)
  elif name == "one_cycle":
    return _standard_promotion(optax.cosine_onecycle_schedule(num_train_steps, peak))
  elif name == "constant":
    schedule = optax.constant_schedule(peak)
  else:
    raise UserError(
      f"optimizer.schedule={name!r} is unknown; expected one of {', '.join(SCHEDULES)}"
    )
  if warmup_steps:
    warmup = optax.linear_schedule(peak / (warmup_steps + 1), peak, warmup_steps)
    schedule = optax.join_schedules([warmup, schedule], [warmup_steps])
  return _standard_promotion(schedule)


def make_optimizer(
  config: ml_collections.ConfigDict, schedule: Callable[[jax.Array], jax.Array]
) -> optax.GradientTransformation:
  """Gradient clipping, then SGD with Nesterov momentum or AdamW.

  With SGD the weight decay is added to the gradient, so that the learning rate and the momentum
  apply to it, as in PyTorch; with AdamW it is decoupled (Loshchilov & Hutter 2019).
  `multipliers` then scale the step of each parameter, decay included, as PyTorch's learning rates
  of parameter groups do; a frozen parameter has no state here.

  Args:
    config: `config.optimizer`.
    schedule: learning rate by step.

  Raises:
    UserError: unknown optimizer, or multipliers that cannot be read.
  """
  mask = None if config.decay_all else decay_mask
  decay, momentum = config.weight_decay, config.momentum
  if config.name == "sgd":
    steps = [
      optax.add_decayed_weights(decay, mask),
      optax.sgd(schedule, momentum=momentum, nesterov=True),
    ]
  elif config.name == "adamw":
    steps = [optax.adamw(schedule, b1=momentum, weight_decay=decay, mask=mask)]
  else:
    raise UserError(
      f"optimizer.name={config.name!r} is unknown; expected one of {', '.join(OPTIMIZERS)}"
    )
  if config.clip_norm:
    steps.insert(0, optax.clip_by_global_norm(config.clip_norm))
  multipliers = Multipliers.parse(config.multipliers)
  if multipliers.rules:
    steps.append(optax.stateless(lambda updates, params: multipliers.scale(updates)))
  optimizer = optax.chain(*steps)
  if multipliers.rules:
    parts = {"trained": optimizer, "frozen": optax.set_to_zero()}
    optimizer = optax.partition(parts, multipliers.labels)
  return optax.GradientTransformation(
    _standard_promotion(optimizer.init), _standard_promotion(optimizer.update)
  )


def decay_mask(params: dict) -> dict:
  """True for kernels; False for vectors (scales, biases) and a ViT's class token and positions."""

  def decayed(path: tuple, leaf: jax.Array) -> bool:
    return jnp.ndim(leaf) > 1 and path[-1].key not in ("class_token", "positions")

  return jax.tree_util.tree_map_with_path(decayed, params)


def _standard_promotion(function: Callable) -> Callable:
  """Optax mixes step counts (int32) with floats, which strict promotion would reject."""

  def wrapped(*args):
    with jax.numpy_dtype_promotion("standard"):
      return function(*args)

  return wrapped
