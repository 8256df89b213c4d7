"""Our backbones compute what transformers and timm compute from the same weights.

Random weights and random statistics, so that nothing is hidden by a scale of 0 or 1, in float32, in
evaluation, on images that are not square.
"""

import collections
import functools
import importlib.util

import numpy as np
import pytest

for _name in ("torch", "transformers", "timm"):
  if importlib.util.find_spec(_name) is None:
    pytest.skip(f"{_name} is not installed: make test-parity does it", allow_module_level=True)

import torch  # noqa: E402
import transformers  # noqa: E402

from saol_jax.backbones import (  # noqa: E402
  ConvNeXt,
  ResNet,
  VisionTransformer,
)
from saol_jax.backbones.efficientnet import _efficientnet  # noqa: E402
from tests.backbones.numerics import images  # noqa: E402
from tests.parity import references  # noqa: E402

timm = references.import_timm()


def assert_same(backbone, module, names, *, height=75, width=101, logits=True):
  """Maps and, where the classifiers read the same, logits."""
  x = images(height=height, width=width)
  module = references.randomise(module)
  maps, scores = references.theirs(module, x, names)
  got, got_scores, pretrained = references.ours(backbone, module, x)
  assert len(got) == len(maps)
  for mine, their in zip(got, maps, strict=True):
    references.assert_close(mine, their)
  if logits:
    references.assert_close(got_scores, scores)
    assert pretrained.left_over == ()
  assert not [path for path in pretrained.missing if path.startswith("backbone")]


@pytest.mark.parametrize("bottleneck", [False, True])
def test_resnet_of_transformers(bottleneck):
  config = transformers.ResNetConfig(
    embedding_size=4,
    hidden_sizes=[16, 32, 64, 128] if bottleneck else [4, 8, 16, 32],
    depths=[2, 1, 1, 1],
    layer_type="bottleneck" if bottleneck else "basic",
    num_labels=5,
  )
  assert_same(
    functools.partial(ResNet, (2, 1, 1, 1), bottleneck=bottleneck, width=4),
    transformers.ResNetForImageClassification(config),
    [f"resnet.encoder.stages.{i}" for i in range(4)],
  )


@pytest.mark.parametrize(
  ("theirs", "ours"),
  [
    ("resnet18", "resnet18"),
    ("resnet50", "resnet50"),
    ("resnext50_32x4d", "resnext50_32x4d"),
    ("wide_resnet50_2", "wide_resnet50_2"),
  ],
)
def test_resnet_of_timm(theirs, ours):
  assert_same(ours, timm.create_model(theirs), [f"layer{i}" for i in range(1, 5)])


def test_densenet_of_timm():
  names = [f"features.denseblock{i}" for i in (1, 2, 3)]
  assert_same("densenet121", timm.create_model("densenet121"), [*names, "features.norm5"])


def test_vgg_of_timm():
  # Without its dense layers, and without the last convolution of ours, which it does not have.
  features = collections.OrderedDict(features=timm.create_model("vgg16").features)
  module, x = references.randomise(torch.nn.Sequential(features)), images(height=75, width=101)
  maps, _ = references.theirs(module, x, [f"features.{i}" for i in (3, 8, 15, 22)])
  got, _, _ = references.ours("vgg16_gap", module, x)
  for mine, their in zip(got[:4], maps, strict=True):
    references.assert_close(mine, their)


def test_mobilenet_of_transformers():
  # The config's own epsilon, 1e-3, and padding, at an odd size.
  module = transformers.MobileNetV2ForImageClassification(transformers.MobileNetV2Config())
  names = [f"mobilenet_v2.{name}" for name in ("layer.1", "layer.4", "layer.11", "conv_1x1")]
  assert_same("tf_mobilenet_v2", module, names)


def test_efficientnet_of_transformers():
  config = transformers.EfficientNetConfig(
    width_coefficient=0.5, depth_coefficient=0.4, hidden_dim=640, num_labels=5
  )
  depths = np.cumsum([1, 1, 1, 2, 2, 2, 1])  # of the table's 1, 2, 2, 3, 3, 4, 1
  names = [f"efficientnet.encoder.blocks.{depths[row] - 1}" for row in (1, 2, 4)]
  assert_same(
    functools.partial(_efficientnet, 0.5, 0.4, tensorflow=True),
    transformers.EfficientNetForImageClassification(config),
    [*names, "efficientnet.encoder.top_activation"],
    # It pads as TensorFlow does for even sides, whatever the sides.
    height=64,
    width=96,
  )


@pytest.mark.parametrize(
  ("theirs", "ours"),
  [
    ("mobilenetv2_100", "mobilenet_v2"),
    ("efficientnet_b0", "efficientnet_b0"),
    ("tf_efficientnet_b0", "tf_efficientnet_b0"),
  ],
)
def test_inverted_residuals_of_timm(theirs, ours):
  assert_same(ours, timm.create_model(theirs), ["blocks.1", "blocks.2", "blocks.4", "bn2"])


def assert_same_convnext(backbone, module, stages, norm):
  """Theirs normalises the pooled features: the last map is normalised here, by their statistics."""
  x = images(height=75, width=101)
  module = references.randomise(module)
  (*maps, last), scores = references.theirs(module, x, stages)
  weight, bias = (module.get_parameter(f"{norm}.{p}").detach().numpy() for p in ("weight", "bias"))
  pooled = last.astype(np.float64).mean((1, 2), keepdims=True)
  deviation = np.sqrt(pooled.var(-1, keepdims=True) + 1e-6)
  maps.append((last - pooled.mean(-1, keepdims=True)) / deviation * weight + bias)
  got, got_scores, pretrained = references.ours(backbone, module, x)
  for mine, their in zip(got, maps, strict=True):
    references.assert_close(mine, their)
  references.assert_close(got_scores, scores)
  assert pretrained.left_over == ()


def test_convnext_of_transformers():
  config = transformers.ConvNextConfig(
    hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 2, 1], layer_norm_eps=1e-6, num_labels=5
  )
  assert_same_convnext(
    functools.partial(ConvNeXt, (1, 1, 2, 1), (8, 12, 16, 20)),
    transformers.ConvNextForImageClassification(config),
    [f"convnext.encoder.stages.{i}" for i in range(4)],
    "convnext.layernorm",
  )


def test_convnext_of_timm():
  module = timm.create_model("convnext_tiny")
  assert_same_convnext("convnext_tiny", module, [f"stages.{i}" for i in range(4)], "head.norm")


def assert_same_vit(backbone, module, names, *, height, width, patch_size, **options):
  """Patch tokens as maps; theirs classifies the class token, ours does not."""
  x = images(height=height, width=width)
  module = references.randomise(module)
  tokens, _ = references.theirs(module, x, names, **options)
  got, _, pretrained = references.ours(backbone, module, x)
  grid = (height // patch_size, width // patch_size)
  for mine, their in zip(got, tokens, strict=True):
    references.assert_close(mine, their[:, 1:].reshape(len(x), *grid, -1))
  # The classifier, and a pooler where there is one.
  assert all("head" in name or "classifier" in name for name in pretrained.left_over)


def test_vit_of_transformers_at_another_size():
  config = transformers.ViTConfig(
    hidden_size=24,
    num_hidden_layers=4,
    num_attention_heads=3,
    intermediate_size=96,
    image_size=32,
    patch_size=8,
    layer_norm_eps=1e-6,
    num_labels=5,
  )
  assert_same_vit(
    functools.partial(VisionTransformer, 24, 3, depth=4, patch_size=8, image_size=32),
    transformers.ViTForImageClassification(config),
    ["vit.layers.1", "vit.layers.2", "vit.layernorm"],
    height=24,
    width=60,
    patch_size=8,
    interpolate_pos_encoding=True,
  )


def test_vit_of_timm():
  names = ["blocks.9", "blocks.10", "norm"]
  module = timm.create_model("vit_small_patch16_224")
  assert_same_vit("vit_small_16", module, names, height=224, width=224, patch_size=16)
