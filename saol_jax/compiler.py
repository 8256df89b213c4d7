"""What XLA is told when it compiles the programs of a run."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}


def compiler_options(mesh: Mesh, *, deterministic: bool = False) -> dict[str, bool | str]:
  """Options of `jax.jit` for a program on the devices of a mesh.

  On CPUs only products of matrices are left to YNNPACK, a library that XLA also gives convolutions
  by default, one by one. XLA's own way with them, Eigen's, takes about half the time at batches of
  32 and 64, and three quarters at 8: see `benchmarks/compiler.py`. The option is experimental: a
  jaxlib without it is not told.

  In deterministic mode GPUs get `xla_gpu_deterministic_ops`: no algorithm whose sums depend on the
  order of arrival, and none chosen by timing, so that a process that goes on computes what the one
  before would have computed. CPUs and TPUs need no such mode.
  """
  platform = mesh.devices.flat[0].platform
  if platform == "cpu":
    return _CPU if _cpu_options_are_known() else {}
  return {"xla_gpu_deterministic_ops": True} if deterministic and _on_gpu(mesh) else {}


def quick_compilation(mesh: Mesh) -> dict[str, int]:
  """Options of `jax.jit` for a program that runs once, such as the one that draws parameters.

  Optimising random numbers for CPUs takes XLA longer than it saves when they are drawn once.
  """
  on_cpu = mesh.devices.flat[0].platform == "cpu"
  return {"xla_backend_optimization_level": 0} if on_cpu else {}


@contextlib.contextmanager
def quick_random_bits(mesh: Mesh) -> Iterator[None]:
  """While a program that runs once is made: on GPUs JAX's own kernel gives it its random bits.

  They are the same bits. Without it XLA fuses the arithmetic of each draw with all that follows,
  which for the parameters of a deep network takes it as long as to compile the training step. The
  kernel reads and writes memory, so that it is not for programs that run often.
  """
  name = "jax_threefry_gpu_kernel_lowering"
  before = getattr(jax.config, name)
  jax.config.update(name, before or _on_gpu(mesh))
  try:
    yield
  finally:
    jax.config.update(name, before)


def loops_are_slow(mesh: Mesh) -> bool:
  """Whether a loop should rather be written out.

  XLA for CPUs brings the gradients of convolutions into the form that its library wants only where
  they are outside of loops; inside, a training step takes many times as long.
  """
  return mesh.devices.flat[0].platform == "cpu"


def few_channels_are_slow(mesh: Mesh) -> bool:
  """Whether a convolution should not read images pixel by pixel, see `backbones.stem`."""
  return _on_gpu(mesh)


def kernel_gradients_in_order(gradients: Any, labels: Any, mesh: Mesh) -> Any:
  """The gradients; those of convolutions in the parameters' order of dimensions first, on GPUs.

  cuDNN gives them in another order. An update that reads them so is a transposition, which XLA does
  not let write over the old parameters: it writes the new ones, and the momentum, elsewhere and
  copies them back, two kernels for each convolution. In order, the update works in place, and takes
  the norm of the gradient on the way. Gradients that are labelled "frozen" stay the constants that
  they are.
  """
  if not _on_gpu(mesh):
    return gradients

  def in_order(gradient: jax.Array, label: str) -> jax.Array:
    if gradient.ndim < 3 or label == "frozen":
      return gradient
    return jax.lax.optimization_barrier(gradient.reshape(-1)).reshape(gradient.shape)

  return jax.tree.map(in_order, gradients, labels)


def _on_gpu(mesh: Mesh) -> bool:
  return mesh.devices.flat[0].platform in ("gpu", "cuda", "rocm")


@functools.cache
def _cpu_options_are_known() -> bool:
  try:
    jax.jit(lambda: 0, compiler_options=_CPU).lower().compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True
