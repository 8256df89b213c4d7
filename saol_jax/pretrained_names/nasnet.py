"""Names of NASNet-A."""

from collections.abc import Iterator

from saol_jax.backbones import NASNet
from saol_jax.backbones.nasnet import FactorizedReduction, NormalCell
from saol_jax.pretrained_names.naming import Naming

_BRANCHES = {
  True: ("0_left", "0_right", "1_left", "1_right", "4_left"),  # of a normal cell
  False: ("0_left", "0_right", "1_right", "2_right", "4_left"),  # of a reduction cell
}


def _cadene(backbone: NASNet) -> Iterator[tuple[str, str]]:
  yield "conv0.conv", "stem"
  yield "conv0.bn", "norm"
  number = 0  # of a normal cell: two numbers are left out at each reduction
  for s, cells in enumerate(backbone.stages):
    for c, cell in enumerate(cells):
      normal, ours = isinstance(cell, NormalCell), f"stages/{s}/{c}"
      if normal:
        theirs, number = f"cell_{number}", number + 1
      elif s < 2:
        theirs = f"cell_stem_{s}"
      else:
        theirs, number = f"reduction_cell_{s - 2}", number + 2
      yield f"{theirs}.conv_1x1.conv", f"{ours}/x/conv"
      yield f"{theirs}.conv_1x1.bn", f"{ours}/x/norm"
      if isinstance(cell.before, FactorizedReduction):
        yield f"{theirs}.path_1.conv", f"{ours}/before/conv1"
        yield f"{theirs}.path_2.conv", f"{ours}/before/conv2"
        yield f"{theirs}.final_path_bn", f"{ours}/before/norm"
      elif cell.before:
        yield f"{theirs}.conv_prev_1x1.conv", f"{ours}/before/conv"
        yield f"{theirs}.conv_prev_1x1.bn", f"{ours}/before/norm"
      for b, name in enumerate(_BRANCHES[normal]):
        for i in range(2):
          branch, separable = f"{ours}/branches/{b}", f"{theirs}.comb_iter_{name}.separable_{i + 1}"
          yield f"{separable}.depthwise_conv2d", f"{branch}/depthwise/{i}"
          yield f"{separable}.pointwise_conv2d", f"{branch}/pointwise/{i}"
          yield f"{theirs}.comb_iter_{name}.bn_sep_{i + 1}", f"{branch}/norms/{i}"


CADENE = Naming("Cadene's pretrained-models.pytorch", _cadene, "last_linear")
