"""Names of DenseNet, VGG, PyramidNet, NASNet and deformable ResNet, from the references' code."""

import numpy as np
import pytest

from saol_jax.library_weights import match
from tests.torch_shapes import Shapes, classifier, zeros


def torchvision_densenet121(layer="{}{}"):
  shapes, channels = Shapes(), 64
  shapes.conv("features.conv0", 64, 3, 7)
  shapes.batch_norm("features.norm0", 64)
  for i, depth in enumerate((6, 12, 24, 16)):
    for j in range(depth):
      name = f"features.denseblock{i + 1}.denselayer{j + 1}."
      shapes.batch_norm(name + layer.format("norm", 1), channels)
      shapes.conv(name + layer.format("conv", 1), 128, channels, 1)
      shapes.batch_norm(name + layer.format("norm", 2), 128)
      shapes.conv(name + layer.format("conv", 2), 32, 128, 3)
      channels += 32
    if i < 3:
      shapes.batch_norm(f"features.transition{i + 1}.norm", channels)
      shapes.conv(f"features.transition{i + 1}.conv", channels // 2, channels, 1)
      channels //= 2
  shapes.batch_norm("features.norm5", channels)
  shapes.linear("classifier", 1000, channels)
  return shapes


VGG16 = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256}
VGG16 |= {17: 512, 19: 512, 21: 512, 24: 512, 26: 512, 28: 512}


def vgg16_features():
  shapes, channels = Shapes(), 3
  for index, width in VGG16.items():
    shapes.conv(f"features.{index}", width, channels, 3, bias=True)
    channels = width
  return shapes


def wsolevaluation_vgg16():
  shapes = vgg16_features()
  shapes.conv("conv6", 1024, 512, 3, bias=True)
  shapes.linear("fc", 1000, 1024)
  return shapes


def cutmix_pyramidnet110():
  shapes, channels = Shapes(), 16
  shapes.conv("module.conv1", 16, 3, 3)
  shapes.batch_norm("module.bn1", 16)
  for i in range(36):
    inner = round(16 + 64 * (i + 1) / 36)
    name = f"module.layer{i // 12 + 1}.{i % 12}"
    shapes.batch_norm(f"{name}.bn1", channels)
    shapes.conv(f"{name}.conv1", inner, channels, 1)
    shapes.batch_norm(f"{name}.bn2", inner)
    shapes.conv(f"{name}.conv2", inner, inner, 3)
    shapes.batch_norm(f"{name}.bn3", inner)
    shapes.conv(f"{name}.conv3", 4 * inner, inner, 1)
    shapes.batch_norm(f"{name}.bn4", 4 * inner)
    channels = 4 * inner
  shapes.batch_norm("module.bn_final", channels)
  shapes.linear("module.fc", 1000, channels)
  return shapes


def cadene_nasnetamobile():
  shapes = Shapes()

  def norm_after_conv(conv, norm, outputs, inputs):
    shapes.conv(conv, outputs, inputs, 1)
    shapes.batch_norm(norm, outputs)

  def branch(name, outputs, inputs, size):
    for i, channels in ((1, inputs), (2, outputs)):
      shapes.conv(f"{name}.separable_{i}.depthwise_conv2d", channels, 1, size)
      shapes.conv(f"{name}.separable_{i}.pointwise_conv2d", outputs, channels, 1)
      shapes.batch_norm(f"{name}.bn_sep_{i}", outputs)

  def inputs_of(cell, filters, left, right, *, halves):
    norm_after_conv(f"{cell}.conv_1x1.conv", f"{cell}.conv_1x1.bn", filters, right)
    if halves:
      shapes.conv(f"{cell}.path_1.conv", filters // 2, left, 1)
      shapes.conv(f"{cell}.path_2.conv", filters // 2, left, 1)
      shapes.batch_norm(f"{cell}.final_path_bn", filters)
    elif left:
      norm_after_conv(f"{cell}.conv_prev_1x1.conv", f"{cell}.conv_prev_1x1.bn", filters, left)

  def normal(cell, filters, left, right, *, first=False):
    inputs_of(cell, filters, left, right, halves=first)
    for name, size in (("0_left", 5), ("0_right", 3), ("1_left", 5), ("1_right", 3), ("4_left", 3)):
      branch(f"{cell}.comb_iter_{name}", filters, filters, size)

  def reduction(cell, filters, left, right, *, halves=False, raw=None):
    inputs_of(cell, filters, left, right, halves=halves)
    for name, size in (("0_right", 7), ("1_right", 7), ("2_right", 5)):
      branch(f"{cell}.comb_iter_{name}", filters, raw or filters, size)
    for name, size in (("0_left", 5), ("4_left", 3)):
      branch(f"{cell}.comb_iter_{name}", filters, filters, size)

  # In filters of 44, as the reference's comments count them.
  shapes.conv("conv0.conv", 32, 3, 3)
  shapes.batch_norm("conv0.bn", 32)
  reduction("cell_stem_0", 11, None, 32, raw=32)
  reduction("cell_stem_1", 22, 32, 44, halves=True)
  left, right = 44, 88
  for number, filters in ((0, 44), (6, 88), (12, 176)):
    if number:
      reduction(f"reduction_cell_{number // 6 - 1}", filters, left, right)
      left, right = right, 4 * filters
    for i in range(4):
      normal(f"cell_{number + i}", filters, left, right, first=i == 0)
      left, right = right, 6 * filters
  shapes.linear("last_linear", 1000, 1056)
  return shapes


def tensors_of(shapes):
  return {name for name in shapes if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
  ("name", "shapes", "library"),
  [
    ("densenet121", torchvision_densenet121(), "torchvision and timm"),
    ("densenet121", torchvision_densenet121("{}.{}"), "torchvision's downloads"),
    ("nasnet_mobile", cadene_nasnetamobile(), "Cadene's pretrained-models.pytorch"),
    ("pyramidnet110_a64", cutmix_pyramidnet110(), "CutMix-PyTorch and PyramidNet-PyTorch"),
    ("vgg16_gap", wsolevaluation_vgg16(), "wsolevaluation"),
  ],
)
def test_every_tensor_is_used_once_and_every_parameter_filled(name, shapes, library):
  found = match(classifier(name), zeros(shapes), "a.pth")
  assert found.library == library
  assert set(found.used) == tensors_of(shapes)
  assert len(found.values) == len(found.used) == len(set(found.used))
  assert found.missing == found.left_over == ()


def test_counts_of_the_lists_above():
  # len(torchvision.models.densenet121().state_dict()); 5,289,978 parameters of nasnetamobile.
  assert len(torchvision_densenet121()) == 727
  parameters = {n: s for n, s in cadene_nasnetamobile().items() if "running" not in n}
  assert sum(int(np.prod(s)) for s in parameters.values() if s) == 5_289_978


def test_vgg16_of_torchvision_has_no_last_convolution():
  shapes = vgg16_features()
  classifiers = {f"classifier.{index}.weight": (1000, 1) for index in (0, 3, 6)}  # much larger
  found = match(classifier("vgg16_gap"), zeros(shapes | classifiers), "a.pth")
  assert set(found.used) == set(shapes)
  assert set(found.left_over) == set(classifiers)
  assert set(found.missing) == {
    "backbone.stages.4.3.kernel",
    "backbone.stages.4.3.bias",
    "gap.linear.kernel",
    "gap.linear.bias",
  }


@pytest.mark.parametrize("offsets", [False, True])
def test_a_deformable_resnet_takes_a_plain_one_and_its_own(offsets):
  shapes, inputs = Shapes(), 64
  shapes.conv("backbone.conv1", 64, 3, 7)
  shapes.batch_norm("backbone.bn1", 64)
  for stage, depth in enumerate((3, 4, 6, 3)):
    inner = 64 * 2**stage
    for i in range(depth):
      name = f"backbone.layer{stage + 1}.{i}"
      for c, (outputs, before, size) in enumerate(
        ((inner, inputs, 1), (inner, inner, 3), (4 * inner, inner, 1))
      ):
        shapes.conv(f"{name}.conv{c + 1}", outputs, before, size)
        shapes.batch_norm(f"{name}.bn{c + 1}", outputs)
      if stage and offsets:
        shapes.conv(f"{name}.conv2.conv_offset", 27, inner, 3, bias=True)
      if i == 0:
        shapes.conv(f"{name}.downsample.0", 4 * inner, inputs, 1)
        shapes.batch_norm(f"{name}.downsample.1", 4 * inner)
      inputs = 4 * inner
  found = match(classifier("resnet50_dcn"), zeros(shapes), "a.pth")
  assert set(found.used) == tensors_of(shapes)
  assert found.library == ("mmdetection" if offsets else "torchvision and timm")
  missing = [path for path in found.missing if not path.startswith("gap.")]
  assert len(missing) == (0 if offsets else 2 * 13)
  assert all(".convs.1.offset." in path for path in missing)
