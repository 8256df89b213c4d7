"""The kernel's gradient as matrix products, against the one that JAX derives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from saol_jax import convolution

NHWC = ("NHWC", "HWIO", "NHWC")
CASES = {  # batch, height, width, channels, features, kernel, strides, padding
  "3 x 3": (6, 9, 7, 5, 4, (3, 3), (1, 1), ((1, 1), (1, 1))),
  "stride 2, even": (4, 8, 8, 3, 2, (3, 3), (2, 2), ((1, 1), (1, 1))),
  "stride 2, odd, far side": (3, 9, 8, 3, 2, (3, 3), (2, 2), ((1, 1), (0, 1))),
  "1 x 1, stride 2": (4, 8, 9, 3, 5, (1, 1), (2, 2), ((0, 0), (0, 0))),
  "7 x 7, no padding": (2, 12, 11, 2, 3, (7, 7), (2, 2), ((0, 0), (0, 0))),
  "kernel of two sizes": (2, 6, 8, 2, 3, (1, 3), (1, 2), ((0, 0), (1, 1))),
}


def arrays(case, seed=0):
  batch, height, width, channels, features, size, strides, padding = CASES[case]
  rng = np.random.default_rng(seed)
  x = jnp.array(rng.normal(size=(batch, height, width, channels)), jnp.float32)
  kernel = jnp.array(rng.normal(size=(*size, channels, features)), jnp.float32)
  plain = lambda x, k: lax.conv_general_dilated(x, k, strides, padding, dimension_numbers=NHWC)  # noqa: E731
  gradient = jnp.array(rng.normal(size=plain(x, kernel).shape), jnp.float32)
  return x, kernel, gradient, plain, strides, padding


@pytest.fixture(autouse=True)
def _small_maps_too(monkeypatch):
  monkeypatch.setattr(convolution, "_LEAST_BYTES", 0)


@pytest.mark.parametrize("patch_bytes", [1, 3000, 1 << 20])  # an image at once, some, all
@pytest.mark.parametrize("case", list(CASES))
def test_kernel_gradient_is_the_derived_one(monkeypatch, case, patch_bytes):
  monkeypatch.setattr(convolution, "_PATCH_BYTES", patch_bytes)
  x, kernel, gradient, plain, strides, padding = arrays(case)
  expected = jax.vjp(plain, x, kernel)[1](gradient)[1]
  found = convolution.kernel_gradient(x, gradient, kernel.shape[:2], strides, padding)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", list(CASES))
def test_on_one_device_values_and_both_gradients_are_those_of_lax(monkeypatch, case):
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  calls, real = [], convolution.kernel_gradient
  monkeypatch.setattr(convolution, "kernel_gradient", lambda *args: calls.append(0) or real(*args))
  x, kernel, gradient, plain, strides, padding = arrays(case)
  value, pull = jax.vjp(
    lambda x, k: convolution.convolve(x, k, strides, padding, dimension_numbers=NHWC), x, kernel
  )
  expected, expected_pull = jax.vjp(plain, x, kernel)
  np.testing.assert_array_equal(value, expected)
  for own, other in zip(pull(gradient), expected_pull(gradient), strict=True):
    np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-4)
  assert calls


def test_same_padding_is_understood(monkeypatch):
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  x, kernel, *_ = arrays("stride 2, even")
  found = convolution.convolve(x, kernel, (2, 2), "SAME", dimension_numbers=NHWC)
  expected = lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=NHWC)
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
  "reason", ["several devices", "small map", "bfloat16", "groups", "dilation"]
)
def test_everything_else_is_left_to_lax(monkeypatch, reason):
  if reason != "several devices":
    monkeypatch.setattr(jax, "device_count", lambda: 1)
  x, kernel, *_ = arrays("3 x 3")
  monkeypatch.setattr(convolution, "kernel_gradient", None)  # would fail if called
  options = {"dimension_numbers": NHWC}
  if reason == "small map":
    monkeypatch.setattr(convolution, "_LEAST_BYTES", 4 * x.size + 4)
  elif reason == "bfloat16":
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
  elif reason == "groups":
    kernel, options["feature_group_count"] = kernel[:, :, :1].repeat(5, 3), 5
  elif reason == "dilation":
    options["rhs_dilation"] = (2, 2)
  value, pull = jax.vjp(lambda k: convolution.convolve(x, k, (1, 1), "SAME", **options), kernel)
  assert pull(value)[0].shape == kernel.shape
