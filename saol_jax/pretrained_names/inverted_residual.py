"""Names of MobileNetV2 and EfficientNet."""

from collections.abc import Iterator

from saol_jax.backbones import InvertedResidualNetwork
from saol_jax.pretrained_names.naming import Naming

# Layers of a block in their order, as (attribute, attribute of its norm).
_CHAIN = (
  ("expand", "expand_norm"),
  ("depthwise", "depthwise_norm"),
  ("gate", None),
  ("project", "project_norm"),
)


def _blocks(backbone: InvertedResidualNetwork) -> Iterator[tuple[int, int, str, list]]:
  """Row, place in it, our path and the layers that there are, of each block."""
  for row, blocks in enumerate(backbone.rows):
    for i, block in enumerate(blocks):
      yield row, i, f"rows/{row}/{i}", [pair for pair in _CHAIN if getattr(block, pair[0])]


def _torchvision(backbone: InvertedResidualNetwork) -> Iterator[tuple[str, str]]:
  yield "features.0.0", "stem"
  yield "features.0.1", "stem_norm"
  last = 1
  for row, i, ours, chain in _blocks(backbone):
    if backbone.has_gates:
      theirs, last = f"features.{row + 1}.{i}.block", row + 2
    else:
      theirs, last = f"features.{last}.conv", last + 1
    for place, (layer, norm) in enumerate(chain):
      if layer == "gate":
        yield f"{theirs}.{place}.fc1", f"{ours}/gate/reduce"
        yield f"{theirs}.{place}.fc2", f"{ours}/gate/expand"
      elif layer == "project" and not backbone.has_gates:
        yield f"{theirs}.{place}", f"{ours}/project"
        yield f"{theirs}.{place + 1}", f"{ours}/project_norm"
      else:
        yield f"{theirs}.{place}.0", f"{ours}/{layer}"
        yield f"{theirs}.{place}.1", f"{ours}/{norm}"
  yield f"features.{last}.0", "head"
  yield f"features.{last}.1", "head_norm"


def _timm(backbone: InvertedResidualNetwork) -> Iterator[tuple[str, str]]:
  yield "conv_stem", "stem"
  yield "bn1", "stem_norm"
  for row, i, ours, chain in _blocks(backbone):
    theirs = f"blocks.{row}.{i}"
    convs = (
      ("conv_pw", "conv_dw", "conv_pwl") if chain[0][0] == "expand" else ("conv_dw", "conv_pw")
    )
    with_norm = [pair for pair in chain if pair[1]]
    for place, (conv, (layer, norm)) in enumerate(zip(convs, with_norm, strict=True)):
      yield f"{theirs}.{conv}", f"{ours}/{layer}"
      yield f"{theirs}.bn{place + 1}", f"{ours}/{norm}"
    if backbone.has_gates:
      yield f"{theirs}.se.conv_reduce", f"{ours}/gate/reduce"
      yield f"{theirs}.se.conv_expand", f"{ours}/gate/expand"
  yield "conv_head", "head"
  yield "bn2", "head_norm"


def _transformers(backbone: InvertedResidualNetwork) -> Iterator[tuple[str, str]]:
  return (_transformers_efficientnet if backbone.has_gates else _transformers_mobilenet)(backbone)


def _transformers_mobilenet(backbone: InvertedResidualNetwork) -> Iterator[tuple[str, str]]:
  def layer(theirs, ours, norm):
    yield f"{theirs}.convolution", ours
    yield f"{theirs}.normalization", norm

  names = {"expand": "expand_1x1", "depthwise": "conv_3x3", "project": "reduce_1x1"}
  yield from layer("conv_stem.first_conv", "stem", "stem_norm")
  for count, (_, _, ours, chain) in enumerate(_blocks(backbone)):
    theirs = f"layer.{count - 1}" if count else "conv_stem"
    for name, norm in chain:
      yield from layer(f"{theirs}.{names[name]}", f"{ours}/{name}", f"{ours}/{norm}")
  yield from layer("conv_1x1", "head", "head_norm")


def _transformers_efficientnet(backbone: InvertedResidualNetwork) -> Iterator[tuple[str, str]]:
  names = {
    "expand": ("expansion.expand_conv", "expansion.expand_bn"),
    "depthwise": ("depthwise_conv.depthwise_conv", "depthwise_conv.depthwise_norm"),
    "project": ("projection.project_conv", "projection.project_bn"),
  }
  yield "embeddings.convolution", "stem"
  yield "embeddings.batchnorm", "stem_norm"
  for count, (_, _, ours, chain) in enumerate(_blocks(backbone)):
    theirs = f"encoder.blocks.{count}"
    for layer, norm in chain:
      if layer == "gate":
        yield f"{theirs}.squeeze_excite.reduce", f"{ours}/gate/reduce"
        yield f"{theirs}.squeeze_excite.expand", f"{ours}/gate/expand"
      else:
        conv, batchnorm = names[layer]
        yield f"{theirs}.{conv}", f"{ours}/{layer}"
        yield f"{theirs}.{batchnorm}", f"{ours}/{norm}"
  yield "encoder.top_conv", "head"
  yield "encoder.top_bn", "head_norm"


def _not_tensorflows(backbone: InvertedResidualNetwork) -> str | None:
  if backbone.tensorflow:
    return (
      "has torchvision's names, and model.name is a network with TensorFlow's padding and "
      "normalisation, which would spoil its features. Leave the 'tf_' out of model.name"
    )
  return None


def _tensorflows(backbone: InvertedResidualNetwork) -> str | None:
  if not backbone.tensorflow:
    return (
      "has the names of Hugging Face transformers, whose weights come from TensorFlow: its padding "
      "and normalisation are not those of model.name, which would spoil the features. Put 'tf_' "
      "before model.name"
    )
  return None


TORCHVISION = Naming("torchvision", _torchvision, "classifier.1", _not_tensorflows)
# timm has both kinds, with the same names.
TIMM = Naming("timm", _timm, "classifier")
TRANSFORMERS = Naming("Hugging Face transformers", _transformers, "classifier", _tensorflows)
