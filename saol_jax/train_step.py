"""The training step: everything between a batch of bytes and the next state, in one program."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import struct
from jax.sharding import Mesh

from saol_jax import cutmix, losses
from saol_jax.accumulation import Batch, every_nth_chunk, mean_over_parts
from saol_jax.compiler import (
  compiler_options,
  kernel_gradients_in_order,
  loops_are_slow,
  quick_compilation,
)
from saol_jax.data.augment import normalise
from saol_jax.data.source import DatasetInfo
from saol_jax.distributed import replicated, split_batch
from saol_jax.metrics import classification_sums, confusion_counts
from saol_jax.model import FunctionalModel, ModelOutput, Variables
from saol_jax.multipliers import Multipliers
from saol_jax.preparation import base_key, prepare_batch, step_keys

_MOST_CLASSES = 4096  # of which every pair is counted: 64 MB


@struct.dataclass
class TrainState:
  """All that a run needs to go on: one pytree, saved and restored whole.

  Attributes:
    step: number of finished steps.
    variables: parameters and batch statistics.
    opt_state: the optimizer's.
    ema: moving average of `variables`; None where it is off.
    key: base random key; step k uses `fold_in(key, k)`.
    totals: sums of the step's metrics since the last line of the log.
    bad_step: for each loss and the gradient, the first step at which it was not finite; 0: none.
  """

  step: jax.Array
  variables: Variables
  opt_state: optax.OptState
  ema: Variables | None
  key: jax.Array
  totals: dict[str, jax.Array]
  bad_step: dict[str, jax.Array]


def make_init(
  config: ml_collections.ConfigDict,
  model: FunctionalModel,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
) -> Callable[[jax.Array], TrainState]:
  """A jitted function that makes the state of step 0 from `preparation.seed_data(config)`.

  The seed is an argument, so that the runs of all seeds share one compiled program.
  """

  def init(seed_data: jax.Array) -> TrainState:
    key = jax.random.wrap_key_data(seed_data)
    variables = model.init(jax.random.fold_in(key, 0))
    watched = [*loss_weights(config), "gradient"]
    counted = ["replaced"] if config.data.image_size else []  # images that may be broken
    return TrainState(
      step=jnp.int32(0),
      variables=variables,
      opt_state=optimizer.init(variables.params),
      ema=jax.tree.map(jnp.copy, variables) if config.optimizer.ema_decay else None,
      key=base_key(key),
      totals={name: jnp.float32(0) for name in ["steps", "loss", "top1", *watched, *counted]},
      bad_step={name: jnp.int32(0) for name in watched},
    )

  return jax.jit(init, out_shardings=replicated(mesh), compiler_options=quick_compilation(mesh))


def loss_weights(config: ml_collections.ConfigDict) -> dict[str, float]:
  """The losses that a config trains with, by name, in the paper's order, with their weights."""
  if config.model.head == "gap":
    return {"classification": 1.0}
  weights = {
    "spatial": 1.0,
    "mask": config.loss.mask_weight,
    "consistency": config.loss.consistency_weight,
    "distillation": config.loss.distillation_weight,
    "concentration": config.loss.concentration_weight,
  }
  return {name: weight for name, weight in weights.items() if weight}


def gap_losses(output: ModelOutput, targets: jax.Array) -> dict[str, jax.Array]:
  """The baseline's loss of a batch, (B,): cross-entropy of GAP-FC with the (mixed) labels."""
  log_probs = jax.nn.log_softmax(output.gap_logits)
  return {"classification": losses.soft_cross_entropy(log_probs, targets)}


def make_loss_fn(
  config: ml_collections.ConfigDict, model: FunctionalModel
) -> Callable[..., tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]]:
  """A function `(params, batch_stats, batch, key) -> (total loss, (new statistics, metrics))`.

  The batch holds the images before and after mixing, the mixed labels, and what was pasted, see
  `prepare_batch`. The metrics are means over the batch: each loss unweighted, their weighted sum
  `loss`, and `top1`, the agreement of the main head with the heaviest label.

  L_SS2's targets come from a second forward pass, over the unmixed images, in training mode too:
  normalised by the statistics of its own batch, with dropout where the network has any. Which mode
  the paper means is open; running statistics are cheaper, and cost accuracy, see docs/method.md.
  """
  weights = loss_weights(config)
  multipliers = Multipliers.parse(config.optimizer.multipliers)
  every, chunk = config.loss.consistency_every, examples_kept_together(config)
  thin = functools.partial(every_nth_chunk, n=every, chunk=chunk)

  def loss_fn(params, batch_stats, batch: Batch, key: jax.Array):
    key_mixed, key_unmixed = jax.random.split(key)
    variables = Variables(multipliers.stop_frozen(params), batch_stats)
    output, batch_stats = model.apply(variables, batch["mixed"], train=True, key=key_mixed)
    if output.spatial is None:
      values = gap_losses(output, batch["target"])
    else:
      unmixed = None
      if "consistency" in weights:
        # Fixed targets: no gradient, and these statistics are not kept.
        fixed = jax.lax.stop_gradient(variables)
        images = thin(batch["image"])
        unmixed = model.apply(fixed, images, train=True, key=key_unmixed)[0].spatial
      mask = cutmix.box_mask(batch["box"], *batch["image"].shape[1:3])
      values = losses.saol_losses(
        output.spatial,
        output.gap_logits,
        batch["target"],
        mask,
        unmixed,
        beta=config.loss.distillation_beta,
        thin=thin,
      )

    values = {name: values[name].mean() for name in weights}
    total = sum(weights[name] * value for name, value in values.items())
    log_probs = head_log_probs(output, "gap" if output.spatial is None else "saol")
    agrees = log_probs.argmax(-1) == batch["target"].argmax(-1)
    metrics = {"loss": total, "top1": agrees.mean(dtype=jnp.float32), **values}
    return total, (batch_stats, metrics)

  return loss_fn


def make_train_step(
  config: ml_collections.ConfigDict,
  info: DatasetInfo,
  model: FunctionalModel,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
  """The jitted step `(state, batch) -> (next state, metrics of this step)`.

  It donates the state: the old one cannot be used again. The batch holds `image` (B, H, W, 3) uint8
  and `label` (B,) int32, for encoded images `replaced` (B,) float32, and where there are several
  processes `stop` (B,) float32, split over the mesh. The metrics are the batch's means, but of
  these two the sums.
  """
  gradient_fn = jax.grad(make_loss_fn(config, model), has_aux=True)
  parts, chunk = config.optimizer.accumulate, examples_kept_together(config)
  multipliers = Multipliers.parse(config.optimizer.multipliers)

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    key_augment, key_cutmix, key_dropout = step_keys(state.key, state.step)
    counted = {name: batch[name].sum() for name in ("replaced", "stop") if name in batch}
    batch = prepare_batch(config, info, mesh, batch, key_augment, key_cutmix)
    params, batch_stats = state.variables.params, state.variables.batch_stats
    gradients, (batch_stats, values) = mean_over_parts(
      functools.partial(gradient_fn, params, batch_stats),
      batch,
      key_dropout,
      parts=parts,
      chunk=chunk,
      unroll=loops_are_slow(mesh),
    )
    gradients = kernel_gradients_in_order(gradients, multipliers.labels(params), mesh)
    updates, opt_state = optimizer.update(gradients, state.opt_state, params)
    variables = Variables(optax.apply_updates(params, updates), batch_stats)

    step = state.step + 1
    values["gradient"] = optax.tree.norm(gradients)
    values |= counted
    state = state.replace(
      step=step,
      variables=variables,
      opt_state=opt_state,
      ema=_moving_average(state.ema, variables, config.optimizer.ema_decay, state.step),
      totals={
        name: total + values.get(name, jnp.float32(1)) for name, total in state.totals.items()
      },
      bad_step={
        name: jnp.where((first == 0) & ~jnp.isfinite(values[name]), step, first)
        for name, first in state.bad_step.items()
      },
    )
    return state, values

  return jax.jit(
    train_step,
    donate_argnums=0,
    in_shardings=(replicated(mesh), split_batch(mesh)),
    out_shardings=replicated(mesh),
    compiler_options=compiler_options(mesh, deterministic=config.deterministic),
  )


def make_eval_step(
  config: ml_collections.ConfigDict,
  info: DatasetInfo,
  model: FunctionalModel,
  heads: tuple[str, ...],
  mesh: Mesh,
) -> Callable[[Variables, Batch], dict[str, dict[str, jax.Array]]]:
  """A jitted function from a batch with a `mask` (B,) to each head's sums, see `metrics`.

  With them for the first head `confusion` (K, K), unless there are too many classes.
  """

  def eval_step(variables: Variables, batch: Batch) -> dict[str, dict[str, jax.Array]]:
    images = normalise(batch["image"], info.mean, info.std)
    output, _ = model.apply(variables, images, train=False)
    counted = batch["label"], batch["mask"]
    sums = {head: classification_sums(head_log_probs(output, head), *counted) for head in heads}
    if len(info.class_names) <= _MOST_CLASSES:
      sums[heads[0]]["confusion"] = confusion_counts(head_log_probs(output, heads[0]), *counted)
    return sums

  return jax.jit(
    eval_step,
    in_shardings=(replicated(mesh), split_batch(mesh)),
    out_shardings=replicated(mesh),
    compiler_options=compiler_options(mesh, deterministic=config.deterministic),
  )


def head_log_probs(output: ModelOutput, head: str) -> jax.Array:
  """(B, K) log-probabilities of head "saol" or "gap"."""
  return output.spatial.log_probs if head == "saol" else jax.nn.log_softmax(output.gap_logits)


def examples_kept_together(config: ml_collections.ConfigDict) -> int:
  """Consecutive examples that belong together: pairs to mix and batch-norm groups."""
  pair = 2 if config.cutmix.prob or config.mixup.prob else 1
  return math.lcm(pair, config.model.norm_group or 1)


def _moving_average(
  ema: Variables | None, new: Variables, decay: float, steps_before: jax.Array
) -> Variables | None:
  """The average after a step; at first it is short, so that nothing of the random start stays.

  After n steps its decay is at most (1 + n) / (10 + n), as in TensorFlow's
  ExponentialMovingAverage with `num_updates`. Statistics that are no floats have no average: the
  new ones are kept.
  """
  if ema is None:
    return None
  n = steps_before.astype(jnp.float32)
  decay = jnp.minimum(decay, (1 + n) / (10 + n))

  def average(old: jax.Array, value: jax.Array) -> jax.Array:
    floating = jnp.issubdtype(value.dtype, jnp.floating)
    return decay * old + (1 - decay) * value if floating else value

  return jax.tree.map(average, ema, new)
