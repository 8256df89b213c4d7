"""State dicts of PyTorch libraries by name and shape, and a model of ours to put them into."""

import numpy as np
from flax import nnx

from saol_jax.heads import GapFC
from saol_jax.model import Classifier
from tests.backbones.numerics import SameKey, abstract


def classifier(backbone, classes=1000):
  """With GAP-FC only; `backbone` is a name, or a backbone with shapes in place of arrays."""
  backbone = abstract(backbone) if isinstance(backbone, str) else backbone
  gap = nnx.eval_shape(lambda: GapFC(backbone.stage_channels[-1], classes, rngs=SameKey()))
  return Classifier(backbone, gap, None)


class Shapes(dict):
  """Shapes by name, filled layer by layer in PyTorch's order."""

  def conv(self, name, outputs, inputs, size, *, bias=False):
    self[f"{name}.weight"] = (outputs, inputs, size, size)
    if bias:
      self[f"{name}.bias"] = (outputs,)

  def linear(self, name, outputs, inputs):
    self[f"{name}.weight"], self[f"{name}.bias"] = (outputs, inputs), (outputs,)

  def layer_norm(self, name, channels):
    self[f"{name}.weight"] = self[f"{name}.bias"] = (channels,)

  def batch_norm(self, name, channels):
    self.layer_norm(name, channels)
    self[f"{name}.running_mean"] = self[f"{name}.running_var"] = (channels,)
    self[f"{name}.num_batches_tracked"] = ()

  def conv_norm(self, name, outputs, inputs, size):
    self.conv(f"{name}.0", outputs, inputs, size)
    self.batch_norm(f"{name}.1", outputs)


def zeros(shapes):
  return {name: np.zeros(shape, np.int8) for name, shape in shapes.items()}
