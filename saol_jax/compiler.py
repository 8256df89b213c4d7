"""What XLA is told when it compiles the programs of a run."""

import functools

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
  on_gpu = platform in ("gpu", "cuda", "rocm")
  return {"xla_gpu_deterministic_ops": True} if deterministic and on_gpu else {}


def quick_compilation(mesh: Mesh) -> dict[str, int]:
  """Options of `jax.jit` for a program that runs once, such as the one that draws parameters.

  Optimising random numbers for CPUs takes XLA longer than it saves when they are drawn once.
  """
  on_cpu = mesh.devices.flat[0].platform == "cpu"
  return {"xla_backend_optimization_level": 0} if on_cpu else {}


def loops_are_slow(mesh: Mesh) -> bool:
  """Whether a loop should rather be written out.

  XLA for CPUs brings the gradients of convolutions into the form that its library wants only where
  they are outside of loops; inside, a training step takes many times as long.
  """
  return mesh.devices.flat[0].platform == "cpu"


@functools.cache
def _cpu_options_are_known() -> bool:
  try:
    jax.jit(lambda: 0, compiler_options=_CPU).lower().compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True
