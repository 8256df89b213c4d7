"""Score maps: how much every cell of the image speaks for a class, by SAOL, CAM and Grad-CAM.

One forward pass gives the maps of SAOL and CAM; Grad-CAM adds a backward pass down to its stage.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from saol_jax.compiler import compiler_options
from saol_jax.data.augment import normalise
from saol_jax.data.source import DatasetInfo
from saol_jax.distributed import replicated, split_batch
from saol_jax.errors import UserError
from saol_jax.heads import SpatialOutput
from saol_jax.model import FunctionalModel, ModelOutput, Variables

SAOL_MAPS = (
  "attention",
  "class",
  "product",
  "sqrt_product",
  "wide_product",
  "evidence",
  "attended_evidence",
  "activation",
  "activated_evidence",
)
CAM = "cam"
JOINT = "joint"
_GRADIENT_MAP = re.compile(r"(saol|gap)_(gradcam|gradcam\+\+)_(\d+)")


def map_names(heads: Sequence[str], num_stages: int) -> tuple[str, ...]:
  """Every map that `score_maps` can give for a model.

  Args:
    heads: those that are trained: "saol", "gap" or both.
    num_stages: stage maps of the backbone.

  Returns:
    `SAOL_MAPS` with SAOL, "cam" with GAP-FC, "joint" with both, and HEAD_METHOD_STAGE, such as
    "gap_gradcam++_3", for each trained head, the methods "gradcam" and "gradcam++", and the stages
    from 1, coarse last.
  """
  names = [*SAOL_MAPS] if "saol" in heads else []
  names += [JOINT] if len(heads) == 2 else []
  names += [CAM] if "gap" in heads else []
  for head in heads:
    for method in ("gradcam", "gradcam++"):
      names += [f"{head}_{method}_{stage}" for stage in range(1, num_stages + 1)]
  return tuple(names)


def head_of(name: str) -> str:
  """The head, "saol" or "gap", whose prediction a map belongs to."""
  return "gap" if name == CAM or name.startswith("gap_") else "saol"


def make_score_maps(
  model: FunctionalModel, info: DatasetInfo, names: Sequence[str], mesh: Mesh
) -> Callable[[Variables, jax.Array, jax.Array], dict[str, jax.Array]]:
  """Compiles maps into one function; give a single name for one method alone.

  Args:
    model: of a `Classifier`.
    info: of the data set, for the normalisation.
    names: of the maps, see `map_names`.
    mesh: over which the batch is split.

  Returns:
    A jitted function from variables, images (B, height, width, 3) uint8 and classes (B,) int32 to
    a dictionary of (B, H, W) float32 maps, H x W the grid of the map's stage.
  """

  def compute(variables: Variables, images: jax.Array, classes: jax.Array) -> dict[str, jax.Array]:
    return score_maps(model, variables, normalise(images, info.mean, info.std), classes, names)[0]

  batch = split_batch(mesh)
  return jax.jit(
    compute,
    in_shardings=(replicated(mesh), batch, batch),
    out_shardings=batch,
    compiler_options=compiler_options(mesh),
  )


def score_maps(
  model: FunctionalModel,
  variables: Variables,
  images: jax.Array,
  classes: jax.Array | None,
  names: Sequence[str],
) -> tuple[dict[str, jax.Array], ModelOutput]:
  """Maps of the wanted classes, as a pure function.

  Args:
    model: of a `Classifier`.
    variables: of the model.
    images: (B, height, width, 3), normalised floats.
    classes: (B,) integers, the class that each map is of; None for the most probable one, by SAOL
      where there is SAOL.
    names: of the maps, see `map_names`.

  Returns:
    The maps, (B, H, W) float32 each, not normalised, and what the model says of the images.

  Raises:
    UserError: an unknown name, a map of a head that the model lacks, or a stage that cannot be
      perturbed, see `cut`.
  """

  def forward(images: jax.Array) -> tuple[tuple[jax.Array, ...], tuple[ModelOutput, jax.Array]]:
    module = model.merge(variables)
    stages = tuple(module.backbone(images, train=False))
    return stages, (module.classify(stages, train=False), module.gap.linear.kernel[...])

  stages, (output, kernel) = forward(images)
  if classes is None:
    scores = output.gap_logits if output.spatial is None else output.spatial.log_probs
    classes = scores.argmax(-1)
  from_saol = {} if output.spatial is None else saol_maps(output.spatial, classes, stages[-1])
  maps = {}
  for name in names:
    gradient = _GRADIENT_MAP.fullmatch(name)
    if name in from_saol:
      maps[name] = from_saol[name]
    elif name == CAM:
      maps[name] = cam(stages[-1], kernel, classes)
    elif name == JOINT and from_saol:
      maps[name] = joint(cam(stages[-1], kernel, classes), from_saol["attended_evidence"])
    elif (
      gradient
      and 1 <= int(gradient[3]) <= len(stages)
      and (gradient[1] == "gap" or output.spatial is not None)
    ):
      head, method, stage = gradient.groups()
      stage_map, rest = cut(forward, images, int(stage) - 1)
      rest = _class_score(rest, head, classes)
      maps[name] = (grad_cam if method == "gradcam" else grad_cam_plus_plus)(rest, stage_map)
    else:
      heads = ("gap",) if output.spatial is None else ("saol", "gap")
      known = ", ".join(map_names(heads, len(stages)))
      raise UserError(f"This model has no map {name!r}; expected one of {known}")
  return maps, output


def saol_maps(spatial: SpatialOutput, classes: jax.Array, stage: jax.Array) -> dict[str, jax.Array]:
  """The maps that SAOL's answer holds, for class k of each image, and those with what it reads.

    attention_ij         = A_ij                          where the head looks, whatever the class
    class_ij             = Y_ijk                         how probable k is in that cell
    product_ij           = A_ij Y_ijk                    the cell's share of y_k; sums to y_k
    sqrt_product_ij      = sqrt(A_ij Y_ijk)
    wide_product_ij      = n(log A)_ij Y_ijk
    evidence_ij          = relu(log Y_ijk - mean_k' log Y_ijk')
    attended_evidence_ij = n(log A)_ij evidence_ij
    activation_ij        = |X_ij|                        how much the network sees, whatever it is
    activated_evidence   = n(activation) + n(evidence)

  n scales a map to [0, 1] by its own minimum and maximum. The softmax over cells leaves attention
  on a few cells and the one over classes saturates inside the object, so that products of
  probabilities cover a part of it; their logarithms are the logits again, up to a constant, and
  keep the rank of all cells. The evidence is the class's logit minus the mean of all classes'.

  Args:
    spatial: SAOL's answer.
    classes: (B,) integers, k.
    stage: (B, H, W, C), X, the last stage map; its length is taken over the channels.

  Returns:
    (B, H, W) float32 for each of `SAOL_MAPS`.

  SAOL (Kim et al. 2020), section on weakly supervised localisation: the product. The activation is
  near that of Wei et al. 2017, "Selective convolutional descriptor aggregation", who add up the
  channels. The others: ours.
  """
  log_probs = spatial.spatial_log_probs
  log_class = jnp.take_along_axis(log_probs, classes[:, None, None, None], axis=-1)[..., 0]
  evidence = jax.nn.relu(log_class - log_probs.mean(-1))
  attention, class_probs = spatial.attention, jnp.exp(log_class)
  tiny = jnp.finfo(jnp.float32).tiny  # an attention that underflowed is still a number
  wide = _min_max(jnp.log(jnp.maximum(attention, tiny)))
  activation = jnp.linalg.norm(stage.astype(jnp.float32), axis=-1)
  maps = (
    attention,
    class_probs,
    attention * class_probs,
    jnp.sqrt(attention * class_probs),
    wide * class_probs,
    evidence,
    wide * evidence,
    activation,
    _min_max(activation) + _min_max(evidence),
  )
  return dict(zip(SAOL_MAPS, maps, strict=True))


def cam(stage: jax.Array, kernel: jax.Array, classes: jax.Array) -> jax.Array:
  """Class activation map of GAP-FC: `M_ij = sum_c W_ck X_ijc`; its mean is the logit less its bias.

  Args:
    stage: (B, H, W, C), X, what is pooled.
    kernel: (C, K), W, of the linear layer.
    classes: (B,) integers, k.

  Returns:
    (B, H, W) float32, of both signs.

  Zhou et al. 2016, "Learning deep features for discriminative localization", eq. 2.
  """
  return jnp.einsum("bhwc,cb->bhw", stage.astype(jnp.float32), kernel[:, classes])


def joint(cam: jax.Array, attended_evidence: jax.Array) -> jax.Array:
  """What both heads see: the sum of their maps, (B, H, W) each, first scaled to [0, 1]. Ours."""
  return _min_max(cam) + _min_max(attended_evidence)


def grad_cam(score: Callable[[jax.Array], jax.Array], stage: jax.Array) -> jax.Array:
  """Grad-CAM: `relu(sum_c a_c X_ijc)` with `a_c = mean_ij dS/dX_ijc`.

  Args:
    score: from a stage map (B, H, W, C) to S (B,), where S_b depends on X_b alone.
    stage: (B, H, W, C), X.

  Returns:
    (B, H, W) float32, not negative.

  Selvaraju et al. 2017, eq. 1 and 2.
  """
  gradient = _gradient(score, stage)
  return _weighted_sum(stage, gradient.mean((1, 2)))


def grad_cam_plus_plus(score: Callable[[jax.Array], jax.Array], stage: jax.Array) -> jax.Array:
  """Grad-CAM++: `relu(sum_c a_c X_ijc)` with weights that favour no large object over a small one.

    a_c = sum_ij w_ijc relu(g_ijc),   w_ijc = g_ijc^2 / (2 g_ijc^2 + g_ijc^3 sum_ij X_ijc)

  g is dS/dX. The paper differentiates exp(S), which gives these closed forms and a common factor
  exp(S), left out here since maps are normalised anyway.

  Args:
    score: from a stage map (B, H, W, C) to S (B,), where S_b depends on X_b alone.
    stage: (B, H, W, C), X.

  Returns:
    (B, H, W) float32, not negative.

  Chattopadhyay et al. 2018, eq. 10, 11 and 19.
  """
  gradient = _gradient(score, stage)
  total = stage.astype(jnp.float32).sum((1, 2), keepdims=True)
  # Both sides of the fraction are divided by g^2: its cube would underflow.
  denominator = 2 + gradient * total
  share = jnp.where((gradient != 0) & (denominator != 0), 1 / _nonzero(denominator), 0)
  return _weighted_sum(stage, (share * jax.nn.relu(gradient)).sum((1, 2)))


def cut(
  function: Callable[[jax.Array], tuple[tuple[jax.Array, ...], Any]], images: jax.Array, stage: int
) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
  """Cuts a network at one of its stage maps, so that it can be differentiated by that map.

  The network is traced and its program split behind the operation that makes the map. So any
  backbone will do, and need not know of it. What is asked of it: the map that it returns is the
  one that its next stage reads (a copy in another type would not be), and a compiled block of its
  own (a `jit` inside) holds no more than one stage.

  Args:
    function: from images to (stage maps, result).
    images: its argument.
    stage: index of the stage map.

  Returns:
    The stage map, and a function from it to the result.

  Raises:
    UserError: the stage map is made together with another one, in one compiled block.
  """
  closed, shapes = jax.make_jaxpr(function, return_shape=True)(images)
  program, num_stages = closed.jaxpr, len(shapes[0])
  wanted = program.outvars[stage]
  makers = [i for i, eqn in enumerate(program.eqns) if any(v is wanted for v in eqn.outvars)]
  others = [v for i, v in enumerate(program.outvars[:num_stages]) if i != stage]
  if not makers or any(v is o for v in program.eqns[makers[0]].outvars for o in others):
    raise UserError(
      f"Stage {stage + 1} of the backbone cannot be perturbed, since it is the image itself or "
      "made in one compiled block with other stages; leave out the jit around the backbone's "
      "stages, or use maps of the last stage"
    )
  end = makers[0] + 1
  defined = [*program.constvars, *program.invars]
  defined += [v for eqn in program.eqns[:end] for v in eqn.outvars]
  needed = {v for eqn in program.eqns[end:] for v in eqn.invars if not _is_literal(v)}
  needed |= {v for v in program.outvars if not _is_literal(v)}
  passed = [v for v in defined if v in needed and v is not wanted]
  first = program.replace(eqns=program.eqns[:end], outvars=[wanted, *passed])
  second = program.replace(
    eqns=program.eqns[end:],
    constvars=[],
    invars=[wanted, *passed],
    outvars=program.outvars[num_stages:],
  )
  stage_map, *values = jax.core.eval_jaxpr(first, closed.consts, images)

  def rest(stage_map: jax.Array) -> Any:
    results = jax.core.eval_jaxpr(second, [], stage_map, *values)
    return jax.tree.unflatten(jax.tree.structure(shapes[1]), results)

  return stage_map, rest


def _is_literal(atom: Any) -> bool:
  """A number inside a program rather than a variable."""
  return hasattr(atom, "val")


def _class_score(rest: Callable, head: str, classes: jax.Array) -> Callable[[jax.Array], jax.Array]:
  """From a stage map to what is differentiated, (B,): GAP-FC's logit or SAOL's log y_k.

  Attention lets the gradient of the latter through a few cells, so that the channels' mean weights
  of Grad-CAM say little of the object; see the scores of `saol_gradcam_3` in
  `benchmarks/results/demo_cpu.json`.
  """

  def score(stage_map: jax.Array) -> jax.Array:
    output: ModelOutput = rest(stage_map)[0]
    scores = output.gap_logits if head == "gap" else output.spatial.log_probs
    return jnp.take_along_axis(scores, classes[:, None], axis=-1)[:, 0]

  return score


def _gradient(score: Callable[[jax.Array], jax.Array], stage: jax.Array) -> jax.Array:
  """(B, H, W, C) float32, of each example's own score."""
  return jax.grad(lambda stage: score(stage).sum())(stage).astype(jnp.float32)


def _weighted_sum(stage: jax.Array, weights: jax.Array) -> jax.Array:
  """(B, H, W, C) and (B, C) to (B, H, W), without what speaks against the class."""
  return jax.nn.relu(jnp.einsum("bhwc,bc->bhw", stage.astype(jnp.float32), weights))


def _nonzero(x: jax.Array) -> jax.Array:
  return jnp.where(x == 0, 1, x)


def _min_max(maps: jax.Array) -> jax.Array:
  """Each of (B, H, W) to [0, 1]; a constant one to 0."""
  low = maps.min((1, 2), keepdims=True)
  span = maps.max((1, 2), keepdims=True) - low
  return (maps - low) / jnp.where(span > 0, span, 1)
