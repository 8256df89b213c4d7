import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from saol_jax import create_model
from saol_jax.errors import UserError
from saol_jax.model import FunctionalModel
from saol_jax.norm import GhostBatchNorm


class Backbone(nnx.Module):
  """A backbone of the user's own: two maps, with statistics and dropout."""

  stage_channels = (4, 6)
  stage_strides = (1, 2)

  def __init__(self, rngs):
    self.first = nnx.Conv(3, 4, (3, 3), rngs=rngs)
    self.norm = GhostBatchNorm(4)
    self.dropout = nnx.Dropout(0.5, rngs=nnx.RngStream(rngs.dropout(), tag="dropout"))
    self.second = nnx.Conv(4, 6, (2, 2), strides=2, rngs=rngs)

  def __call__(self, images, *, train):
    first = nnx.relu(self.norm(self.first(images), train=train))
    return first, self.second(self.dropout(first, deterministic=not train))


def create(rngs, head="saol", **options):
  return create_model(Backbone(rngs), 5, head=head, width=4, rngs=rngs, **options)


@pytest.fixture(scope="module")
def images():
  return jnp.float32(np.random.default_rng(0).normal(size=(4, 8, 6, 3)))


@pytest.fixture(scope="module")
def functional():
  return FunctionalModel(create)


def random_variables(functional, scale):
  """Made here and not by `init`, which takes JAX seconds to compile; variances are positive."""
  shapes = jax.eval_shape(functional.init, jax.random.key(0))
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    low = 0.5 if path[-1].key in ("var", "scale") else -1
    return jnp.asarray(rng.uniform(low, 1, leaf.shape) * scale, leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def variables(functional):
  return random_variables(functional, 1)


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def apply(functional, variables, images, key, *, train):
  return functional.apply(variables, images, train=train, key=key)


@nnx.jit(static_argnames="train")
def call(model, images, *, train):
  return model(images, train=train)


def built(variables):
  """A module with the given variables, made without FunctionalModel."""
  model = nnx.eval_shape(lambda: create(nnx.Rngs(0)))
  nnx.update(model, variables.params, variables.batch_stats)
  nnx.reseed(model, dropout=7)
  return model


def test_evaluation_equals_calling_the_module_and_plain_numpy(functional, variables, images):
  output, stats = apply(functional, variables, images, None, train=False)
  model = built(variables)
  expected = call(model, images, train=False)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), output, expected)
  jax.tree.map(np.testing.assert_array_equal, stats, variables.batch_stats)

  assert output.spatial.attention.shape == (4, 4, 3)
  assert output.spatial.spatial_log_probs.shape == (4, 4, 3, 5)
  assert output.spatial.mask_logits is None
  # GAP-FC reads the last of the maps.
  last = np.float64(model.backbone(images, train=False)[-1])
  gap = jax.tree.map(np.float64, variables.params["gap"]["linear"])
  np.testing.assert_allclose(
    output.gap_logits, last.mean((1, 2)) @ gap["kernel"] + gap["bias"], atol=1e-5
  )


def test_training_equals_calling_the_module_with_the_same_key(functional, variables, images):
  key = jax.random.key(7)  # as in `built`
  before = jax.tree.map(np.array, variables)
  output, stats = apply(functional, variables, images, key, train=True)
  model = built(variables)
  expected = call(model, images, train=True)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), output, expected)
  model_stats = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), stats, model_stats)
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), stats, before.batch_stats)
  assert all(jax.tree.leaves(moved)), moved
  # A pure function: what went in is as it was.
  jax.tree.map(np.testing.assert_array_equal, variables, before)


def test_the_key_alone_decides_what_is_dropped(functional, variables, images):
  def logits(seed):
    return np.asarray(
      apply(functional, variables, images, jax.random.key(seed), train=True)[0].gap_logits
    )

  np.testing.assert_array_equal(logits(1), logits(1))
  assert not np.array_equal(logits(1), logits(2))


def test_dropout_of_a_wide_resnet_follows_the_key():
  functional = FunctionalModel(
    lambda rngs: create_model("wrn_16_4", 3, head="gap", dropout=0.3, rngs=rngs)
  )
  variables = random_variables(functional, 0.1)
  images = jnp.float32(np.random.default_rng(0).normal(size=(2, 8, 8, 3)))
  logits = [
    np.asarray(apply(functional, variables, images, jax.random.key(seed), train=True)[0].gap_logits)
    for seed in (1, 1, 2)
  ]
  np.testing.assert_array_equal(logits[0], logits[1])
  assert abs(logits[0] - logits[2]).max() > 0.01 * abs(logits[0]).max()
  # Nothing is drawn in evaluation.
  for train in (True, False):
    apply_it = functools.partial(functional.apply, train=train, key=jax.random.key(1))
    assert ("random_bits" in str(jax.make_jaxpr(apply_it)(variables, images))) == train
  with pytest.raises(ValueError, match="needs a key"):
    functional.apply(variables, images, train=True)


def test_init_depends_on_the_key_and_parameters_are_float32():
  init = jax.jit(FunctionalModel(functools.partial(create, head="gap")).init)
  variables, again, other = (init(jax.random.key(seed)) for seed in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, again, variables)
  kernels = [
    np.asarray(kernel)
    for v in (variables, other)
    for kernel in (v.params["backbone"]["first"]["kernel"], v.params["gap"]["linear"]["kernel"])
  ]
  assert all(kernel.std() > 0 for kernel in kernels)
  assert not np.array_equal(kernels[0], kernels[2])
  assert not np.array_equal(kernels[1], kernels[3])
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_the_baseline_is_the_same_network_without_saol(variables, functional, images):
  baseline = FunctionalModel(functools.partial(create, head="gap"))
  shapes = jax.eval_shape(baseline.init, jax.random.key(0))
  assert shapes.params.keys() == variables.params.keys() - {"saol"}
  assert not any("saol" in name for name in shapes.batch_stats)
  rest = type(variables)(
    {name: variables.params[name] for name in shapes.params},
    {name: variables.batch_stats[name] for name in shapes.batch_stats},
  )
  output, _ = apply(baseline, rest, images, None, train=False)
  assert output.spatial is None
  expected, _ = apply(functional, variables, images, None, train=False)
  np.testing.assert_allclose(output.gap_logits, expected.gap_logits, atol=1e-6)


def test_options_reach_the_backbone_and_the_heads():
  def shapes(**options):
    return nnx.eval_shape(lambda: create_model("resnet8", 7, rngs=nnx.Rngs(0), **options))

  model = shapes(width=12, kernel_size=5, lateral_kernel_size=3, norm_group=4, last_stride=2)
  assert model.saol.classify.kernel.shape == (5, 5, 36, 7)
  assert model.saol.attention.hidden.kernel.shape == (5, 5, 64, 12)
  assert model.saol.laterals[0].kernel.shape == (3, 3, 32, 12)
  norms = [m for _, m in nnx.iter_modules(model) if isinstance(m, GhostBatchNorm)]
  assert {norm.group for norm in norms} == {4}
  assert model.backbone.stage_strides == (2, 4, 8)
  assert shapes().saol.mask is not None
  assert shapes(mask_branch=False).saol.mask is None


def test_bfloat16_everywhere_gives_float32_results():
  model = nnx.eval_shape(lambda: create_model("resnet8", 7, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
  assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {
    jnp.dtype("float32")
  }
  x = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
  stages = nnx.eval_shape(lambda m, x: m.backbone(x, train=True), model, x)
  assert {stage.dtype for stage in stages} == {jnp.dtype(jnp.bfloat16)}
  output = nnx.eval_shape(lambda m, x: m(x, train=True), model, x)
  assert {leaf.dtype for leaf in jax.tree.leaves(output)} == {jnp.dtype(jnp.float32)}
  assert output.spatial.mask_logits.shape == (2, 4, 4)


def test_mistakes_are_named():
  rngs = nnx.Rngs(0)
  with pytest.raises(UserError, match=r"model.head='fc' is unknown; expected one of saol, gap"):
    create_model("resnet8", 5, head="fc", rngs=rngs)
  with pytest.raises(UserError, match=r"'wrn_28_1' is unknown.*wrn_28_10"):
    create_model("wrn_28_1", 5, rngs=rngs)
  with pytest.raises(UserError, match=r"'resnet18' has no dropout"):
    create_model("resnet18", 5, dropout=0.3, rngs=rngs)
  backbone = nnx.eval_shape(lambda: Backbone(nnx.Rngs(0)))
  for options in ({"dropout": 0.3}, {"last_stride": 1}):
    with pytest.raises(UserError, match="would do nothing to a backbone of your own"):
      create_model(backbone, 5, rngs=rngs, **options)
