"""What XLA is told, and that it does it."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saol_jax import compiler
from saol_jax.compiler import (
  compiler_options,
  few_channels_are_slow,
  kernel_gradients_in_order,
  loops_are_slow,
  quick_compilation,
  quick_random_bits,
)
from tests.support import mesh_of


def asked(platform: str, *, deterministic: bool) -> dict[str, bool | str]:
  mesh = SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]))
  return compiler_options(mesh, deterministic=deterministic)


def test_deterministic_mode_is_asked_of_gpus_alone():
  """On CPUs and TPUs the flag is not known or not needed."""
  assert asked("gpu", deterministic=True) == {"xla_gpu_deterministic_ops": True}
  assert asked("gpu", deterministic=False) == asked("tpu", deterministic=True) == {}
  assert asked("cpu", deterministic=True) == asked("cpu", deterministic=False)


def test_images_are_read_pixel_by_pixel_but_on_gpus():
  for platform, slow in {"cpu": False, "tpu": False, "cuda": True, "gpu": True}.items():
    mesh = SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]))
    assert few_channels_are_slow(mesh) == slow


def test_gradients_are_put_in_order_for_gpus_alone_and_stay_what_they_are():
  gradients = {"kernel": jnp.arange(24.0).reshape(2, 1, 3, 4), "bias": jnp.arange(4.0)}
  gradients["stem"] = jnp.zeros((2, 1, 3, 4))
  labels = {"kernel": "trained", "bias": "trained", "stem": "frozen"}

  def program(platform):
    mesh = SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]))
    return jax.make_jaxpr(lambda tree: kernel_gradients_in_order(tree, labels, mesh))(gradients)

  assert not program("cpu").eqns
  assert not program("tpu").eqns
  on_gpu = program("cuda")
  assert [e.primitive.name for e in on_gpu.eqns] == ["reshape", "optimization_barrier", "reshape"]
  bias, kernel, _ = jax.core.eval_jaxpr(on_gpu.jaxpr, on_gpu.consts, *jax.tree.leaves(gradients))
  np.testing.assert_array_equal(kernel, gradients["kernel"])
  np.testing.assert_array_equal(bias, gradients["bias"])


def test_convolutions_are_not_left_to_ynnpack_on_a_cpu():
  x, kernel = jnp.ones((64, 16, 16, 32)), jnp.ones((3, 3, 32, 32))

  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  def program(options) -> str:
    return jax.jit(convolve, compiler_options=options).lower(x, kernel).compile().as_text()

  options = compiler_options(mesh_of(1))
  assert "ynn_fusion" not in program(options)
  # If this fails, XLA leaves them to it no more by default, and the option can go.
  assert "ynn_fusion" in program(None)


def test_gradients_of_convolutions_want_to_be_outside_of_loops_on_a_cpu():
  x, kernel = jnp.ones((2, 8, 16, 16, 32)), jnp.ones((3, 3, 32, 32))

  def loss(kernel, x):
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
    return jnp.sum(y**2)

  def in_the_form_of_the_library(*, unroll: bool) -> set[bool]:
    def add(total, part):
      return total + jax.grad(loss)(kernel, part), None

    gradient = jax.jit(
      lambda x: jax.lax.scan(add, jnp.zeros_like(kernel), x, unroll=unroll)[0],
      compiler_options=compiler_options(mesh_of(1)),
    )
    program = gradient.lower(x).compile().as_text()
    return {labels == "b01f_01io->b01f" for labels in re.findall(r"dim_labels=(.*?),", program)}

  assert loops_are_slow(mesh_of(1))
  assert in_the_form_of_the_library(unroll=True) == {True}
  # If this fails, XLA brings them into this form in loops too, and `loops_are_slow` can go.
  assert in_the_form_of_the_library(unroll=False) == {True, False}


def test_quick_compilation_is_asked_of_cpus_alone_and_known_to_them():
  mesh = SimpleNamespace(devices=np.array([SimpleNamespace(platform="gpu")]))
  assert quick_compilation(mesh) == {}
  options = quick_compilation(mesh_of(1))
  assert options
  jax.jit(jax.random.normal, compiler_options=options).lower(jax.random.key(0)).compile()
  with pytest.raises(jax.errors.JaxRuntimeError):  # as it would be for one that is not
    jax.jit(lambda: 0, compiler_options={"xla_not_known": 0}).lower().compile()


def test_first_parameters_are_drawn_by_a_kernel_on_gpus_alone():
  """By what JAX would give the compiler for a GPU; afterwards all is as before."""

  def program(platform: str) -> str:
    mesh = SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]))
    with quick_random_bits(mesh):
      traced = jax.jit(jax.random.normal).trace(jax.random.key(0))
      return traced.lower(lowering_platforms=("cuda",)).as_text()

  assert "threefry2x32_ffi" in program("gpu")
  assert "threefry2x32_ffi" not in program("cpu")
  assert not jax.config.jax_threefry_gpu_kernel_lowering


@pytest.fixture
def another_jaxlib(monkeypatch):
  compiler._cpu_options_are_known.cache_clear()
  monkeypatch.setattr(compiler, "_CPU", {"xla_cpu_not_known_there": "1"})
  yield
  compiler._cpu_options_are_known.cache_clear()


def test_a_jaxlib_without_the_option_is_not_told(another_jaxlib):
  assert compiler_options(mesh_of(1)) == {}
