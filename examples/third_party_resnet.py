"""Somebody else's ResNet: it stands for a package that you have installed, and knows nothing of us.

It is written as NNX models mostly are: images in, logits out, its feature maps inside, and
nnx.BatchNorm switched by `train()` and `eval()`.
"""

import jax
from flax import nnx


class Block(nnx.Module):
  """Two 3x3 convolutions around a shortcut."""

  def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
    self.conv1 = nnx.Conv(inputs, outputs, (3, 3), strides=stride, use_bias=False, rngs=rngs)
    self.bn1 = nnx.BatchNorm(outputs, rngs=rngs)
    self.conv2 = nnx.Conv(outputs, outputs, (3, 3), use_bias=False, rngs=rngs)
    self.bn2 = nnx.BatchNorm(outputs, rngs=rngs)
    self.project = nnx.Conv(inputs, outputs, (1, 1), strides=stride, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """(B, H, W, inputs) to (B, H / stride, W / stride, outputs)."""
    y = self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x)))))
    return nnx.relu(y + self.project(x))


class ResNet(nnx.Module):
  """A stem, three blocks, and a linear layer on their mean."""

  def __init__(self, num_classes: int, *, rngs: nnx.Rngs):
    self.stem = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
    self.layer1 = Block(8, 16, 1, rngs=rngs)
    self.layer2 = Block(16, 32, 2, rngs=rngs)
    self.layer3 = Block(32, 64, 2, rngs=rngs)
    self.fc = nnx.Linear(64, num_classes, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Images (B, H, W, 3) to logits (B, num_classes)."""
    x = self.layer3(self.layer2(self.layer1(self.stem(x))))
    return self.fc(x.mean((1, 2)))
