import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from saol_jax.backbones.cifar_resnet import CifarResNet
from saol_jax.backbones.resnet import basic_plan, bottleneck_plan
from tests.backbones.counts import counted
from tests.backbones.numerics import (
  abstract,
  assert_maps_agree,
  assert_trains,
  build,
  forward,
  images,
  leaves,
  numpy_conv,
  numpy_norm,
  relu,
)

# ResNet with option A, ResNeXt with option B, both with two blocks a stage.
NETWORKS = {
  "resnet": lambda **options: CifarResNet(
    4, [basic_plan(c) for c in (4, 8)], (1, 2), depth=2, project=False, rngs=nnx.Rngs(0), **options
  ),
  "resnext": lambda **options: CifarResNet(
    4, [bottleneck_plan(c, 8, 4) for c in (4, 12)], (1, 2), depth=2, rngs=nnx.Rngs(0), **options
  ),
}


def numpy_network(x, state, *, grouped):
  """He et al. 2016, section 4.2, or Xie et al. 2017, figure 3c, from the parameters alone."""
  x = relu(numpy_norm(numpy_conv(x, state["stem/kernel"], 1), state, "norm"))
  maps = []
  for stage in range(2):
    for block in range(2):
      path = f"stages/{stage}/{block}"
      stride = 2 if stage == 1 and block == 0 else 1
      y = x
      for i in range(3 if grouped else 2):
        strided = i == (1 if grouped else 0)
        y = numpy_conv(
          y,
          state[f"{path}/convs/{i}/kernel"],
          stride if strided else 1,
        )
        y = numpy_norm(y, state, f"{path}/norms/{i}")
        y = relu(y) if i < (2 if grouped else 1) else y
      if stride == 2 and grouped:
        x = numpy_conv(x, state[f"{path}/shortcut_conv/kernel"], 2)
        x = numpy_norm(x, state, f"{path}/shortcut_norm")
      elif stride == 2:
        shortcut = np.zeros_like(y)
        shortcut[..., : x.shape[-1]] = x[:, ::2, ::2]
        x = shortcut
      x = relu(x + y)
    maps.append(x)
  return maps


@pytest.mark.parametrize("name", NETWORKS)
def test_network_equals_numpy(name):
  model = build(NETWORKS[name])
  x = images(height=11, width=8)
  expected = numpy_network(x, leaves(model), grouped=name == "resnext")
  assert_maps_agree(forward(model, jnp.asarray(x), train=False), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_training(name):
  assert_trains(NETWORKS[name])


@pytest.mark.parametrize("depth", [20, 56, 110])
def test_resnet_counts_by_arithmetic(depth):
  total, channels = 27 * 16 + 2 * 16, 16
  for width in (16, 32, 64):
    for _ in range((depth - 2) // 6):
      total += 9 * channels * width + 9 * width * width + 4 * width
      channels = width
  assert counted(f"resnet{depth}", channels) == total


def test_resnext_count_by_arithmetic():
  total, channels = 27 * 64 + 2 * 64, 64
  for width in (256, 512, 1024):
    inner = 2 * width
    total += channels * width + 2 * width  # the projection of the first block
    for _ in range(3):
      total += channels * inner + 9 * inner * inner // 8 + inner * width + 4 * inner + 2 * width
      channels = width
  assert counted("resnext29_8x64d", channels) == total


def test_torchvision_bottlenecks_are_grouped_and_wider():
  def inner(name):
    return [abstract(name).stages[i][0].convs[1].kernel.shape for i in range(4)]

  assert inner("resnext50_32x4d") == [(3, 3, 4 * 2**i, 128 * 2**i) for i in range(4)]
  assert inner("wide_resnet50_2") == [(3, 3, 128 * 2**i, 128 * 2**i) for i in range(4)]
