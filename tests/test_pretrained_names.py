"""Names of other libraries: every tensor of theirs is used once, every parameter of ours filled.

The lists of names here are written down from the structure of the references. Those of transformers
and timm are taken from the libraries themselves in `tests/parity`.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from saol_jax.backbones import VisionTransformer
from saol_jax.backbones.vit import resize_positions
from saol_jax.errors import UserError
from saol_jax.library_weights import match
from saol_jax.pretrained_names import inverted_residual
from tests.backbones.numerics import SameKey, abstract
from tests.torch_shapes import Shapes, classifier, zeros

WIDTH = 12


def narrow_vit():
  """ViT-B/16 with fewer channels: the names are the same, and 86 million numbers take seconds."""
  return nnx.eval_shape(lambda: VisionTransformer(WIDTH, 4, rngs=SameKey()))


def torchvision_mobilenet_v2():
  shapes, inputs, index = Shapes(), 32, 1
  shapes.conv_norm("features.0", 32, 3, 3)
  for ratio, outputs, depth in (
    *((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4)),
    *((6, 96, 3), (6, 160, 3), (6, 320, 1)),
  ):
    for _ in range(depth):
      block, inner = f"features.{index}.conv", ratio * inputs
      if ratio > 1:
        shapes.conv_norm(f"{block}.0", inner, inputs, 1)
      place = int(ratio > 1)
      shapes.conv_norm(f"{block}.{place}", inner, 1, 3)
      shapes.conv(f"{block}.{place + 1}", outputs, inner, 1)
      shapes.batch_norm(f"{block}.{place + 2}", outputs)
      inputs, index = outputs, index + 1
  shapes.conv_norm("features.18", 1280, 320, 1)
  shapes.linear("classifier.1", 1000, 1280)
  return shapes


def torchvision_efficientnet_b0():
  shapes, inputs = Shapes(), 32
  shapes.conv_norm("features.0", 32, 3, 3)
  for row, (ratio, size, outputs, depth) in enumerate(
    (
      *((1, 3, 16, 1), (6, 3, 24, 2), (6, 5, 40, 2), (6, 3, 80, 3)),
      *((6, 5, 112, 3), (6, 5, 192, 4), (6, 3, 320, 1)),
    )
  ):
    for i in range(depth):
      block, inner, place = f"features.{row + 1}.{i}.block", ratio * inputs, int(ratio > 1)
      if ratio > 1:
        shapes.conv_norm(f"{block}.0", inner, inputs, 1)
      shapes.conv_norm(f"{block}.{place}", inner, 1, size)
      shapes.conv(f"{block}.{place + 1}.fc1", inputs // 4, inner, 1, bias=True)
      shapes.conv(f"{block}.{place + 1}.fc2", inner, inputs // 4, 1, bias=True)
      shapes.conv_norm(f"{block}.{place + 2}", outputs, inner, 1)
      inputs = outputs
  shapes.conv_norm("features.8", 1280, 320, 1)
  shapes.linear("classifier.1", 1000, 1280)
  return shapes


def convnext_tiny(*, authors):
  shapes, inputs = Shapes(), 3
  for stage, (depth, width) in enumerate(zip((3, 3, 9, 3), (96, 192, 384, 768), strict=True)):
    down = f"downsample_layers.{stage}" if authors else f"features.{2 * stage}"
    if stage:
      shapes.layer_norm(f"{down}.0", inputs)
      shapes.conv(f"{down}.1", width, inputs, 2, bias=True)
    else:
      shapes.conv(f"{down}.0", width, inputs, 4, bias=True)
      shapes.layer_norm(f"{down}.1", width)
    for i in range(depth):
      block = f"stages.{stage}.{i}" if authors else f"features.{2 * stage + 1}.{i}"
      parts = ("block.0", "block.2", "block.3", "block.5")
      parts = ("dwconv", "norm", "pwconv1", "pwconv2") if authors else parts
      shapes[f"{block}.{'gamma' if authors else 'layer_scale'}"] = (
        (width,) if authors else (width, 1, 1)
      )
      shapes.conv(f"{block}.{parts[0]}", width, 1, 7, bias=True)
      shapes.layer_norm(f"{block}.{parts[1]}", width)
      shapes.linear(f"{block}.{parts[2]}", 4 * width, width)
      shapes.linear(f"{block}.{parts[3]}", width, 4 * width)
    inputs = width
  shapes.layer_norm("norm" if authors else "classifier.0", 768)
  shapes.linear("head" if authors else "classifier.2", 1000, 768)
  return shapes


def torchvision_vit_b_16(mlp=("mlp.0", "mlp.3"), grid=14):
  shapes = Shapes({"class_token": (1, 1, WIDTH)})
  shapes.conv("conv_proj", WIDTH, 3, 16, bias=True)
  shapes["encoder.pos_embedding"] = (1, 1 + grid * grid, WIDTH)
  for i in range(12):
    block = f"encoder.layers.encoder_layer_{i}"
    shapes.layer_norm(f"{block}.ln_1", WIDTH)
    shapes[f"{block}.self_attention.in_proj_weight"] = (3 * WIDTH, WIDTH)
    shapes[f"{block}.self_attention.in_proj_bias"] = (3 * WIDTH,)
    shapes.linear(f"{block}.self_attention.out_proj", WIDTH, WIDTH)
    shapes.layer_norm(f"{block}.ln_2", WIDTH)
    shapes.linear(f"{block}.{mlp[0]}", 4 * WIDTH, WIDTH)
    shapes.linear(f"{block}.{mlp[1]}", WIDTH, 4 * WIDTH)
  shapes.layer_norm("encoder.ln", WIDTH)
  shapes.linear("heads.head", 1000, WIDTH)
  return shapes


def hub_vit_base_patch16_224():
  """The files on the Hugging Face hub, which keep the names of transformers 4."""
  shapes = Shapes({"vit.embeddings.cls_token": (1, 1, WIDTH)})
  shapes["vit.embeddings.position_embeddings"] = (1, 197, WIDTH)
  shapes.conv("vit.embeddings.patch_embeddings.projection", WIDTH, 3, 16, bias=True)
  for i in range(12):
    block = f"vit.encoder.layer.{i}"
    for part in ("query", "key", "value"):
      shapes.linear(f"{block}.attention.attention.{part}", WIDTH, WIDTH)
    shapes.linear(f"{block}.attention.output.dense", WIDTH, WIDTH)
    shapes.linear(f"{block}.intermediate.dense", 4 * WIDTH, WIDTH)
    shapes.linear(f"{block}.output.dense", WIDTH, 4 * WIDTH)
    shapes.layer_norm(f"{block}.layernorm_before", WIDTH)
    shapes.layer_norm(f"{block}.layernorm_after", WIDTH)
  shapes.layer_norm("vit.layernorm", WIDTH)
  shapes.linear("classifier", 1000, WIDTH)
  return shapes


# The counts are len(NAME().state_dict()).
@pytest.mark.parametrize(
  ("backbone", "shapes", "count", "library"),
  [
    ("mobilenet_v2", torchvision_mobilenet_v2(), 314, "torchvision"),
    ("efficientnet_b0", torchvision_efficientnet_b0(), 360, "torchvision"),
    ("convnext_tiny", convnext_tiny(authors=False), 182, "torchvision"),
    ("convnext_tiny", convnext_tiny(authors=True), 182, "the authors' code"),
    (narrow_vit, torchvision_vit_b_16(), 152, "torchvision"),
    (narrow_vit, torchvision_vit_b_16(("mlp.linear_1", "mlp.linear_2")), 152, "torchvision"),
    (narrow_vit, hub_vit_base_patch16_224(), 200, "Hugging Face transformers"),
  ],
)
def test_every_tensor_is_used_once_and_every_parameter_filled(backbone, shapes, count, library):
  assert len(shapes) == count
  is_vit = backbone is narrow_vit
  found = match(classifier(backbone() if is_vit else backbone), zeros(shapes), "a.pth")
  assert found.library == library
  tracked = {key for key in shapes if key.endswith("num_batches_tracked")}
  # A vision transformer's classifier reads the class token, which GAP-FC does not.
  token = {key for key in shapes if is_vit and ("head" in key or key.startswith("classi"))}
  assert sorted(found.used) == sorted(shapes.keys() - tracked - token)
  assert set(found.left_over) == token
  assert set(found.missing) == ({"gap.linear.kernel", "gap.linear.bias"} if token else set())


def test_queries_keys_and_values_are_joined_in_this_order():
  shapes = hub_vit_base_patch16_224()
  tensors = zeros(shapes)
  for i, part in enumerate(("query", "key", "value")):
    name = f"vit.encoder.layer.3.attention.attention.{part}"
    tensors[f"{name}.weight"] = np.full((WIDTH, WIDTH), i, np.int8)
    tensors[f"{name}.weight"][:, 5] = 7  # an input
  kernel = match(classifier(narrow_vit()), tensors, "a").values[
    ("backbone", "blocks", 3, "qkv", "kernel")
  ]
  np.testing.assert_array_equal(kernel[0], np.repeat([0, 1, 2], WIDTH))
  np.testing.assert_array_equal(kernel[5], np.full(3 * WIDTH, 7))


def test_positions_of_another_size_are_resized():
  tensors = zeros(torchvision_vit_b_16(grid=24))  # of images of 384 pixels
  positions = np.random.default_rng(0).normal(size=(1, 577, WIDTH)).astype(np.float32)
  tensors["encoder.pos_embedding"] = positions
  got = match(classifier(narrow_vit()), tensors, "a").values[("backbone", "positions")]
  expected = resize_positions(jnp.asarray(positions[0]), (14, 14))
  assert expected.shape == (197, WIDTH)
  np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
  ("name", "fit"), [("tf_mobilenet_v2", "mobilenet_v2"), ("tf_efficientnet_b0", "efficientnet_b0")]
)
def test_torchvisions_weights_do_not_belong_into_tensorflows_network(name, fit):
  shapes = torchvision_mobilenet_v2() if "mobile" in name else torchvision_efficientnet_b0()
  with pytest.raises(UserError, match=r"Leave the 'tf_' out of model\.name"):
    match(classifier(name), zeros(shapes), "a.pth")
  assert match(classifier(fit), zeros(shapes), "a.pth").missing == ()


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0"])
def test_weights_of_transformers_belong_into_tensorflows_network(name):
  fits, other = abstract(f"tf_{name}"), abstract(name)
  assert inverted_residual.TRANSFORMERS.objection(fits) is None
  assert "Put 'tf_' before model.name" in inverted_residual.TRANSFORMERS.objection(other)
  assert inverted_residual.TIMM.objection(fits) is inverted_residual.TIMM.objection(other) is None
