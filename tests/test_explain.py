"""Score maps against analytic answers and gradients taken another way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from saol_jax import explain
from saol_jax.data.source import DatasetInfo
from saol_jax.distributed import data_mesh
from saol_jax.errors import UserError
from saol_jax.heads import SAOL, GapFC, SpatialOutput
from saol_jax.model import Classifier, FunctionalModel, create_model

CLASSES = 4
LABELS = np.array([3, 0, 1, 2], np.int32)


class Toy(nnx.Module):
  """Three stages, each the ReLU of a convolution of the one before."""

  stage_channels = (4, 5, 6)

  def __init__(self, rngs):
    sizes = zip((3, 4, 5), self.stage_channels, (1, 2, 1), strict=True)
    self.convs = nnx.List(
      [nnx.Conv(old, new, (3, 3), strides=stride, rngs=rngs) for old, new, stride in sizes]
    )

  def __call__(self, images, *, train):
    stages = [images]
    for conv in self.convs:
      stages.append(nnx.relu(conv(stages[-1])))
    return tuple(stages[1:])


def toy_model(head="saol", backbone=Toy):
  def create(rngs):
    gap = GapFC(6, CLASSES, rngs=rngs)
    saol = SAOL(Toy.stage_channels, CLASSES, width=8, rngs=rngs) if head == "saol" else None
    return Classifier(backbone(rngs), gap, saol)

  model = FunctionalModel(create)
  return model, model.init(jax.random.key(1))


def images(size=(8, 10)):
  return jax.random.normal(jax.random.key(2), (4, *size, 3))


def maps_of(model, variables, names, x=None):
  x = images() if x is None else x
  return jax.jit(lambda v, x: explain.score_maps(model, v, x, LABELS, names)[0])(variables, x)


class Identity(nnx.Module):
  """The image is its only stage."""

  stage_channels = (3,)

  def __call__(self, images, *, train):
    return (images,)


def linear_model():
  model = FunctionalModel(lambda rngs: Classifier(Identity(), GapFC(3, CLASSES, rngs=rngs), None))
  return model, model.init(jax.random.key(0))


def test_cam_of_a_linear_network_is_the_analytic_answer():
  model, variables = linear_model()
  kernel = np.asarray(variables.params["gap"]["linear"]["kernel"])
  bias = np.asarray(variables.params["gap"]["linear"]["bias"])
  maps, output = explain.score_maps(model, variables, images(), LABELS, ["cam"])
  x = np.asarray(images())
  expected = sum(x[..., c] * kernel[c, LABELS][:, None, None] for c in range(3))
  np.testing.assert_allclose(maps["cam"], expected, rtol=1e-5, atol=1e-6)
  logits = np.asarray(output.gap_logits)[np.arange(4), LABELS]
  np.testing.assert_allclose(maps["cam"].mean((1, 2)) + bias[LABELS], logits, atol=1e-5)


def test_cam_by_hand():
  stage = jnp.array([[[[1.0, 2.0], [3.0, -1.0]]]])
  kernel = jnp.array([[10.0, 1.0, 0.0], [100.0, -2.0, 5.0]])
  for label, expected in ((0, [210, -70]), (1, [-3, 5]), (2, [10, -5])):
    result = explain.cam(stage, kernel, jnp.array([label]))
    np.testing.assert_array_equal(result, [[expected]])


def test_maps_of_bfloat16_stages_are_computed_in_float32():
  stage = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 2, 3)), jnp.bfloat16)
  kernel = jnp.asarray(np.random.default_rng(1).normal(size=(3, CLASSES)), jnp.float32)
  exact = np.asarray(stage, np.float64)
  found = explain.cam(stage, kernel, jnp.array([1]))
  np.testing.assert_allclose(found, exact @ np.float64(kernel[:, 1]), rtol=1e-5)
  assert found.dtype == jnp.float32
  # Each gradient is 1.
  found = explain.grad_cam(lambda x: x.astype(jnp.float32).sum((1, 2, 3)), stage)
  np.testing.assert_allclose(found, np.maximum(exact.sum(-1), 0), rtol=1e-5)
  assert found.dtype == jnp.float32


def test_grad_cam_on_a_gap_network_is_the_cam_without_its_negative_part():
  model, variables = toy_model("gap")
  maps = maps_of(model, variables, ["cam", "gap_gradcam_3"])
  cells = 4 * 5
  assert (maps["cam"] < 0).any()
  expected = np.maximum(maps["cam"], 0) / cells
  assert expected.max() > 0
  np.testing.assert_allclose(maps["gap_gradcam_3"], expected, atol=1e-6)


def heads_after(module, head, stages):
  output = module.classify(stages, train=False)
  scores = output.gap_logits if head == "gap" else output.spatial.log_probs
  return scores[np.arange(4), LABELS].sum()


@pytest.mark.parametrize("head", ["gap", "saol"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_grad_cam_follows_every_path_from_any_stage(head, stage):
  """SAOL reads a stage directly and through the stages after it; the network run by hand."""
  model, variables = toy_model()
  module = model.merge(variables)
  stages = module.backbone(images(), train=False)

  def score(stage_map):
    later = [*stages[: stage - 1], stage_map]
    for conv in module.backbone.convs[stage:]:
      later.append(nnx.relu(conv(later[-1])))
    return heads_after(module, head, later)

  gradient = np.asarray(jax.jit(jax.grad(score))(stages[stage - 1]))
  x = np.asarray(stages[stage - 1])
  weights = gradient.mean((1, 2))
  expected = np.maximum(np.einsum("bhwc,bc->bhw", x, weights), 0)
  assert expected.max() > 0
  name = f"{head}_gradcam_{stage}"
  np.testing.assert_allclose(maps_of(model, variables, [name])[name], expected, atol=1e-6)


def test_grad_cam_on_a_real_backbone():
  stage = 2
  model = FunctionalModel(lambda rngs: create_model("resnet8", CLASSES, width=8, rngs=rngs))
  variables = jax.jit(model.init)(jax.random.key(0))
  module = model.merge(variables)
  x = images((16, 16))
  stages = nnx.jit(lambda backbone, x: backbone(x, train=False))(module.backbone, x)

  def score(stage_map):
    later = [*stages[: stage - 1], stage_map]
    for blocks in module.backbone.stages[stage:]:
      y = later[-1]
      for block in blocks:
        y = block(y, train=False)
      later.append(y)
    later[-1] = nnx.relu(module.backbone.norm(later[-1], train=False))
    return heads_after(module, "saol", later)

  gradient = jax.jit(jax.grad(score))(stages[stage - 1])
  expected = jnp.einsum("bhwc,bc->bhw", stages[stage - 1], gradient.mean((1, 2)))
  name = f"saol_gradcam_{stage}"
  result = maps_of(model, variables, [name], x)[name]
  np.testing.assert_allclose(result, np.maximum(expected, 0), atol=1e-5)


def test_grad_cam_plus_plus_is_the_papers_formula_with_an_exponential():
  model, variables = toy_model("gap")
  maps = maps_of(model, variables, ["gap_gradcam++_3"])["gap_gradcam++_3"]
  module = model.merge(variables)
  x = np.asarray(module.backbone(images(), train=False)[-1], np.float64)
  kernel = np.asarray(variables.params["gap"]["linear"]["kernel"], np.float64)
  logits = np.asarray(module(images(), train=False).gap_logits, np.float64)
  for b, label in enumerate(LABELS):
    # Y = exp(S), S linear in X: dY = e^S g, d2Y = e^S g^2, d3Y = e^S g^3, the same in every cell.
    factor = np.exp(logits[b, label])
    g = np.broadcast_to(kernel[:, label] / 20, x[b].shape)
    first, second, third = factor * g, factor * g**2, factor * g**3
    alpha = second / (2 * second + x[b].sum((0, 1)) * third)
    weights = (alpha * np.maximum(first, 0)).sum((0, 1))
    expected = np.maximum((x[b] * weights).sum(-1), 0)
    np.testing.assert_allclose(maps[b] * factor, expected, rtol=1e-4)


def test_grad_cam_plus_plus_of_no_gradient_is_zero():
  stage = jnp.ones((2, 3, 3, 4))
  result = explain.grad_cam_plus_plus(lambda x: 0 * x.sum((1, 2, 3)), stage)
  np.testing.assert_array_equal(result, 0)


def test_grad_cam_plus_plus_is_zero_where_its_denominator_is():
  """2 g^2 + g^3 sum X of a gradient of 1 and a sum of -2."""
  stage = jnp.array([3.0, -5.0]).reshape(1, 1, 2, 1)
  result = explain.grad_cam_plus_plus(lambda x: x.sum((1, 2, 3)), stage)
  np.testing.assert_array_equal(result, 0)


def scaled(x):
  """One map to [0, 1]."""
  x = np.asarray(x)
  return (x - x.min()) / (x.max() - x.min())


def spatial_output():
  rng = np.random.default_rng(0)
  attention = rng.dirichlet(np.full(12, 0.3), 4).reshape(4, 3, 4)
  cells = rng.dirichlet(np.ones(CLASSES), (4, 3, 4))
  return SpatialOutput(
    log_probs=jnp.zeros((4, CLASSES)),
    attention=jnp.asarray(attention, jnp.float32),
    spatial_log_probs=jnp.asarray(np.log(cells), jnp.float32),
    mask_logits=None,
  )


STAGE = np.random.default_rng(4).normal(size=(4, 3, 4, 6)).astype(np.float32)


def test_saol_maps_are_their_formulas():
  spatial = spatial_output()
  maps = explain.saol_maps(spatial, jnp.asarray(LABELS), jnp.asarray(STAGE))
  assert tuple(maps) == explain.SAOL_MAPS
  for b, label in enumerate(LABELS):
    a = np.asarray(spatial.attention[b], np.float64)
    logs = np.asarray(spatial.spatial_log_probs[b], np.float64)
    y = np.exp(logs[..., label])
    wide = scaled(np.log(a))
    evidence = np.maximum(logs[..., label] - logs.sum(-1) / CLASSES, 0)
    activation = sum(np.float64(STAGE[b, ..., c]) ** 2 for c in range(6)) ** 0.5
    for name, expected in {
      "attention": a,
      "class": y,
      "product": a * y,
      "sqrt_product": (a * y) ** 0.5,
      "wide_product": wide * y,
      "evidence": evidence,
      "attended_evidence": wide * evidence,
      "activation": activation,
      "activated_evidence": scaled(activation) + scaled(evidence),
    }.items():
      np.testing.assert_allclose(maps[name][b], expected, rtol=1e-4, atol=1e-6, err_msg=name)


def test_evidence_is_what_the_class_logits_say():
  logits = np.random.default_rng(3).normal(size=(4, 3, 4, CLASSES)).astype(np.float32)
  spatial = spatial_output().replace(spatial_log_probs=jax.nn.log_softmax(jnp.asarray(logits)))
  evidence = explain.saol_maps(spatial, jnp.asarray(LABELS), jnp.asarray(STAGE))["evidence"]
  expected = [np.maximum(z[..., k] - z.mean(-1), 0) for z, k in zip(logits, LABELS, strict=True)]
  np.testing.assert_allclose(evidence, expected, atol=1e-5)


def test_saol_maps_survive_attention_that_underflowed():
  spatial = spatial_output()
  attention = jnp.zeros((4, 3, 4)).at[:, 1, 2].set(1.0)
  for extreme in (attention, jnp.full((4, 3, 4), 1 / 12)):
    spatial = spatial.replace(attention=extreme)
    maps = explain.saol_maps(spatial, jnp.asarray(LABELS), jnp.zeros((4, 3, 4, 6)))
    assert all(np.isfinite(m).all() for m in maps.values())


def test_joint_is_the_sum_of_both_scaled_maps():
  model, variables = toy_model()
  maps = maps_of(model, variables, ["joint", "cam", "attended_evidence"])
  for b in range(4):
    expected = scaled(maps["cam"][b]) + scaled(maps["attended_evidence"][b])
    np.testing.assert_allclose(maps["joint"][b], expected, atol=1e-5)


def test_without_classes_maps_are_of_what_the_main_head_finds():
  for head, name in (("saol", "class"), ("gap", "cam")):
    model, variables = toy_model(head)

    @jax.jit
    def compute(variables, x, model=model, name=name):
      maps, output = explain.score_maps(model, variables, x, None, [name])
      return maps[name], output

    found, output = compute(variables, images())
    scores = output.spatial.log_probs if head == "saol" else output.gap_logits
    best = np.asarray(scores).argmax(-1)
    assert any(best != LABELS)
    expected = explain.score_maps(model, variables, images(), jnp.asarray(best), [name])[0][name]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_compiled_maps_split_over_devices_are_those_of_one_image_at_a_time():
  info = DatasetInfo(tuple("abcd"), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
  model, variables = toy_model()
  names = explain.map_names(("saol", "gap"), 3)
  assert len(names) == 9 + 2 + 2 * 2 * 3
  pixels = np.random.default_rng(5).integers(0, 256, (4, 8, 10, 3), np.uint8)
  result = explain.make_score_maps(model, info, names, data_mesh())(variables, pixels, LABELS)
  assert tuple(sorted(result)) == tuple(sorted(names))
  x = ((pixels / 255 - np.array(info.mean)) / np.array(info.std)).astype(np.float32)

  @jax.jit
  def compute(x, labels):
    return explain.score_maps(model, variables, x, labels, names)[0]

  for b in range(4):
    one = compute(x[b : b + 1], LABELS[b : b + 1])
    for name in names:
      expected = np.asarray(one[name][0])
      scale = max(np.abs(expected).max(), 1e-6)
      np.testing.assert_allclose(result[name][b] / scale, expected / scale, atol=1e-4, err_msg=name)
      assert result[name].dtype == jnp.float32


def test_map_belongs_to_the_head_that_makes_it():
  assert explain.map_names(("gap",), 1) == ("cam", "gap_gradcam_1", "gap_gradcam++_1")
  heads = {name: explain.head_of(name) for name in explain.map_names(("saol", "gap"), 1)}
  gap = {"cam", "gap_gradcam_1", "gap_gradcam++_1"}
  assert {name for name, head in heads.items() if head == "gap"} == gap


@pytest.mark.parametrize(
  "name", ["class", "joint", "saol_gradcam_1", "gap_gradcam_0", "gap_gradcam_4", "scorecam"]
)
def test_a_map_that_the_model_lacks_is_refused(name):
  model, variables = toy_model("gap")
  with pytest.raises(UserError, match=f"{name}.*expected one of cam, gap_gradcam_1"):
    maps_of(model, variables, [name])


def test_a_stage_that_is_the_image_itself_is_refused():
  with pytest.raises(UserError, match=r"Stage 1 of the backbone .* it is the image itself"):
    maps_of(*linear_model(), ["gap_gradcam_1"])


def test_stages_in_one_compiled_block_are_refused():
  class Compiled(Toy):
    def __call__(self, images, *, train):
      return nnx.jit(lambda module, x: Toy.__call__(module, x, train=train))(self, images)

  model, variables = toy_model(backbone=Compiled)
  with pytest.raises(UserError, match="Stage 1 of the backbone"):
    maps_of(model, variables, ["gap_gradcam_1"])
