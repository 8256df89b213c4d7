"""What other libraries call the parts of our backbones: one file a family.

A `Naming` is how one library, or several that agree, names a family. Its function walks one of our
backbones and yields pairs (their name, our path):

  - For a layer (`nnx.Conv`, `nnx.Linear`, `nnx.LayerNorm`, `GhostBatchNorm`) the path leads to the
    layer and the name is their module's. `pretrained.py` knows the tensors of each kind of layer
    and how their axes lie: PyTorch's (out, in, height, width) becomes (height, width, in, out).
  - For a bare `nnx.Param` the path leads to it and the name is the tensor's; a third item, a
    function from their array to ours, tells how to arrange it, where it is not stored the same way.
  - A tuple of names stands for modules whose tensors are joined along their first axis, which is
    the outputs' axis in PyTorch: separate query, key and value for one of ours.

Paths are attributes and indices joined by slashes, relative to the backbone. Names are without what
may stand before all of them (`module.`, `state_dict.`, `resnet.`): that is found by looking for the
first tensor of the naming. Every parameter of the backbone must be named; a test of each naming
checks that, and that each tensor of the reference is used once.

To add a family, write `saol_jax/pretrained_names/FAMILY.py` with its namings and name them in
`NAMINGS` below.
"""

from saol_jax.backbones import ConvNeXt, InvertedResidualNetwork, ResNet, VisionTransformer
from saol_jax.pretrained_names import convnext, inverted_residual, resnet, vit
from saol_jax.pretrained_names.naming import Naming

NAMINGS: dict[type, tuple[Naming, ...]] = {
  ConvNeXt: (convnext.TORCHVISION, convnext.TIMM, convnext.AUTHORS, convnext.TRANSFORMERS),
  InvertedResidualNetwork: (
    inverted_residual.TORCHVISION,
    inverted_residual.TIMM,
    inverted_residual.TRANSFORMERS,
  ),
  ResNet: (resnet.TORCHVISION, resnet.TRANSFORMERS),
  VisionTransformer: (
    vit.TIMM,
    vit.TORCHVISION,
    vit.TORCHVISION_FILES,
    vit.TRANSFORMERS,
    vit.TRANSFORMERS_5,
  ),
}
