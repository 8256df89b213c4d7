"""Names of vision transformers; their classifiers read the class token, which GAP-FC does not."""

import functools
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from saol_jax.backbones import VisionTransformer
from saol_jax.backbones.vit import resize_positions
from saol_jax.pretrained_names.naming import Naming, Pair

_PARTS = ("norm1", "qkv", "project", "norm2", "expand", "contract")


def _positions(backbone: VisionTransformer, array: np.ndarray) -> np.ndarray:
  """(1, 1 + n, C) of theirs, learnt at any size of images, for our grid."""
  side = backbone.grid
  return np.asarray(resize_positions(jnp.asarray(array[0], jnp.float32), (side, side)))


def _pairs(
  backbone: VisionTransformer,
  *,
  patches: str,
  class_token: str,
  positions: str,
  block: str,
  parts: tuple[str | tuple[str, ...], ...],
  norm: str,
) -> Iterator[Pair]:
  """What all libraries share.

  Args:
    backbone: ours.
    patches: name of the convolution of patches.
    class_token, positions: names of these tensors.
    block: name of a block, with braces for its number.
    parts: names of the layers of a block; a tuple of names for separate queries, keys and values,
      None for what the library does not keep in a layer.
    norm: name of the last norm.
  """
  yield patches, "patches"
  yield class_token, "class_token", lambda array: array[0]
  yield positions, "positions", functools.partial(_positions, backbone)
  for i in range(len(backbone.blocks)):
    theirs, ours = block.format(i), f"blocks/{i}"
    for part, names in zip(_PARTS, parts, strict=True):
      if isinstance(names, tuple):
        yield tuple(f"{theirs}.{name}" for name in names), f"{ours}/{part}"
      elif names:
        yield f"{theirs}.{names}", f"{ours}/{part}"
  yield norm, "norm"


def _timm(backbone: VisionTransformer) -> Iterator[Pair]:
  return _pairs(
    backbone,
    patches="patch_embed.proj",
    class_token="cls_token",
    positions="pos_embed",
    block="blocks.{}",
    parts=("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"),
    norm="norm",
  )


def _torchvision(backbone: VisionTransformer, mlp: tuple[str, str]) -> Iterator[Pair]:
  block = "encoder.layers.encoder_layer_{}"
  yield from _pairs(
    backbone,
    patches="conv_proj",
    class_token="class_token",
    positions="encoder.pos_embedding",
    block=block,
    parts=("ln_1", None, "self_attention.out_proj", "ln_2", *mlp),
    norm="encoder.ln",
  )
  for i in range(len(backbone.blocks)):
    theirs, ours = f"{block.format(i)}.self_attention", f"blocks/{i}/qkv"
    yield f"{theirs}.in_proj_weight", f"{ours}/kernel", np.transpose
    yield f"{theirs}.in_proj_bias", f"{ours}/bias"


def _transformers(backbone: VisionTransformer) -> Iterator[Pair]:
  return _pairs(
    backbone,
    patches="embeddings.patch_embeddings.projection",
    class_token="embeddings.cls_token",
    positions="embeddings.position_embeddings",
    block="encoder.layer.{}",
    parts=(
      "layernorm_before",
      tuple(f"attention.attention.{name}" for name in ("query", "key", "value")),
      "attention.output.dense",
      "layernorm_after",
      "intermediate.dense",
      "output.dense",
    ),
    norm="layernorm",
  )


def _transformers_5(backbone: VisionTransformer) -> Iterator[Pair]:
  return _pairs(
    backbone,
    patches="embeddings.patch_embeddings.projection",
    class_token="embeddings.cls_token",
    positions="embeddings.position_embeddings",
    block="layers.{}",
    parts=(
      "layernorm_before",
      tuple(f"attention.{name}_proj" for name in "qkv"),
      "attention.o_proj",
      "layernorm_after",
      "mlp.fc1",
      "mlp.fc2",
    ),
    norm="layernorm",
  )


TIMM = Naming("timm", _timm, None)
# The published files have the older names, which torchvision renames as it loads them.
TORCHVISION = Naming("torchvision", functools.partial(_torchvision, mlp=("mlp.0", "mlp.3")), None)
TORCHVISION_FILES = Naming(
  "torchvision", functools.partial(_torchvision, mlp=("mlp.linear_1", "mlp.linear_2")), None
)
# Likewise; and transformers 5 in memory.
TRANSFORMERS = Naming("Hugging Face transformers", _transformers, None)
TRANSFORMERS_5 = Naming("Hugging Face transformers 5", _transformers_5, None)
