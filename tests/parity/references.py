"""Networks of PyTorch libraries with random weights, and ours with the same."""

import enum
import importlib.abc
import importlib.machinery
import sys
import types

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from saol_jax import create_model
from saol_jax.library_weights import match
from tests.backbones.numerics import SameKey, forward

_INTERPOLATION = enum.Enum("InterpolationMode", "NEAREST BILINEAR BICUBIC BOX HAMMING LANCZOS")


class _NoTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Empty modules in place of torchvision's, whose classes timm's data pipeline names.

  timm's networks are computed without torchvision, yet `import timm` imports it.
  """

  def find_spec(self, name, path=None, target=None):
    if name.partition(".")[0] == "torchvision":
      return importlib.machinery.ModuleSpec(name, self, is_package=True)
    return None

  def create_module(self, spec):
    return types.ModuleType(spec.name)

  def exec_module(self, module):
    def attribute(name):
      if name.startswith("__"):
        raise AttributeError(name)
      return _INTERPOLATION if name == "InterpolationMode" else type(name, (), {})

    module.__getattr__ = attribute


def import_timm():
  """The module `timm`, whether or not torchvision is there."""
  finder = _NoTorchvision()
  sys.meta_path.insert(0, finder)
  try:
    import timm
  finally:
    sys.meta_path.remove(finder)
  return timm


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
  """Draws all parameters and statistics anew, in general position, and switches to evaluation."""
  rng = np.random.default_rng(seed)
  for name, tensor in module.state_dict().items():
    if not tensor.is_floating_point():
      continue
    shape, last = tuple(tensor.shape), name.rpartition(".")[2]
    if last == "running_var" or (last != "bias" and len(shape) == 1 and last != "running_mean"):
      value = rng.uniform(0.5, 1.5, shape)
    elif len(shape) < 2 or "token" in last or "pos" in last:
      value = rng.normal(0, 0.2, shape)
    elif "layer_scale" in last:
      value = rng.uniform(0.5, 1.5, shape)
    else:
      value = rng.normal(0, np.sqrt(1.5 / np.prod(shape[1:])), shape)
    with torch.no_grad():
      tensor.copy_(torch.from_numpy(np.asarray(value, np.float32)))
  return module.eval()


def theirs(module: torch.nn.Module, images: np.ndarray, names, **options):
  """The outputs of the named parts of a module, (B, h, w, c) or as they are, and its own."""
  found = {}
  handles = [
    module.get_submodule(name).register_forward_hook(
      lambda _module, _inputs, output, name=name: found.__setitem__(name, output)
    )
    for name in names
  ]
  with torch.no_grad():
    output = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), **options)
  for handle in handles:
    handle.remove()
  logits = getattr(output, "logits", output)
  return [_array(found[name]) for name in names], logits.numpy()


def _array(output) -> np.ndarray:
  output = getattr(output, "last_hidden_state", output)
  output = output[0] if isinstance(output, tuple) else output
  return output.numpy().transpose(0, 2, 3, 1) if output.ndim == 4 else output.numpy()


def ours(backbone, module: torch.nn.Module, images: np.ndarray):
  """The stage maps and the logits of GAP-FC, with the weights of a module; and what was used.

  Args:
    backbone: a name, or a function from `rngs` to a backbone.
    module: whose state dict is imported.
    images: (B, H, W, 3).
  """
  tensors = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
  classes = next(t.shape[0] for name, t in reversed(tensors.items()) if name.endswith("bias"))
  rngs = SameKey()
  model = nnx.eval_shape(
    lambda: create_model(
      backbone if isinstance(backbone, str) else backbone(rngs=rngs),
      classes,
      head="gap",
      rngs=rngs,
    )
  )
  pretrained = match(model, tensors, "a reference")
  for path, variable in nnx.to_flat_state(nnx.state(model)):
    value = pretrained.values.get(path)
    variable.set_value(jnp.zeros(variable.shape) if value is None else jnp.asarray(value))
  maps = forward(model.backbone, jnp.asarray(images), train=False)
  return [np.asarray(x) for x in maps], np.asarray(model.gap(maps[-1])), pretrained


def assert_close(got: np.ndarray, want: np.ndarray) -> None:
  """Within 1e-4 of the largest value, and in norm."""
  assert got.shape == want.shape
  assert np.isfinite(want).all()
  error = got.astype(np.float64) - want
  assert np.abs(error).max() < 1e-4 * np.abs(want).max()
  assert np.linalg.norm(error) < 1e-4 * np.linalg.norm(want)
  assert np.abs(want).std() > 1e-3
