import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from saol_jax.heads import SAOL, GapFC, _Logits, _resized_conv, spatial_attention_pool
from saol_jax.norm import GhostBatchNorm

# Plain NumPy in float64: every formula again, from the definitions


def log_softmax(x, axis):
  shifted = x - x.max(axis, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))


def logsumexp(x, axis):
  top = x.max(axis, keepdims=True)
  return (top + np.log(np.exp(x - top).sum(axis, keepdims=True))).squeeze(axis)


def pool(attention_logits, class_logits):
  cells = log_softmax(attention_logits, (1, 2))[..., None] + log_softmax(class_logits, -1)
  return logsumexp(cells, (1, 2))


def conv(x, layer):
  """Stride 1, zero padding that keeps the size; a sum over the taps of the kernel."""
  kernel = layer["kernel"]
  size, (batch, height, width, _) = kernel.shape[0], x.shape
  padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
  result = np.zeros((batch, height, width, kernel.shape[-1])) + layer.get("bias", 0)
  for i in range(size):
    for j in range(size):
      result += padded[:, i : i + height, j : j + width] @ kernel[i, j]
  return result


def interpolation(old, new):
  """(new, old) weights: a triangle around each new centre, widened where the map shrinks."""
  footprint = max(old / new, 1)
  centres = (np.arange(new) + 0.5) * old / new - 0.5
  weights = np.maximum(1 - abs(centres[:, None] - np.arange(old)) / footprint, 0)
  return weights / weights.sum(1, keepdims=True)


def resize(x, grid):
  rows, columns = (interpolation(old, new) for old, new in zip(x.shape[1:3], grid, strict=True))
  return np.einsum("ih,jw,bhwc->bijc", rows, columns, x)


def norm(x, params, stats, group):
  """Running statistics where group is None, those of each group otherwise."""
  if group is None:
    result = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
  else:
    parts = np.split(x, len(x) // group)
    result = np.concatenate(
      [(p - p.mean((0, 1, 2))) / np.sqrt(p.var((0, 1, 2)) + 1e-5) for p in parts]
    )
  return result * params["scale"] + params["bias"]


def cell_score(x, params, stats, group):
  hidden = np.maximum(norm(conv(x, params["hidden"]), params["norm"], stats["norm"], group), 0)
  return conv(hidden, params["score"])[..., 0]


def saol(params, stats, stages, group=None):
  """(log_probs, attention, spatial_log_probs, mask_logits)."""
  last, grid = stages[-1], stages[-1].shape[1:3]
  features = []
  for stage, lateral in zip(stages[-3:], (params["laterals"][i] for i in range(3)), strict=False):
    shrinks = np.prod(stage.shape[1:3]) > np.prod(grid)
    features.append(
      conv(resize(stage, grid), lateral) if shrinks else resize(conv(stage, lateral), grid)
    )
  features = np.concatenate(features, -1)
  features = np.maximum(norm(features, params["norm"], stats["norm"], group), 0)
  class_logits = conv(features, params["classify"])
  attention_logits = cell_score(last, params["attention"], stats["attention"], group)
  mask_logits = cell_score(last, params["mask"], stats["mask"], group)
  log_attention = log_softmax(attention_logits, (1, 2))
  return (
    pool(attention_logits, class_logits),
    np.exp(log_attention),
    log_softmax(class_logits, -1),
    mask_logits,
  )


def random_arrays(tree, rng):
  """The same tree with random float32 values; variances positive."""

  def draw(path, leaf):
    low = 0.5 if "var" in jax.tree_util.keystr(path) else -1
    return jnp.asarray(rng.uniform(low, 1.5, leaf.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, tree)


def float64(tree):
  return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def random_saol(shapes, num_classes=5, batch=4, seed=0, width=4, **options):
  """Call, parameters, statistics and stages; the call returns output and new statistics."""
  rng = np.random.default_rng(seed)
  channels = [shape[-1] for shape in shapes]
  model = nnx.eval_shape(
    lambda: SAOL(channels, num_classes, width=width, rngs=nnx.Rngs(0), **options)
  )
  graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)

  @functools.partial(jax.jit, static_argnames="train")
  def call(params, stats, stages, train):
    merged = nnx.merge(graph, params, stats, copy=True)
    return merged(stages, train=train), nnx.to_pure_dict(nnx.state(merged, nnx.BatchStat))

  params, stats = (random_arrays(nnx.to_pure_dict(tree), rng) for tree in (params, stats))
  stages = [jnp.asarray(rng.normal(size=(batch, *shape)), jnp.float32) for shape in shapes]
  return call, params, stats, stages


# Grid 4 x 6 (not square) or another; stages that shrink, grow, or do one in each direction.
STAGES = {
  "one": [(4, 6, 3)],
  "two, growing": [(2, 3, 5), (4, 6, 3)],
  "three, shrinking": [(12, 9, 3), (8, 6, 2), (4, 3, 5)],
  "five, the last three used": [(7, 7, 2), (9, 9, 2), (9, 11, 4), (3, 7, 2), (4, 6, 3)],
}


# The pool


def test_pool_equals_numpy_and_sums_to_one_on_a_grid_that_is_not_square():
  rng = np.random.default_rng(0)
  a, z = rng.normal(size=(3, 4, 7)) * 3, rng.normal(size=(3, 4, 7, 6)) * 3
  log_probs = spatial_attention_pool(jnp.float32(a), jnp.float32(z))
  # The definition itself, in probabilities.
  attention, classes = np.exp(log_softmax(a, (1, 2))), np.exp(log_softmax(z, -1))
  np.testing.assert_allclose(
    np.exp(log_probs), np.einsum("bij,bijk->bk", attention, classes), rtol=1e-5
  )
  np.testing.assert_allclose(np.exp(log_probs).sum(1), 1, rtol=1e-6)
  assert log_probs.dtype == jnp.float32
  # bfloat16 logits are exact in float32, so that the only error is of their own rounding.
  a, z = (jnp.asarray(x, jnp.bfloat16) for x in (a, z))
  log_probs = spatial_attention_pool(a, z)
  assert log_probs.dtype == jnp.float32
  np.testing.assert_allclose(log_probs, pool(np.float64(a), np.float64(z)), atol=1e-5)


def test_pool_gradient_equals_finite_differences():
  rng = np.random.default_rng(1)
  a, z, weights = (rng.normal(size=shape) for shape in ((2, 2, 3), (2, 2, 3, 4), (2, 4)))

  def loss(a, z):
    return jnp.sum(spatial_attention_pool(a, z) * jnp.float32(weights))

  gradients = jax.jit(jax.grad(loss, (0, 1)))(jnp.float32(a), jnp.float32(z))
  gradients = jax.tree.map(np.asarray, gradients)
  for which, gradient in enumerate(gradients):
    for place in np.ndindex(gradient.shape):
      ends = []
      for step in (1e-5, -1e-5):
        inputs = [a.copy(), z.copy()]
        inputs[which][place] += step
        ends.append(np.sum(pool(*inputs) * weights))
      np.testing.assert_allclose(gradient[place], (ends[0] - ends[1]) / 2e-5, atol=2e-6)


def _huge_logits(rng, case):
  shapes = ((4, 3, 5), (4, 3, 5, 6))
  small = [rng.integers(-3, 4, shape) for shape in shapes]
  huge = [1e4 * rng.integers(-1, 2, shape) for shape in shapes]
  a, z = {
    "both": (small[0] + huge[0], small[1] + huge[1]),
    "attention": (small[0] + huge[0], small[1]),
    "classes": (small[0], small[1] + huge[1]),
    "all the same": (np.full(shapes[0], -1e4), np.full(shapes[1], 1e4)),
    # One cell takes all the attention and is sure of class 0.
    "one cell": (np.full(shapes[0], -1e4), np.where(np.arange(6) == 0, 1e4, -1e4) + 0 * small[1]),
  }[case]
  if case == "one cell":
    a[:, 1, 2] = 1e4
  if case in ("both", "classes"):
    z[..., 5] = -1e4  # unlikely wherever another class is not as unlikely: in every image
    z[..., 4] = 1e4
  return np.float64(a), np.float64(z)


@pytest.mark.parametrize("case", ["both", "attention", "classes", "all the same", "one cell"])
def test_pool_is_stable_for_huge_logits_in_value_and_gradient(case):
  rng = np.random.default_rng(2)
  a, z = _huge_logits(rng, case)
  weights = rng.normal(size=(4, 6))

  def loss(a, z):
    log_probs = spatial_attention_pool(a, z)
    return jnp.sum(log_probs * jnp.float32(weights)), log_probs

  gradient = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
  gradients, log_probs = gradient(jnp.float32(a), jnp.float32(z))

  # d log y_k / da_ij = r_ijk - A_ij and d log y_k / dz_ijc = r_ijk (1[k = c] - Y_ijc), with
  # r_ijk = A_ij Y_ijk / y_k, the share of class k that comes from cell ij.
  log_attention, log_classes, expected = log_softmax(a, (1, 2)), log_softmax(z, -1), pool(a, z)
  share = np.exp(log_attention[..., None] + log_classes - expected[:, None, None])
  to_a = np.einsum("bk,bijk->bij", weights, share - np.exp(log_attention)[..., None])
  weighted = weights[:, None, None] * share
  to_z = weighted - weighted.sum(-1, keepdims=True) * np.exp(log_classes)

  assert np.isfinite(log_probs).all()
  assert (abs(expected).max() > 1e4) == (case in ("both", "classes", "one cell"))
  # float32 keeps 2e4 to 2e-3, and a share is the exponential of such a difference.
  np.testing.assert_allclose(log_probs, expected, rtol=2e-7, atol=1e-5)
  np.testing.assert_allclose(gradients[0], to_a, atol=1e-2)
  np.testing.assert_allclose(gradients[1], to_z, atol=1e-2)


# GAP-FC


def test_gap_fc_equals_numpy():
  layer = GapFC(6, 4, rngs=nnx.Rngs(0))
  layer.linear.bias[...] = jnp.arange(4.0)
  x = np.random.default_rng(0).normal(size=(3, 5, 2, 6))
  kernel = np.float64(layer.linear.kernel[...])
  expected = x.mean((1, 2)) @ kernel + np.arange(4)
  np.testing.assert_allclose(layer(jnp.float32(x)), expected, atol=1e-6)


def test_gap_fc_starts_as_in_torchvision():
  layer = GapFC(256, 1000, rngs=nnx.Rngs(0))
  kernel, bound = np.asarray(layer.linear.kernel[...]), 1 / np.sqrt(256)
  assert abs(kernel).max() <= bound
  # A uniform distribution, not a normal one cut at the bound.
  np.testing.assert_allclose(np.quantile(kernel, [0.25, 0.75]), [-bound / 2, bound / 2], rtol=0.02)


def test_gap_fc_computes_with_bfloat16_features_in_float32():
  x = jnp.asarray(np.random.default_rng(0).normal(1, 1, (2, 8, 8, 6)), jnp.bfloat16)
  layer = GapFC(6, 4, rngs=nnx.Rngs(0))
  # The features are rounded; their mean and the logits are not.
  pooled = np.float64(x).mean((1, 2))
  np.testing.assert_allclose(layer(x), pooled @ np.float64(layer.linear.kernel[...]), atol=1e-6)


# SAOL


@pytest.mark.parametrize(
  ("kernel_size", "lateral", "width"),
  [(3, 1, 4), (1, 3, 4), (3, 1, 14)],
  ids=["defaults", "lateral 3x3", "wide"],
)
@pytest.mark.parametrize("stages", STAGES)
def test_evaluation_equals_a_numpy_forward_pass(stages, kernel_size, lateral, width):
  call, params, stats, maps = random_saol(
    STAGES[stages], width=width, kernel_size=kernel_size, lateral_kernel_size=lateral
  )
  assert len(params["laterals"]) == min(len(maps), 3)
  output, new_stats = call(params, stats, maps, train=False)
  log_probs, attention, spatial_log_probs, _ = saol(*map(float64, (params, stats, maps)))
  np.testing.assert_allclose(output.log_probs, log_probs, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(output.attention, attention, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(output.spatial_log_probs, spatial_log_probs, rtol=1e-4, atol=1e-4)
  assert output.mask_logits is None
  jax.tree.map(np.testing.assert_array_equal, new_stats, stats)

  np.testing.assert_allclose(np.sum(output.attention, (1, 2)), 1, rtol=1e-5)
  np.testing.assert_allclose(np.exp(output.log_probs).sum(1), 1, rtol=1e-5)
  np.testing.assert_allclose(np.exp(output.spatial_log_probs).sum(-1), 1, rtol=1e-5)


def test_training_equals_a_numpy_forward_pass_with_ghost_groups():
  call, params, stats, stages = random_saol(STAGES["three, shrinking"], norm_group=2)
  output, new_stats = call(params, stats, stages, train=True)
  expected = saol(*map(float64, (params, stats, stages)), group=2)
  np.testing.assert_allclose(output.log_probs, expected[0], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(output.attention, expected[1], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(output.spatial_log_probs, expected[2], rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(output.mask_logits, expected[3], rtol=1e-4, atol=1e-4)
  moved = jax.tree.map(lambda new, old: bool((new != old).all()), new_stats, stats)
  assert all(jax.tree.leaves(moved)), moved


def test_gradients_equal_finite_differences_through_everything():
  shapes = STAGES["five, the last three used"]
  call, params, stats, stages = random_saol(shapes, norm_group=2)
  rng = np.random.default_rng(3)
  weights = [rng.normal(size=shape) for shape in ((4, 5), (4, 4, 6))]

  def loss(params, stages):
    output, _ = call(params, stats, stages, train=True)
    to_class, to_mask = (jnp.float32(w) for w in weights)
    return jnp.sum(output.log_probs * to_class) + jnp.sum(output.mask_logits * to_mask)

  def reference(params, stages):
    log_probs, _, _, mask_logits = saol(params, float64(stats), stages, group=2)
    return np.sum(log_probs * weights[0]) + np.sum(mask_logits * weights[1])

  arguments = (params, stages)
  gradients = float64(jax.grad(loss, (0, 1))(*arguments))
  leaves, structure = jax.tree.flatten(float64(arguments))
  # A bias before a softmax over all places has no effect. Its gradient sums, over the places, what
  # the gradient of the kernel beside it weighs with the inputs: the rounding of terms of that size.
  no_effect = "[0]['attention']['score']['bias']"
  kernel = gradients[0]["attention"]["score"]["kernel"]
  rounding = {no_effect: np.finfo(np.float32).eps * np.linalg.norm(kernel)}
  for i, (path, gradient) in enumerate(jax.tree_util.tree_leaves_with_path(gradients)):
    name = jax.tree_util.keystr(path)
    direction = rng.normal(size=gradient.shape)
    ends = []
    for step in (1e-6, -1e-6):
      moved = [leaf + step * direction if j == i else leaf for j, leaf in enumerate(leaves)]
      ends.append(reference(*jax.tree.unflatten(structure, moved)))
    expected = (ends[0] - ends[1]) / 2e-6
    error = rounding.get(name, 1e-5 * np.linalg.norm(gradient)) * np.linalg.norm(direction)
    assert (abs(expected) < 1e-7) == (name == no_effect or not np.any(gradient)), name
    np.testing.assert_allclose(
      np.sum(gradient * direction), expected, rtol=0, atol=error + 1e-8, err_msg=name
    )
    # The two stages that are not used, and nothing else, have no say.
    assert (np.abs(gradient).max() == 0) == (name in ("[1][0]", "[1][1]")), name


@pytest.mark.parametrize("grid", [(2, 3), (9, 7), (8, 3), (6, 5)])
def test_a_resized_1x1_convolution_is_both_orders(grid):
  """Why the cheaper order may be taken: the result does not tell which one was."""
  x = np.random.default_rng(0).normal(size=(2, 6, 5, 4))
  layer = nnx.Conv(4, 3, (1, 1), use_bias=False, rngs=nnx.Rngs(0))
  result = _resized_conv(layer, jnp.float32(x), grid)
  layer = {"kernel": np.float64(layer.kernel[...])}
  for expected in (conv(resize(x, grid), layer), resize(conv(x, layer), grid)):
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_each_lateral_takes_the_cheaper_order():
  # An 8 x 8 map shrinks to 4 x 4 before its convolution, a 2 x 2 map grows after it.
  call, params, stats, stages = random_saol([(8, 8, 3), (2, 2, 5), (4, 4, 6)])
  text = call.lower(params, stats, stages, train=False).as_text()
  convolved = [
    line.rsplit("->")[-2] for line in text.splitlines() if "stablehlo.convolution" in line
  ]
  assert any("tensor<4x4x4x3xf32>" in line for line in convolved)
  assert any("tensor<4x2x2x5xf32>" in line for line in convolved)
  assert not any("tensor<4x8x8x3xf32>" in line for line in convolved)


def test_without_mask_branch_there_are_neither_parameters_nor_logits():
  call, params, stats, stages = random_saol(STAGES["one"], mask_branch=False)
  assert "mask" not in params
  assert "mask" not in stats
  output, _ = call(params, stats, stages, train=True)
  assert output.mask_logits is None


def test_bfloat16_computes_near_float32_and_returns_float32():
  results = []
  for dtype in (jnp.float32, jnp.bfloat16):
    call, params, stats, stages = random_saol(STAGES["three, shrinking"], dtype=dtype)
    # Scaled down: random parameters make logits of +-50, which bfloat16 keeps to 0.1 only.
    for layer in (params["classify"], params["attention"]["score"], params["mask"]["score"]):
      layer["kernel"] = layer["kernel"] * 0.1
    stages = [stage.astype(dtype) for stage in stages]
    output, new_stats = call(params, stats, stages, train=True)
    results.append(output)
    for leaf in jax.tree.leaves((output, new_stats, params)):
      assert leaf.dtype == jnp.float32
  exact, rounded = results
  assert not np.array_equal(exact.log_probs, rounded.log_probs)
  for name in ("log_probs", "attention", "spatial_log_probs", "mask_logits"):
    values = [getattr(output, name) for output in (rounded, exact)]
    if name == "attention":  # its logits too, up to a constant: weights are small
      values = [np.log(value) for value in values]
    np.testing.assert_allclose(*values, atol=0.1, err_msg=name)
  np.testing.assert_allclose(np.sum(rounded.attention, (1, 2)), 1, rtol=1e-5)
  np.testing.assert_allclose(np.exp(rounded.log_probs).sum(1), 1, rtol=1e-5)


def test_all_convolutions_and_norms_of_bfloat16_compute_in_it():
  shapes = STAGES["three, shrinking"]
  call, params, stats, stages = random_saol(shapes, dtype=jnp.bfloat16)
  stages = [stage.astype(jnp.bfloat16) for stage in stages]
  program = jax.make_jaxpr(functools.partial(call, train=True))(params, stats, stages)
  (program,) = (equation.params["jaxpr"] for equation in program.eqns)
  convs = [e for e in program.eqns if e.primitive.name == "conv_general_dilated"]
  assert len(convs) == 2 + 3 + 1 + 2
  arrays = [v.aval for conv in convs for v in (*conv.invars, *conv.outvars)]
  assert {array.dtype for array in arrays} == {jnp.dtype(jnp.bfloat16)}
  channels = [shape[-1] for shape in shapes]
  model = nnx.eval_shape(lambda: SAOL(channels, 5, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
  norms = [module for _, module in nnx.iter_modules(model) if isinstance(module, GhostBatchNorm)]
  assert [norm.dtype for norm in norms] == [jnp.bfloat16] * 3


@pytest.mark.parametrize(("features", "few"), [(1, True), (3, True), (4, False)])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("grid", [(1, 1), (3, 4)])
def test_logits_are_a_convolution_in_whichever_way(features, few, kernel_size, grid):
  layer = _Logits(24, features, kernel_size, dtype=jnp.float32, rngs=nnx.Rngs(0))
  assert layer.few == few
  layer.bias.set_value(jnp.arange(features, dtype=jnp.float32))
  graph, params = nnx.split(layer)
  rng = np.random.default_rng(3)
  x, direction = (
    jnp.asarray(rng.normal(size=(2, *grid, channels)), jnp.float32) for channels in (24, features)
  )

  def call(method, params, x):
    return method(nnx.merge(graph, params), x)

  def gradients(method):
    return jax.grad(lambda *of: (call(method, *of) * direction).sum(), argnums=(0, 1))(params, x)

  weights = {"kernel": layer.kernel[...], "bias": layer.bias[...]}
  expected = conv(np.float64(x), float64(weights))
  np.testing.assert_allclose(call(_Logits.__call__, params, x), expected, atol=3e-5)
  close = functools.partial(np.testing.assert_allclose, atol=3e-5)
  jax.tree.map(close, gradients(_Logits.__call__), gradients(nnx.Conv.__call__))


def test_few_logits_of_bfloat16_are_added_up_in_float32():
  rounded = _Logits(64, 1, 3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  exact = _Logits(64, 1, 3, dtype=jnp.float32, rngs=nnx.Rngs(0))
  rounded.kernel.set_value(rounded.kernel[...].astype(jnp.bfloat16).astype(jnp.float32))
  exact.kernel.set_value(rounded.kernel[...])
  x = jax.random.normal(jax.random.key(0), (2, 5, 5, 64), jnp.bfloat16)
  assert rounded(x).dtype == jnp.float32
  np.testing.assert_allclose(rounded(x), exact(x.astype(jnp.float32)), atol=1e-5)


def test_convolutions_start_with_the_variance_of_he():
  """2 over what an output sums up, so that ReLUs keep the scale."""
  model = SAOL((4, 64), 10, width=64, rngs=nnx.Rngs(0))
  for layer, inputs in (
    (model.attention.hidden, 9 * 64),
    (model.mask.hidden, 9 * 64),
    (model.laterals[1], 64),
    (model.classify, 9 * 128),
  ):
    np.testing.assert_allclose(np.std(layer.kernel[...]), (2 / inputs) ** 0.5, rtol=0.03)


def test_default_sizes_have_the_parameters_of_the_definition():
  channels, num_classes, width = (64, 512, 1024, 2048), 1000, 128
  model = nnx.eval_shape(lambda: SAOL(channels, num_classes, rngs=nnx.Rngs(0)))
  leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
  branch = 9 * 2048 * width + 2 * width + 9 * width + 1
  laterals = (512 + 1024 + 2048) * width
  classify = 2 * 3 * width + 9 * 3 * width * num_classes + num_classes
  assert sum(np.prod(leaf.shape) for leaf in leaves) == 2 * branch + laterals + classify
