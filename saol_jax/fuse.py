"""Batch norms folded into the convolutions before them: the same function, less to compute."""

import collections
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from saol_jax.norm import GhostBatchNorm

Path = tuple[str | int, ...]

# What may stand between a variable, or a convolution, and the norm's subtraction.
_VIEWS = ("convert_element_type", "reshape", "broadcast_in_dim", "copy")


class Unchanged(nnx.Module):
  """Stands where a norm was that its convolution has taken over."""

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Returns x.

    Raises:
      ValueError: in training, where there is no norm any more.
    """
    if train:
      raise ValueError("a model whose norms are fused into its convolutions cannot be trained")
    return x


def fuse_norms(model: nnx.Module, image_size: tuple[int, int]) -> nnx.Module:
  """Folds every batch norm that directly follows a convolution into it.

    norm(w * x + b) = (m w) * x + m (b - mean) + bias,   m = scale / sqrt(var + epsilon)

  A norm is folded where it is our own, it and the convolution are called once each, and the
  convolution's result goes nowhere else, which is read off the traced program; others, such as
  those of pre-activation blocks after a sum, and nnx.BatchNorm, stay. For inference only.

  Args:
    model: called as `model(images, train=False)`; changed in place.
    image_size: height and width to trace it with.

  Returns:
    The same model.
  """
  for conv_path, norm_path in _pairs(model, image_size):
    conv, norm = _at(model, conv_path), _at(model, norm_path)
    multiplier = norm.scale[...] * jax.lax.rsqrt(norm.var[...] + norm.epsilon)
    before = jnp.zeros_like(multiplier) if conv.bias is None else conv.bias[...]
    conv.kernel[...] = conv.kernel[...] * multiplier[None, None, None]
    conv.use_bias = True
    conv.bias = nnx.Param(multiplier * (before - norm.mean[...]) + norm.bias[...])
    _replace(model, norm_path, Unchanged())
  return model


def count_norms(model: nnx.Module) -> int:
  """How many batch norms a model has."""
  return sum(isinstance(module, GhostBatchNorm) for _, module in nnx.iter_modules(model))


def _pairs(model: nnx.Module, image_size: tuple[int, int]) -> list[tuple[Path, Path]]:
  """Paths of the convolutions, and of the norms that are their only readers."""
  graph, state = nnx.split(model)
  flat = nnx.to_flat_state(state)
  # Shapes only: the model may itself be abstract.
  leaves = [jax.ShapeDtypeStruct(v.shape, v.dtype) for _, v in flat]
  images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)

  def forward(leaves: Sequence[jax.Array], images: jax.Array):
    arrays = [v.replace(leaf) for (_, v), leaf in zip(flat, leaves, strict=True)]
    paths = [path for path, _ in flat]
    state = nnx.from_flat_state(zip(paths, arrays, strict=True))
    return nnx.merge(graph, state, copy=True)(images, train=False)

  program = jax.make_jaxpr(forward)(leaves, images).jaxpr
  readers = collections.Counter(
    v for equation in program.eqns for v in equation.invars if isinstance(v, core.Var)
  )
  readers.update(v for v in program.outvars if isinstance(v, core.Var))
  variable = dict(zip(program.invars, (path for path, _ in flat), strict=False))  # it stands for
  maker: dict[core.Var, Path] = {}  # the convolution whose result it is
  inputs = zip(program.invars, (path for path, _ in flat), strict=False)
  once = {path[:-1] for v, path in inputs if path[-1] in ("kernel", "mean") and readers[v] == 1}
  pairs = []
  for equation in program.eqns:
    kind, result = equation.primitive.name, equation.outvars[0]
    read = [v if isinstance(v, core.Var) else None for v in equation.invars]
    names = [variable.get(v, ("",))[-1] for v in read]
    if kind == "conv_general_dilated" and names[1] == "kernel":
      maker[result] = variable[read[1]][:-1]
    elif kind in _VIEWS and read[0] in variable:
      variable[result] = variable[read[0]]
    elif read and read[0] in maker and readers[read[0]] == 1:
      if kind in _VIEWS or (kind == "add" and names[1] == "bias"):  # the convolution's own bias
        maker[result] = maker[read[0]]
      elif kind == "sub" and names[1] == "mean":
        pairs.append((maker[read[0]], variable[read[1]][:-1]))
  return [
    (conv, norm)
    for conv, norm in pairs
    if {conv, norm} <= once and isinstance(_at(model, norm), GhostBatchNorm)
  ]


def _at(model: nnx.Module, path: Path) -> nnx.Module:
  for part in path:
    model = model[part] if isinstance(part, int) else getattr(model, part)
  return model


def _replace(model: nnx.Module, path: Path, new: nnx.Module) -> None:
  parent = _at(model, path[:-1])
  if isinstance(path[-1], int):
    parent[path[-1]] = new
  else:
    setattr(parent, path[-1], new)
