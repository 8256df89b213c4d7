import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from saol_jax import create_model
from saol_jax.backbones.resnet import ConvPlan, ResidualBlock
from saol_jax.fuse import count_norms, fuse_norms
from saol_jax.norm import GhostBatchNorm
from tests.backbones.numerics import build


class Post(nnx.Module):
  """Two blocks, the first with a projection, and a norm on images that no convolution feeds."""

  stage_channels, stage_strides = (4, 8), (2, 2)

  def __init__(self, rngs):
    self.first = GhostBatchNorm(3)
    self.down = ResidualBlock(3, (ConvPlan(3, 2, 4), ConvPlan(3, 1, 4)), rngs=rngs)
    self.wide = ResidualBlock(4, (ConvPlan(1, 1, 8), ConvPlan(3, 1, 8)), rngs=rngs)

  def __call__(self, images, *, train):
    fine = self.down(self.first(images, train=train), train=train)
    return fine, self.wide(fine, train=train)


class ReadTwice(nnx.Module):
  """The convolution's own result is a stage map too, so that its norm must stay."""

  stage_channels, stage_strides = (4, 4), (1, 1)

  def __init__(self, rngs):
    self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
    self.norm = GhostBatchNorm(4)

  def __call__(self, images, *, train):
    x = self.conv(images)
    return x, self.norm(x, train=train)


class Biased(nnx.Module):
  """A convolution with a bias before its norm, and a norm after a sum, which must stay."""

  stage_channels, stage_strides = (4, 4), (1, 1)

  def __init__(self, rngs):
    self.first = nnx.Conv(3, 4, (3, 3), rngs=rngs)
    self.norm = GhostBatchNorm(4)
    self.second = nnx.Conv(4, 4, (3, 3), use_bias=False, rngs=rngs)
    self.last = GhostBatchNorm(4)

  def __call__(self, images, *, train):
    x = self.norm(self.first(images), train=train)
    return x, self.last(self.second(x) + x, train=train)


class Flaxs(nnx.Module):
  """A norm of Flax, which must stay."""

  stage_channels, stage_strides = (4, 4), (1, 1)

  def __init__(self, rngs):
    self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
    self.norm = nnx.BatchNorm(4, rngs=rngs)

  def __call__(self, images, *, train):
    x = self.norm(self.conv(images), use_running_average=not train)
    return x, nnx.relu(x)


class Shared(nnx.Module):
  """A norm after two convolutions, two norms after one, and convolutions that others read too."""

  stage_channels, stage_strides = (4, 4), (1, 1)

  def __init__(self, rngs):
    make = lambda channels: nnx.Conv(channels, 4, (3, 3), rngs=rngs)  # noqa: E731
    self.first, self.second, self.third, self.fourth = make(3), make(4), make(4), make(4)
    self.fifth = make(4)
    self.norms = nnx.List([GhostBatchNorm(4) for _ in range(5)])

  def __call__(self, images, *, train):
    one, two, three, four, five = self.norms
    x = one(self.first(images), train=train)
    x = one(self.second(x), train=train)
    x = two(self.third(x), train=train) + three(self.third(nnx.relu(x)), train=train)
    again = jax.checkpoint(lambda kernel, x: x * kernel[...].sum())(self.fifth.kernel[...], x)
    x = again + five(self.fifth(x), train=train)
    return x, self.fourth(nnx.relu(x)) + four(self.fourth(x), train=train)


def classifier(backbone, *, mask_branch=False):
  def make():
    rngs = nnx.Rngs(0)
    return create_model(backbone(rngs), 5, width=4, mask_branch=mask_branch, rngs=rngs)

  return make


@nnx.jit
def forward(model, images):
  output = model(images, train=False)
  return output.gap_logits, output.spatial.log_probs, output.spatial.attention


@pytest.mark.parametrize(
  ("backbone", "before", "after"),
  # Of Post: the images' norm stays. Of SAOL: the norm after the concatenation stays, and that of
  # the attention branch goes.
  [
    (Post, 7 + 2, 1 + 1),
    (ReadTwice, 1 + 2, 1 + 1),
    (Biased, 2 + 2, 1 + 1),
    (Flaxs, 0 + 2, 0 + 1),
    (Shared, 5 + 2, 5 + 1),
  ],
)
def test_folded_model_is_the_same_function(backbone, before, after):
  model = build(classifier(backbone))
  images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 6, 3)), jnp.float32)
  expected = forward(model, images)
  assert count_norms(model) == before
  assert fuse_norms(model, (8, 8)) is model
  assert count_norms(model) == after
  for value, wanted in zip(forward(model, images), expected, strict=True):
    np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-5)


def test_a_convolution_is_not_folded_where_its_result_is_one_of_the_models():
  model = fuse_norms(build(lambda: ReadTwice(nnx.Rngs(0))), (8, 8))
  assert count_norms(model) == 1


def test_structure_can_be_made_without_values():
  abstract = nnx.eval_shape(lambda: fuse_norms(classifier(Post)(), (8, 8)))
  whole = fuse_norms(build(classifier(Post)), (8, 8))
  assert jax.tree.map(jnp.shape, nnx.state(abstract)) == jax.tree.map(jnp.shape, nnx.state(whole))


def test_folded_model_refuses_to_train():
  model = fuse_norms(build(classifier(Post)), (8, 8))
  with pytest.raises(ValueError, match="cannot be trained"):
    model(jnp.zeros((2, 8, 8, 3)), train=True)
