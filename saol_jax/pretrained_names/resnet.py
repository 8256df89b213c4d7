"""Names of ResNets, and of what is built like them: ResNeXt, wide ResNet-50-2."""

from collections.abc import Iterator

from saol_jax.backbones import ResNet
from saol_jax.backbones.deformable import DeformableConv
from saol_jax.pretrained_names.naming import Naming


def _torchvision(backbone: ResNet) -> Iterator[tuple[str, str]]:
  yield "conv1", "stem"
  yield "bn1", "norm"
  for s, blocks in enumerate(backbone.stages):
    for b, block in enumerate(blocks):
      theirs, ours = f"layer{s + 1}.{b}", f"stages/{s}/{b}"
      for c in range(len(block.convs)):
        yield f"{theirs}.conv{c + 1}", f"{ours}/convs/{c}"
        yield f"{theirs}.bn{c + 1}", f"{ours}/norms/{c}"
      if block.shortcut_conv:
        yield f"{theirs}.downsample.0", f"{ours}/shortcut_conv"
        yield f"{theirs}.downsample.1", f"{ours}/shortcut_norm"


def _mmdetection(backbone: ResNet) -> Iterator[tuple[str, str]]:
  """The same, and what predicts the offsets of deformable convolutions."""
  yield from _torchvision(backbone)
  for s, blocks in enumerate(backbone.stages):
    for b, block in enumerate(blocks):
      for c, conv in enumerate(block.convs):
        if isinstance(conv, DeformableConv):
          yield f"layer{s + 1}.{b}.conv{c + 1}.conv_offset", f"stages/{s}/{b}/convs/{c}/offset"


def _transformers(backbone: ResNet) -> Iterator[tuple[str, str]]:
  yield "embedder.embedder.convolution", "stem"
  yield "embedder.embedder.normalization", "norm"
  for s, blocks in enumerate(backbone.stages):
    for b, block in enumerate(blocks):
      theirs, ours = f"encoder.stages.{s}.layers.{b}", f"stages/{s}/{b}"
      for c in range(len(block.convs)):
        yield f"{theirs}.layer.{c}.convolution", f"{ours}/convs/{c}"
        yield f"{theirs}.layer.{c}.normalization", f"{ours}/norms/{c}"
      if block.shortcut_conv:
        yield f"{theirs}.shortcut.convolution", f"{ours}/shortcut_conv"
        yield f"{theirs}.shortcut.normalization", f"{ours}/shortcut_norm"


TORCHVISION = Naming("torchvision and timm", _torchvision, "fc")
MMDETECTION = Naming("mmdetection", _mmdetection, None)
TRANSFORMERS = Naming("Hugging Face transformers", _transformers, "classifier.1")
