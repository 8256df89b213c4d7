"""What the tests of the backbones share: abstract and filled networks, layers in NumPy."""

import functools
import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import scipy.special
from flax import nnx

from saol_jax.backbones import create_backbone


class SameKey:
  """In place of `nnx.Rngs`, whose counting takes most of the time of an abstract construction."""

  def __init__(self):
    self.key = jax.random.key(0)

  def params(self):
    return self.key

  dropout = params


@functools.cache
def abstract(name, **options):
  """The backbone with shapes in place of arrays; one for all tests that ask for nothing special."""
  options = {"norm_group": 16} | options
  return nnx.eval_shape(lambda: create_backbone(name, rngs=SameKey(), **options))


@functools.cache
def traced(model, height, width):
  """What an evaluation of two images computes, to statistics and maps, and the shapes of these.

  Nothing is compiled.
  """
  graph, params, rest = nnx.split(model, nnx.Param, ...)
  images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)

  def run(params, rest, images):
    model = nnx.merge(graph, params, rest)
    maps = model(images, train=False)
    return nnx.state(model, nnx.BatchStat), maps

  return jax.make_jaxpr(run, return_shape=True)(params, rest, images)


def map_shapes(model, height, width):
  _, (_, maps) = traced(model, height, width)
  return maps


def changes_statistics(model, height, width):
  """Whether an evaluation gives any statistic another value than it has."""
  jaxpr, (statistics, _) = traced(model, height, width)
  outputs = jaxpr.jaxpr.outvars[: len(jax.tree.leaves(statistics))]
  return not set(outputs) <= set(jaxpr.jaxpr.invars)


def unused_parameters(model, height, width):
  """The paths of parameters that the last map does not depend on."""
  jaxpr = traced(model, height, width)[0].jaxpr
  return _unused(jaxpr, jaxpr.outvars[-1], nnx.state(model, nnx.Param))


def assert_trains(make):
  """A network of ours, made by `make(dtype=...)`, in training; traced only.

  The last map depends on every parameter, and every new statistic on the images. The maps have the
  type of the computation, all that is learnt is float32.
  """
  model = build(lambda: make(dtype=jnp.bfloat16))
  graph, params, statistics, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
  images = jax.ShapeDtypeStruct((4, 64, 48, 3), jnp.float32)

  def run(params, images, statistics):
    model = nnx.merge(graph, params, statistics, rest, copy=True)
    maps = model(images, train=True)
    return nnx.state(model, nnx.BatchStat), maps

  jaxpr, (new, maps) = jax.make_jaxpr(run, return_shape=True)(params, images, statistics)
  assert _unused(jaxpr.jaxpr, jaxpr.jaxpr.outvars[-1], params) == []
  changed = {jaxpr.jaxpr.invars[len(jax.tree.leaves(params))]}  # by the images
  for equation in jaxpr.jaxpr.eqns:
    if any(isinstance(v, jax.extend.core.Var) and v in changed for v in equation.invars):
      changed.update(equation.outvars)
  assert changed.issuperset(jaxpr.jaxpr.outvars[: len(jax.tree.leaves(statistics))])
  assert {x.dtype for x in maps} == {jnp.dtype(jnp.bfloat16)}
  assert {x.dtype for x in jax.tree.leaves((params, new))} == {jnp.dtype(jnp.float32)}


def _unused(jaxpr, output, params):
  """The paths of those `params`, its first inputs, that an output is not computed from."""
  needed = {output}
  for equation in reversed(jaxpr.eqns):
    if not needed.isdisjoint(equation.outvars):
      needed.update(v for v in equation.invars if isinstance(v, jax.extend.core.Var))
  paths = [path for path, _ in nnx.to_flat_state(params)]
  return [
    "/".join(map(str, path))
    for path, variable in zip(paths, jaxpr.invars[: len(paths)], strict=True)
    if variable not in needed
  ]


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


def numpy_conv(x, kernel, stride, *, tensorflow=False):
  """A convolution in float64, in as many groups as the kernel's inputs say.

  Zeros all around as PyTorch's Conv2d with padding k // 2: windows start at the first corner. Or as
  TensorFlow's 'SAME': as few zeros as give ceil(side / stride) windows, the odd one at the far end.
  """
  k, inputs = kernel.shape[0], kernel.shape[2]
  pads = [(k // 2, k // 2)] * 2
  if tensorflow:
    totals = [max((-(-side // stride) - 1) * stride + k - side, 0) for side in x.shape[1:3]]
    pads = [(total // 2, total - total // 2) for total in totals]
  x = np.pad(x.astype(np.float64), ((0, 0), *pads, (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))
  windows = windows[:, ::stride, ::stride]
  windows = windows.reshape(*windows.shape[:3], -1, inputs, k, k)
  kernel = kernel.astype(np.float64).reshape(k, k, inputs, windows.shape[3], -1)
  y = np.einsum("bhwgcij,ijcgo->bhwgo", windows, kernel, optimize=True)
  return y.reshape(*y.shape[:3], -1)


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


def numpy_average_pool(x, partial):
  """PyTorch's AvgPool2d(2), `ceil_mode` if partial, by a plain loop over the windows."""
  b, h, w, c = x.shape
  height, width = (-(-h // 2), -(-w // 2)) if partial else (h // 2, w // 2)
  y = np.empty((b, height, width, c))
  for i in range(height):
    for j in range(width):
      y[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2))
  return y


def relu(x):
  return np.maximum(x, 0)


def numpy_layer_norm(x, state, path):
  scale, bias = (state[f"{path}/{name}".lstrip("/")] for name in ("scale", "bias"))
  deviation = x - x.mean(-1, keepdims=True)
  variance = np.square(deviation).mean(-1, keepdims=True)
  return deviation / np.sqrt(variance + 1e-6) * scale + bias


def numpy_linear(x, state, path):
  return x @ state[f"{path}/kernel"] + state[f"{path}/bias"]


def numpy_gelu(x):
  return x * scipy.special.ndtr(x)


def numpy_patches(x, state, path):
  """A convolution of patches side by side, one patch at a time."""
  kernel = state[f"{path}/kernel"].astype(np.float64)
  size = kernel.shape[0]
  h, w = x.shape[1] // size, x.shape[2] // size
  y = np.empty((len(x), h, w, kernel.shape[-1]))
  for i in range(h):
    for j in range(w):
      patch = x[:, i * size : (i + 1) * size, j * size : (j + 1) * size]
      y[:, i, j] = np.tensordot(patch, kernel, 3)
  return y + state[f"{path}/bias"]


def assert_maps_agree(maps, expected):
  assert len(maps) == len(expected)
  for got, want in zip(maps, expected, strict=True):
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def assert_gradient_reaches_every_parameter(model, images, *, train=True):
  """From a weighted sum of the last map."""
  weights = np.random.default_rng(1).normal(size=model.stage_channels[-1]).astype(np.float32)

  def loss(model):
    return jnp.einsum("bhwc,c->", model(images, train=train)[-1], weights)

  gradients = nnx.to_flat_state(nnx.jit(nnx.grad(loss))(model))
  assert len(gradients) == len(leaves(model, nnx.Param))
  for path, gradient in gradients:
    assert np.isfinite(gradient[...]).all(), path
    assert np.abs(gradient[...]).max() > 1e-4, path
