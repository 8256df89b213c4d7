"""SAOL in a training loop of your own: no config, no main.py, only the head, CutMix and the losses.

python examples/own_loop.py
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from saol_jax import create_model, cutmix, losses
from saol_jax.data import load_source


def make_step(optimizer: optax.GradientTransformation):
  """A jitted step: (model, optimizer state, images, labels, key) to (state, losses)."""

  def loss_fn(model: nnx.Module, unmixed: nnx.Module, images, labels, key):
    targets = jax.nn.one_hot(labels, 10)
    boxes = cutmix.sample_boxes(key, *images.shape[:3], prob=0.5)
    mixed, mixed_targets = cutmix.mix(images, targets, boxes)
    output = model(mixed, train=True)
    values = losses.saol_losses(
      output.spatial,
      output.gap_logits,
      mixed_targets,
      cutmix.box_mask(boxes, *images.shape[1:3]),
      unmixed(images, train=True).spatial,
    )
    values.pop("concentration")  # ours, see its docstring
    means = {name: value.mean() for name, value in values.items()}
    return sum(means.values()), means

  @nnx.jit
  def step(model, opt_state, images, labels, key):
    # A copy reads the unmixed images, so that these leave no trace in the running statistics.
    arguments = (nnx.clone(model), images, labels, key)
    gradients, means = nnx.grad(loss_fn, has_aux=True)(model, *arguments)
    params = nnx.state(model, nnx.Param)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    nnx.update(model, optax.apply_updates(params, updates))
    return opt_state, means

  return step


def main(num_steps: int = 400, batch_size: int = 64) -> dict[str, float]:
  """Trains on scenes of digits, and returns the accuracy of both heads on other ones."""
  train, test = (load_source("digit_scenes", split) for split in ("train", "test"))
  mean, std = np.float32(train.info.mean), np.float32(train.info.std)
  model = create_model("resnet8", 10, width=32, rngs=nnx.Rngs(0))
  optimizer = optax.adamw(optax.cosine_onecycle_schedule(num_steps, 4e-3), weight_decay=0.05)
  opt_state, step = optimizer.init(nnx.state(model, nnx.Param)), make_step(optimizer)
  order = np.random.default_rng(0)
  for k in range(num_steps):
    batch = train[order.integers(len(train), size=batch_size)]
    images = (batch["image"] / np.float32(255) - mean) / std
    opt_state, means = step(model, opt_state, images, batch["label"], jax.random.key(k))
    if (k + 1) % 50 == 0 or k + 1 == num_steps:
      values = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
      print(f"step {k + 1}/{num_steps}  {values}", flush=True)

  batch = test[np.arange(len(test))]
  output = nnx.jit(lambda model, x: model(x, train=False))(
    model, jnp.asarray((batch["image"] / np.float32(255) - mean) / std)
  )
  heads = {"SAOL": output.spatial.log_probs, "GAP-FC": output.gap_logits}
  top1 = {name: float((x.argmax(-1) == batch["label"]).mean()) for name, x in heads.items()}
  print("test top-1: " + ", ".join(f"{name} {100 * value:.1f} %" for name, value in top1.items()))
  return top1


if __name__ == "__main__":
  main()
