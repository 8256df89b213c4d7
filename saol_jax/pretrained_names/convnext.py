"""Names of ConvNeXt."""

from collections.abc import Callable, Iterator

from saol_jax.backbones import ConvNeXt
from saol_jax.pretrained_names.naming import Naming, Pair

_PARTS = ("depthwise", "norm", "expand", "contract")


def _pairs(
  backbone: ConvNeXt,
  *,
  stem: tuple[str, str],
  downsample: Callable[[int], str],
  block: Callable[[int, int], str],
  parts: tuple[str, ...],
  scale: str,
  norm: str,
) -> Iterator[Pair]:
  """What all libraries share.

  Args:
    backbone: ours.
    stem: names of the first convolution and of its norm.
    downsample: from the number of a stage to the name of what precedes it: a norm and a conv.
    block: from the numbers of a stage and of a block in it to the block's name.
    parts: names of the layers of a block.
    scale: name of its layer scale.
    norm: name of the last norm.
  """
  yield stem[0], "stem"
  yield stem[1], "stem_norm"
  for s, blocks in enumerate(backbone.stages):
    if s:
      yield f"{downsample(s)}.0", f"downsample_norms/{s - 1}"
      yield f"{downsample(s)}.1", f"downsamples/{s - 1}"
    for b in range(len(blocks)):
      theirs, ours = block(s, b), f"stages/{s}/{b}"
      for part, name in zip(_PARTS, parts, strict=True):
        yield f"{theirs}.{name}", f"{ours}/{part}"
      # (C,), or (C, 1, 1) in torchvision.
      yield f"{theirs}.{scale}", f"{ours}/scale", lambda array: array.reshape(-1)
  yield f"{norm}.weight", "norm/scale"
  yield f"{norm}.bias", "norm/bias"


def _torchvision(backbone: ConvNeXt) -> Iterator[Pair]:
  return _pairs(
    backbone,
    stem=("features.0.0", "features.0.1"),
    downsample=lambda s: f"features.{2 * s}",
    block=lambda s, b: f"features.{2 * s + 1}.{b}",
    parts=("block.0", "block.2", "block.3", "block.5"),
    scale="layer_scale",
    norm="classifier.0",
  )


def _timm(backbone: ConvNeXt) -> Iterator[Pair]:
  return _pairs(
    backbone,
    stem=("stem.0", "stem.1"),
    downsample=lambda s: f"stages.{s}.downsample",
    block=lambda s, b: f"stages.{s}.blocks.{b}",
    parts=("conv_dw", "norm", "mlp.fc1", "mlp.fc2"),
    scale="gamma",
    norm="head.norm",
  )


def _authors(backbone: ConvNeXt) -> Iterator[Pair]:
  return _pairs(
    backbone,
    stem=("downsample_layers.0.0", "downsample_layers.0.1"),
    downsample=lambda s: f"downsample_layers.{s}",
    block=lambda s, b: f"stages.{s}.{b}",
    parts=("dwconv", "norm", "pwconv1", "pwconv2"),
    scale="gamma",
    norm="norm",
  )


def _transformers(backbone: ConvNeXt) -> Iterator[Pair]:
  return _pairs(
    backbone,
    stem=("embeddings.patch_embeddings", "embeddings.layernorm"),
    downsample=lambda s: f"encoder.stages.{s}.downsampling_layer",
    block=lambda s, b: f"encoder.stages.{s}.layers.{b}",
    parts=("dwconv", "layernorm", "pwconv1", "pwconv2"),
    scale="layer_scale_parameter",
    norm="layernorm",
  )


TORCHVISION = Naming("torchvision", _torchvision, "classifier.2")
TIMM = Naming("timm", _timm, "head.fc")
AUTHORS = Naming("the authors' code", _authors, "head")
TRANSFORMERS = Naming("Hugging Face transformers", _transformers, "classifier")
