import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from saol_jax import create_model
from saol_jax.backbones.stem import Stem, read_in_blocks
from saol_jax.fuse import fuse_norms
from tests.backbones.numerics import images


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 30), (7, 10)])
def test_in_blocks_a_stem_and_its_gradient_are_the_same(height, width):
  stem = Stem(8, rngs=nnx.Rngs(0))
  x = jnp.asarray(images(height=height, width=width))

  def outputs(kernel, in_blocks):
    graph, state = nnx.split(stem)
    layer = nnx.merge(graph, state, copy=True)
    layer.kernel[...], layer.in_blocks = kernel, in_blocks
    y = layer(x)
    return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), y

  (_, expected), expected_gradient = jax.value_and_grad(outputs, has_aux=True)(
    stem.kernel[...], False
  )
  (_, found), gradient = jax.value_and_grad(outputs, has_aux=True)(stem.kernel[...], True)
  assert found.shape == (len(x), -(-height // 2), -(-width // 2), 8)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-4)


def test_a_network_reads_in_blocks_where_it_is_told_to():
  def program(model):
    graph, state = nnx.split(model)
    forward = jax.make_jaxpr(lambda state, x: nnx.merge(graph, state)(x, train=False))
    return str(forward(state, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)))

  model = nnx.eval_shape(lambda: create_model("resnet18", 4, head="gap", rngs=nnx.Rngs(0)))
  assert "f32[4,4,16,64]" not in program(model)
  assert read_in_blocks(model) is model
  assert "f32[4,4,16,64]" in program(model)


def test_a_stem_in_blocks_takes_over_its_norm():
  """A fused stem has a bias, and reads pixel by pixel."""
  model = create_model("resnet18", 4, head="gap", rngs=nnx.Rngs(0))
  x = jnp.asarray(images(height=32, width=32))
  expected = model(x, train=False).gap_logits
  fused = read_in_blocks(fuse_norms(model, (32, 32)))
  assert fused.backbone.stem.bias is not None
  np.testing.assert_allclose(fused(x, train=False).gap_logits, expected, rtol=1e-4, atol=1e-5)
