import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from saol_jax.backbones.densenet import DenseNet
from tests.backbones.counts import counted
from tests.backbones.numerics import (
  assert_maps_agree,
  assert_trains,
  build,
  forward,
  images,
  leaves,
  numpy_average_pool,
  numpy_conv,
  numpy_max_pool,
  numpy_norm,
  relu,
)

DEPTHS = (2, 1)


def tiny(**options):
  return DenseNet(DEPTHS, 3, rngs=nnx.Rngs(0), **options)


def numpy_densenet(x, state, *, imagenet_stem):
  """torchvision's DenseNet, or the authors' for CIFAR, from the parameters alone."""
  x = numpy_conv(x, state["stem/kernel"], 2 if imagenet_stem else 1)
  if imagenet_stem:
    x = numpy_max_pool(relu(numpy_norm(x, state, "norm")))
  maps = []
  for stage, depth in enumerate(DEPTHS):
    if stage:
      path = f"transitions/{stage - 1}"
      x = numpy_conv(relu(numpy_norm(x, state, f"{path}/norm")), state[f"{path}/conv/kernel"], 1)
      x = numpy_average_pool(x, partial=False)
    for layer in range(depth):
      path = f"stages/{stage}/{layer}"
      y = numpy_conv(relu(numpy_norm(x, state, f"{path}/norm1")), state[f"{path}/conv1/kernel"], 1)
      y = numpy_conv(relu(numpy_norm(y, state, f"{path}/norm2")), state[f"{path}/conv2/kernel"], 1)
      x = np.concatenate([x, y], -1)
    maps.append(x)
  maps[-1] = relu(numpy_norm(x, state, "final_norm"))
  return maps


@pytest.mark.parametrize("imagenet_stem", [False, True])
def test_densenet_equals_numpy(imagenet_stem):
  model = build(lambda: tiny(imagenet_stem=imagenet_stem))
  x = images(height=26, width=17)
  expected = numpy_densenet(x, leaves(model), imagenet_stem=imagenet_stem)
  assert_maps_agree(forward(model, jnp.asarray(x), train=False), expected)
  assert [y.shape[-1] for y in expected] == [12, 9]  # 2 * 3 + 2 * 3; half of them + 3


def test_training():
  assert_trains(functools.partial(tiny, imagenet_stem=True, dropout=0.1))


def test_cifar_count_by_arithmetic():
  growth = 12
  channels = 2 * growth
  total = 27 * channels
  for stage in range(3):
    if stage:
      total += 2 * channels + channels * (channels // 2)
      channels //= 2
    for _ in range((100 - 4) // 6):
      inner = 4 * growth
      total += 2 * channels + channels * inner + 2 * inner + 9 * inner * growth
      channels += growth
  assert counted("densenet_bc_100_12", channels) == total + 2 * channels
