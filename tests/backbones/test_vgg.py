import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from saol_jax.backbones.vgg import VGG
from tests.backbones.numerics import (
  assert_maps_agree,
  assert_trains,
  build,
  forward,
  images,
  leaves,
  numpy_conv,
  relu,
)

WIDTHS = ((2, 3), (4,), (5, 6))


def numpy_vgg(x, state, last_stride):
  """Convolutions with bias and ReLU, MaxPool2d(2, 2) before a stage, from the parameters alone."""
  maps = []
  for stage, widths in enumerate(WIDTHS):
    if stage == 1 or (stage == 2 and last_stride == 2):
      b, h, w, c = x.shape
      x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))
    for i in range(len(widths)):
      path = f"stages/{stage}/{i}"
      x = relu(numpy_conv(x, state[f"{path}/kernel"], 1) + state[f"{path}/bias"])
    maps.append(x)
  return maps


@pytest.mark.parametrize("last_stride", [1, 2])
def test_vgg_equals_numpy(last_stride):
  model = build(lambda: VGG(WIDTHS, last_stride=last_stride, rngs=nnx.Rngs(0)))
  x = images(height=11, width=9)
  expected = numpy_vgg(x, leaves(model), last_stride)
  maps = forward(model, jnp.asarray(x), train=False)
  assert_maps_agree(maps, expected)
  assert all(np.abs(y).max() > 0 for y in maps)


def test_training():
  assert_trains(lambda **options: VGG(WIDTHS, rngs=nnx.Rngs(0), **options))
