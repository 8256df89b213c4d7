"""Names of VGG-16: its convolutions, and one more in networks for localisation."""

from collections.abc import Iterator

from saol_jax.backbones import VGG
from saol_jax.pretrained_names.naming import Naming


def _torchvision(backbone: VGG) -> Iterator[tuple[str, str]]:
  """All but the last convolution, which classification networks do not have."""
  index = 0
  for s, convs in enumerate(backbone.stages):
    last = s == len(backbone.stages) - 1
    for c in range(len(convs) - last):
      yield f"features.{index}", f"stages/{s}/{c}"
      index += 2  # a ReLU follows
    index += 1  # and here the pooling


def _wsolevaluation(backbone: VGG) -> Iterator[tuple[str, str]]:
  yield from _torchvision(backbone)
  last = len(backbone.stages) - 1
  yield "conv6", f"stages/{last}/{len(backbone.stages[last]) - 1}"


TORCHVISION = Naming("torchvision and timm", _torchvision, None)
WSOLEVALUATION = Naming("wsolevaluation", _wsolevaluation, "fc")
