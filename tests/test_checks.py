"""What a caller can get wrong with the heads, the losses and CutMix is said, not computed."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from saol_jax import create_model, cutmix, localization, losses, mixup
from saol_jax.errors import UserError
from saol_jax.heads import SAOL, GapFC, spatial_attention_pool

ONES, KEY = jnp.ones, jax.random.key(0)


def make_saol(channels=(4, 8), classes=3, width=2, **options):
  return SAOL(channels, classes, width=width, rngs=nnx.Rngs(0), **options)


class Ours(nnx.Module):
  """A backbone without a parameter."""

  stage_channels = (3,)

  def __call__(self, images, *, train):
    return (images,)


class WithoutChannels(nnx.Module):
  pass


class WithoutTrain(nnx.Module):
  stage_channels = (3,)

  def __call__(self, images):
    return (images,)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: GapFC(8, 0, rngs=nnx.Rngs(0)), "num_classes=0; expected a whole number, 1 or more"),
    (lambda: GapFC(8, "10", rngs=nnx.Rngs(0)), "num_classes='10'; expected a whole number"),
    (lambda: GapFC(8, 10.0, rngs=nnx.Rngs(0)), "num_classes=10.0; expected a whole number"),
    (lambda: GapFC(0, 3, rngs=nnx.Rngs(0)), "channels=0; expected"),
    (lambda: make_saol(classes=-1), "num_classes=-1; expected"),
    (lambda: make_saol(width=0), "width=0; expected"),
    (lambda: make_saol((4, 0)), "stage_channels[1]=0; expected"),
    (lambda: make_saol(norm_group=-1), "norm_group=-1; expected"),
    (lambda: make_saol(kernel_size=2), "kernel_size=2; expected an odd number, such as 3"),
    (lambda: make_saol(lateral_kernel_size=4), "lateral_kernel_size=4; expected an odd number"),
    (lambda: create_model(Ours, 3, rngs=nnx.Rngs(0)), "Ours'> is no backbone; expected"),
    (lambda: create_model(None, 3, rngs=nnx.Rngs(0)), "None is no backbone; expected a name"),
    (lambda: create_model(WithoutChannels(), 3, rngs=nnx.Rngs(0)), "stage_channels; here: None"),
    (lambda: create_model(WithoutTrain(), 3, rngs=nnx.Rngs(0)), "called as backbone(images, train"),
    (lambda: create_model("resnet8", 3, rngs=0), "rngs=0; expected flax.nnx.Rngs"),
    (
      lambda: create_model("resnet8", 3, norm_group=-2, rngs=nnx.Rngs(0)),
      "norm_group=-2; expected",
    ),
    (lambda: make_saol(()), "stage_channels=(); expected the channels of each stage map"),
    (lambda: make_saol(64), "stage_channels=64; expected"),
    (lambda: cutmix.sample_boxes(KEY, 4, 8, 8, alpha=0), "alpha=0; expected a number above 0"),
    (lambda: cutmix.sample_boxes(KEY, 4, 8, 8, alpha=float("nan")), "alpha=nan; expected"),
    (lambda: cutmix.sample_boxes(KEY, 4, 8, 8, prob=2), "prob=2; expected a probability"),
    (lambda: mixup.sample_shares(KEY, 4, alpha=1, prob=-0.5), "prob=-0.5; expected"),
  ],
)
def test_impossible_sizes(make, message):
  with pytest.raises(UserError, match=re.escape(message)):
    make()


@pytest.mark.parametrize(
  "stages",
  [
    ONES((2, 5, 5, 8)),
    (ONES((2, 5, 5, 8)),),
    (ONES((2, 9, 9, 4)), ONES((5, 5, 8))),
    (ONES((2, 4, 9, 9)), ONES((2, 8, 5, 5))),
    (ONES((2, 5, 5, 8)), ONES((2, 9, 9, 4))),
    (ONES((2, 9, 9, 4)), ONES((3, 5, 5, 8))),
    (ONES((2, 9, 9, 4)), ONES((2, 0, 0, 8))),
  ],
  ids=["array", "too few", "rank", "channel-first", "fine last", "batches", "empty"],
)
def test_stages_that_do_not_fit(stages):
  with pytest.raises(ValueError, match=r"stage maps of shapes .* the last 2 with 4, 8 channels"):
    make_saol()(stages, train=False)


@pytest.mark.parametrize("shape", [(2, 8), (2, 5, 5, 4)])
def test_a_stage_that_does_not_fit_gap_fc(shape):
  with pytest.raises(ValueError, match=r"stage maps of shapes .* the last 1 with 8 channels"):
    GapFC(8, 3, rngs=nnx.Rngs(0))(ONES(shape))


def test_more_stages_than_are_used_fit():
  stages = (ONES((2, 17, 17, 1)), ONES((2, 9, 9, 4)), ONES((2, 5, 5, 8)))
  assert make_saol()(stages, train=False).attention.shape == (2, 5, 5)


@pytest.mark.parametrize(
  ("images", "message"),
  [
    (ONES((32, 32, 3)), r"images of shape \(32, 32, 3\)"),
    (ONES((1, 2, 32, 32, 3)), r"expected one array of floats \(batch, height, width, channels\)"),
    (ONES((2, 0, 32, 3)), r"images of shape \(2, 0, 32, 3\)"),
    (ONES((2, 3, 32, 32)), "look channel-first"),
    (ONES((2, 32, 32, 3), jnp.uint8), r"type uint8; .* normalised: \(images / 255 - mean\) / std"),
    ([ONES((32, 32, 3))], "type list"),
  ],
)
@pytest.mark.parametrize("call", [lambda model: model, nnx.jit], ids=["eager", "jitted"])
def test_images_of_another_form(images, message, call):
  model = create_model(Ours(), 3, head="gap", rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match=message):
    call(lambda model, x: model(x, train=False))(model, images)


BOXES = jnp.zeros((4, 4), jnp.int32)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: losses.soft_cross_entropy(ONES((4, 4)), jnp.arange(4)),
      r"log_probs \(4, 4\), targets \(4,\); expected one .* 2 axes, \(B, K\); of class",
    ),
    (lambda: losses.soft_cross_entropy(ONES((4, 3)), ONES((4, 1))), r"targets \(4, 1\)"),
    (lambda: losses.mask_loss(ONES((2, 8, 8)), ONES((8, 8))), r"mask \(8, 8\)"),
    (
      lambda: losses.mask_loss(ONES((2, 8, 8)), ONES((2, 32, 32))),
      r"by cutmix.reduce_mask\(mask, \(H, W\)\)",
    ),
    (lambda: losses.mask_loss(ONES((2, 64)), ONES((2, 64))), "with 3 axes"),
    (
      lambda: losses.consistency_loss(ONES((2, 4, 4, 3)), ONES((2, 1, 1, 3)), ONES((2, 4, 4))),
      r"target \(2, 1, 1, 3\)",
    ),
    (
      lambda: losses.consistency_loss(ONES((2, 4, 4, 3)), ONES((2, 4, 4, 3)), ONES((2, 1, 1))),
      r"mask \(2, 1, 1\)",
    ),
    (
      lambda: losses.self_distillation_loss(ONES((2, 3)), ONES((2, 1)), ONES((2, 3))),
      r"gap_logits \(2, 1\)",
    ),
    (
      lambda: spatial_attention_pool(ONES((2, 1, 1)), ONES((2, 4, 4, 3))),
      r"attention_logits \(2, 1, 1\)",
    ),
    (lambda: cutmix.mix(ONES((4, 8, 8, 3)), jnp.arange(4), BOXES), r"targets of shape \(4,\)"),
    (lambda: cutmix.mix(ONES((4, 8, 8, 3)), BOXES, BOXES), "and type int32"),
    (lambda: cutmix.mix(ONES((4, 8, 8, 3)), ONES((4, 2)), ONES((4, 4))), "type float32; expected"),
    (lambda: cutmix.mix(ONES((4, 8, 8, 3)), ONES((4, 2)), BOXES[:1]), r"boxes \(1, 4\); expected"),
    (lambda: cutmix.mix(ONES((4, 8, 8, 3)), ONES((2, 2)), BOXES), r"targets \(2, 2\)"),
    (lambda: localization.boxes_from_maps(ONES((1, 4, 4)), (8, 8), 40), "threshold 40"),
    (lambda: localization.boxes_from_maps(ONES((4, 4)), (8, 8), 0.4), r"maps of shape \(4, 4\)"),
  ],
)
def test_what_would_be_broadcast_or_is_out_of_range(call, message):
  with pytest.raises(ValueError, match=message):
    call()
