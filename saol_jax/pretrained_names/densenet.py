"""Names of DenseNets."""

import functools
from collections.abc import Iterator

from saol_jax.backbones import DenseNet
from saol_jax.pretrained_names.naming import Naming


def _torchvision(backbone: DenseNet, layer: str) -> Iterator[tuple[str, str]]:
  """`layer` is the name of a part of a dense layer, with braces for its kind and its number."""
  yield "features.conv0", "stem"
  if backbone.norm:
    yield "features.norm0", "norm"
  for s, stage in enumerate(backbone.stages):
    for i in range(len(stage)):
      theirs, ours = f"features.denseblock{s + 1}.denselayer{i + 1}", f"stages/{s}/{i}"
      for kind in ("norm", "conv"):
        for number in (1, 2):
          yield f"{theirs}.{layer.format(kind, number)}", f"{ours}/{kind}{number}"
  for t in range(len(backbone.transitions)):
    for kind in ("norm", "conv"):
      yield f"features.transition{t + 1}.{kind}", f"transitions/{t}/{kind}"
  # The authors' code for CIFAR, else alike, calls it by another name.
  yield ("features.norm5" if backbone.norm else "features.norm_final"), "final_norm"


TORCHVISION = Naming(
  "torchvision and timm", functools.partial(_torchvision, layer="{}{}"), "classifier"
)
# torchvision renames these as it loads its own files, which are older than the code.
TORCHVISION_FILES = Naming(
  "torchvision's downloads", functools.partial(_torchvision, layer="{}.{}"), "classifier"
)
