import jax.numpy as jnp
import numpy as np
from flax import nnx

from saol_jax.backbones.nasnet import NASNet
from tests.backbones.numerics import (
  SameKey,
  assert_maps_agree,
  assert_trains,
  build,
  forward,
  images,
  leaves,
  map_shapes,
  numpy_conv,
  numpy_norm,
  relu,
)


class Reference:
  """slim's NASNet-A, one normal cell a stage, from the parameters alone."""

  def __init__(self, state):
    self.state = state

  def conv(self, x, path, stride=1):
    return numpy_conv(x, self.state[f"{path}/kernel"], stride, tensorflow=True)

  def norm(self, x, path):
    return numpy_norm(x, self.state, path, epsilon=1e-3)

  def separable(self, x, path, stride=1):
    for i, s in enumerate((stride, 1)):
      x = self.conv(self.conv(relu(x), f"{path}/depthwise/{i}", s), f"{path}/pointwise/{i}")
      x = self.norm(x, f"{path}/norms/{i}")
    return x

  def squeeze(self, x, path):
    return self.norm(self.conv(relu(x), f"{path}/conv"), f"{path}/norm")

  def reduce(self, x, path):
    b, h, w, c = x.shape
    y = np.zeros((2, b, -(-h // 2), -(-w // 2), c))
    y[0] = relu(x[:, ::2, ::2])
    y[1, :, : h // 2, : w // 2] = relu(x[:, 1::2, 1::2])
    y = [self.conv(y[k], f"{path}/conv{k + 1}") for k in (0, 1)]
    return self.norm(np.concatenate(y, -1), f"{path}/norm")

  def pool(self, x, stride, kind):
    """3x3, TensorFlow's 'SAME': where a side is even, stride 2 starts at the second cell."""
    b, h, w, c = x.shape
    y = np.empty((b, -(-h // stride), -(-w // stride), c))
    for i, j in np.ndindex(*y.shape[1:3]):
      row, column = (stride * k + (stride == 2 and n % 2 == 0) for k, n in ((i, h), (j, w)))
      window = x[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
      y[:, i, j] = getattr(window, kind)((1, 2))
    return y

  def reduction(self, x, before, path, adjust):
    x, before = self.squeeze(x, f"{path}/x"), adjust(before)
    zero = self.separable(x, f"{path}/branches/0", 2)
    zero = zero + self.separable(before, f"{path}/branches/1", 2)
    one = self.pool(x, 2, "max") + self.separable(before, f"{path}/branches/2", 2)
    two = self.pool(x, 2, "mean") + self.separable(before, f"{path}/branches/3", 2)
    three = self.pool(zero, 1, "mean") + one
    four = self.separable(zero, f"{path}/branches/4") + self.pool(x, 2, "max")
    return np.concatenate([one, two, three, four], -1)

  def normal(self, x, before, path):
    x, before = self.squeeze(x, f"{path}/x"), self.reduce(before, f"{path}/before")
    zero = self.separable(x, f"{path}/branches/0") + self.separable(before, f"{path}/branches/1")
    one = self.separable(before, f"{path}/branches/2")
    one = one + self.separable(before, f"{path}/branches/3")
    two = self.pool(x, 1, "mean") + before
    three = self.pool(before, 1, "mean") + self.pool(before, 1, "mean")
    four = self.separable(x, f"{path}/branches/4") + x
    return np.concatenate([before, zero, one, two, three, four], -1)

  def __call__(self, x):
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (3, 3), (1, 2))
    x = np.einsum("bhwcij,ijco->bhwo", windows[:, ::2, ::2], self.state["stem/kernel"])
    x = self.norm(x, "norm")
    before, x = x, self.reduction(x, x, "stages/0/0", lambda x: x)
    maps = [x]
    for stage in (1, 2, 3):
      path = f"stages/{stage}"

      def adjust(y, path=f"{path}/0/before", first=stage == 1):
        return self.reduce(y, path) if first else self.squeeze(y, path)

      before, x = x, self.reduction(x, before, f"{path}/0", adjust)
      before, x = x, self.normal(x, before, f"{path}/1")
      maps.append(x)
    return [*maps[:-1], relu(x)]


def tiny(**options):
  return NASNet(8, cells=1, stem_channels=4, rngs=SameKey(), **options)


def test_nasnet_equals_numpy():
  model = build(tiny)
  x = images(batch=1, height=64, width=35)  # even and odd sides before reductions
  expected = Reference(leaves(model))(x)
  assert [y.shape[-1] for y in expected] == [8, 48, 96, 192]
  assert_maps_agree(forward(model, jnp.asarray(x), train=False), expected)


def test_last_stride():
  def shapes(model):
    return {path: v.shape for path, v in nnx.to_flat_state(nnx.state(model, nnx.Param))}

  plain, fine = (nnx.eval_shape(lambda s=s: tiny(last_stride=s)) for s in (2, 1))
  assert shapes(plain) == shapes(fine)
  assert (plain.stage_strides, fine.stage_strides) == ((4, 8, 16, 32), (4, 8, 16, 16))
  assert [y.shape[1:3] for y in map_shapes(plain, 75, 97)] == [(19, 24), (10, 12), (5, 6), (3, 3)]
  assert [y.shape[1:3] for y in map_shapes(fine, 75, 97)] == [(19, 24), (10, 12), (5, 6), (5, 6)]


def test_training():
  assert_trains(tiny)
