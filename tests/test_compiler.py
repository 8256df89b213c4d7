"""What XLA is told, and that it does it."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saol_jax import compiler
from saol_jax.compiler import compiler_options
from tests.support import mesh_of


def asked(platform: str, *, deterministic: bool) -> dict[str, bool | str]:
  mesh = SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]))
  return compiler_options(mesh, deterministic=deterministic)


def test_deterministic_mode_is_asked_of_gpus_alone():
  """On CPUs and TPUs the flag is not known or not needed."""
  assert asked("gpu", deterministic=True) == {"xla_gpu_deterministic_ops": True}
  assert asked("gpu", deterministic=False) == asked("tpu", deterministic=True) == {}
  assert asked("cpu", deterministic=True) == asked("cpu", deterministic=False)


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


@pytest.fixture
def another_jaxlib(monkeypatch):
  compiler._cpu_options_are_known.cache_clear()
  monkeypatch.setattr(compiler, "_CPU", {"xla_cpu_not_known_there": "1"})
  yield
  compiler._cpu_options_are_known.cache_clear()


def test_a_jaxlib_without_the_option_is_not_told(another_jaxlib):
  assert compiler_options(mesh_of(1)) == {}
