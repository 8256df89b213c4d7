"""The networks that the step benchmark gives PyTorch are ours."""

import argparse
import math

import jax
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("torch", reason="torch is not installed: make test-parity does it")

from benchmarks import torch_training
from saol_jax import create_model


def of_ours(name: str, num_classes: int) -> nnx.Module:
  return create_model(name, num_classes, head="gap", rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_4", "wrn_40_2", "wrn_28_10"])
def test_parameter_counts_are_equal(name):
  ours = nnx.state(nnx.eval_shape(lambda: of_ours(name, 7)), nnx.Param)
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(ours))
  network = torch_training.create(name, 7)
  assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize("variant", ["eager", "eager, channels_last"])
def test_steps_lower_the_loss(variant):
  options = argparse.Namespace(
    backbone="resnet8",
    num_classes=4,
    image_size=16,
    batch_size=8,
    dtype="float32",
    learning_rate=0.05,
    device="cpu",
  )
  trainer = torch_training.Trainer(variant, options)
  losses = []
  for _ in range(30):
    trainer.turn(1)
    losses.append(float(trainer.last))
  assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2
