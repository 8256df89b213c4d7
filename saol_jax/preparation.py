"""What happens to a batch between its bytes and the network: augmentation, CutMix, mixup."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from saol_jax import cutmix, mixup
from saol_jax.accumulation import Batch
from saol_jax.data.augment import augment
from saol_jax.data.source import DatasetInfo
from saol_jax.distributed import replicated

_MIXUP = 1 << 16  # folded into CutMix's key; far from the few that CutMix splits off


def seed_data(config: ml_collections.ConfigDict) -> np.ndarray:
  """The seed of a config as the data of a random key, which all processes can pass to a program."""
  return np.asarray(jax.random.key_data(jax.random.key(config.seed)))


def base_key(key: jax.Array) -> jax.Array:
  """The random key that all steps of a run have theirs from, made from that of its seed."""
  return jax.random.fold_in(key, 1)


def step_keys(key: jax.Array, step: int | jax.Array) -> jax.Array:
  """(3,) keys of the step that comes after `step`: for augmentation, CutMix and dropout."""
  return jax.random.split(jax.random.fold_in(key, step), 3)


def prepare_batch(
  config: ml_collections.ConfigDict,
  info: DatasetInfo,
  mesh: Mesh,
  batch: Batch,
  key_augment: jax.Array,
  key_cutmix: jax.Array,
) -> Batch:
  """Augments a batch of bytes and mixes it.

  Args:
    config: of the run.
    info: of the data set.
    mesh: that the batch is split over.
    batch: `image` (B, H, W, 3) uint8 and `label` (B,) int32.
    key_augment, key_cutmix: random keys, see `step_keys`.

  Returns:
    image, mixed: (B, H, W, 3) float32, normalised, before and after mixing.
    target: (B, K), mixed labels. box: (B, 4), what was pasted, in pixels.
  """
  images = augment(key_augment, batch["image"], config.data, mean=info.mean, std=info.std)
  smoothing, num_classes = config.loss.label_smoothing, len(info.class_names)
  targets = jax.nn.one_hot(batch["label"], num_classes, dtype=jnp.float32)
  targets = (1 - smoothing) * targets + smoothing / num_classes
  boxes = jnp.zeros((len(images), 4), jnp.int32)
  mixed, mixed_targets = images, targets
  if config.cutmix.prob:
    boxes = cutmix.sample_boxes(
      key_cutmix,
      *images.shape[:3],
      alpha=config.cutmix.alpha,
      prob=config.cutmix.prob,
      per_example=config.cutmix.per_example,
    )
    # Each device draws all boxes: sharing out the draws would make the devices wait for each other.
    boxes = jax.lax.with_sharding_constraint(boxes, replicated(mesh))
    mixed, mixed_targets = cutmix.mix(images, targets, boxes)
  if config.mixup.prob:
    shares = mixup.sample_shares(
      jax.random.fold_in(key_cutmix, _MIXUP),
      len(images),
      alpha=config.mixup.alpha,
      prob=config.mixup.prob,
    )
    shares = jax.lax.with_sharding_constraint(shares, replicated(mesh))
    blended, blended_targets = mixup.blend(images, targets, shares)
    pasted = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    mixed = jnp.where(pasted[:, None, None, None], mixed, blended)
    mixed_targets = jnp.where(pasted[:, None], mixed_targets, blended_targets)
  return {"image": images, "mixed": mixed, "target": mixed_targets, "box": boxes}
