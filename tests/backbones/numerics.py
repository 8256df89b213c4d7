"""What the tests of the backbones share: abstract and filled networks, layers in NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from saol_jax.backbones import create_backbone


@functools.cache
def abstract(name, **options):
  """The backbone with shapes in place of arrays; one for all tests that ask for nothing special."""
  options = {"norm_group": 16} | options
  return nnx.eval_shape(lambda: create_backbone(name, rngs=nnx.Rngs(0), **options))


def map_shapes(model, height, width):
  images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
  return nnx.eval_shape(lambda m, x: m(x, train=False), model, images)


def count(model):
  return sum(math.prod(p.shape) for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


def leaves(model, kind=None):
  """Path -> array, of one kind of variable or of parameters and statistics."""
  state = nnx.state(model, kind or nnx.Any(nnx.Param, nnx.BatchStat))
  return {"/".join(map(str, path)): np.array(v[...]) for path, v in nnx.to_flat_state(state)}


def build(make, seed=0):
  """The module that `make` returns, filled by NumPy, which is quicker than compiling initialisers.

  Norms are in general position: a scale of 0 or a mean of 0 would hide mistakes.
  """
  rng = np.random.default_rng(seed)
  model = nnx.eval_shape(make)
  for path, variable in nnx.to_flat_state(nnx.state(model)):
    shape = variable.shape
    if isinstance(variable, nnx.RngState):
      variable.set_value(jax.random.key(0) if isinstance(variable, nnx.RngKey) else jnp.uint32(0))
      continue
    if path[-1] == "kernel":
      value = rng.normal(0, math.sqrt(2 / math.prod(shape[:-1])), shape)
    elif path[-1] in ("scale", "var"):
      value = rng.uniform(0.5, 1.5, shape)
    else:
      value = rng.normal(0, 0.2, shape)
    variable.set_value(jnp.asarray(value, jnp.float32))
  return model


@functools.partial(nnx.jit, static_argnames="train")
def forward(model, x, *, train):
  """One compilation in place of one an operation and shape."""
  return model(x, train=train)


def images(batch=2, height=23, width=18, seed=0):
  return np.random.default_rng(seed).normal(size=(batch, height, width, 3)).astype(np.float32)


def numpy_conv(x, kernel, stride):
  """PyTorch's Conv2d with padding k // 2: zeros on both sides, windows from the first corner."""
  k = kernel.shape[0]
  pad = k // 2
  x = np.pad(x.astype(np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))
  return np.einsum("bhwcij,ijco->bhwo", windows[:, ::stride, ::stride], kernel.astype(np.float64))


def numpy_max_pool(x):
  """PyTorch's MaxPool2d(3, 2, 1), by a plain loop over the cells that exist."""
  b, h, w, c = x.shape
  y = np.empty((b, -(-h // 2), -(-w // 2), c))
  for i in range(y.shape[1]):
    for j in range(y.shape[2]):
      rows = slice(max(2 * i - 1, 0), 2 * i + 2)
      columns = slice(max(2 * j - 1, 0), 2 * j + 2)
      y[:, i, j] = x[:, rows, columns].max((1, 2))
  return y


def numpy_norm(x, state, path, epsilon=1e-5):
  mean, var, scale, bias = (state[f"{path}/{n}"] for n in ("mean", "var", "scale", "bias"))
  return (x - mean) / np.sqrt(var + epsilon) * scale + bias


def relu(x):
  return np.maximum(x, 0)


def assert_maps_agree(maps, expected):
  assert len(maps) == len(expected)
  for got, want in zip(maps, expected, strict=True):
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
