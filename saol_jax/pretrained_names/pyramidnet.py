"""Names of PyramidNets."""

from collections.abc import Iterator

from saol_jax.backbones import PyramidNet
from saol_jax.pretrained_names.naming import Naming


def _cutmix(backbone: PyramidNet) -> Iterator[tuple[str, str]]:
  yield "conv1", "stem"
  yield "bn1", "norm"
  for s, blocks in enumerate(backbone.stages):
    for b, block in enumerate(blocks):
      theirs, ours = f"layer{s + 1}.{b}", f"stages/{s}/{b}"
      yield f"{theirs}.bn1", f"{ours}/first_norm"
      for c in range(len(block.convs)):
        yield f"{theirs}.conv{c + 1}", f"{ours}/convs/{c}"
        yield f"{theirs}.bn{c + 2}", f"{ours}/norms/{c}"
  yield "bn_final", "final_norm"


CUTMIX = Naming("CutMix-PyTorch and PyramidNet-PyTorch", _cutmix, "fc")
