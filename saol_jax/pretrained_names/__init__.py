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
first tensor of the naming. A parameter of the backbone that is not named stays random, and is
reported as missing; a test of each naming checks which those are, and that each tensor of the
reference is used once.

To add a family, write `saol_jax/pretrained_names/FAMILY.py` with its namings and name them in
`NAMINGS` below.
"""

from flax import nnx

from saol_jax.backbones import (
  VGG,
  CifarResNet,
  ConvNeXt,
  DenseNet,
  InvertedResidualNetwork,
  NASNet,
  PyramidNet,
  ResNet,
  VisionTransformer,
)
from saol_jax.pretrained_names import (
  convnext,
  densenet,
  inverted_residual,
  nasnet,
  pyramidnet,
  resnet,
  vgg,
  vit,
)
from saol_jax.pretrained_names.naming import Naming

NAMINGS: dict[type, tuple[Naming, ...]] = {
  CifarResNet: (resnet.TORCHVISION,),
  ConvNeXt: (convnext.TORCHVISION, convnext.TIMM, convnext.AUTHORS, convnext.TRANSFORMERS),
  DenseNet: (densenet.TORCHVISION, densenet.TORCHVISION_FILES),
  InvertedResidualNetwork: (
    inverted_residual.TORCHVISION,
    inverted_residual.TIMM,
    inverted_residual.TRANSFORMERS,
  ),
  NASNet: (nasnet.CADENE,),
  PyramidNet: (pyramidnet.CUTMIX,),
  ResNet: (resnet.TORCHVISION, resnet.MMDETECTION, resnet.TRANSFORMERS),
  VGG: (vgg.TORCHVISION, vgg.WSOLEVALUATION),
  VisionTransformer: (
    vit.TIMM,
    vit.TORCHVISION,
    vit.TORCHVISION_FILES,
    vit.TRANSFORMERS,
    vit.TRANSFORMERS_5,
  ),
}


def namings_of(backbone: nnx.Module) -> tuple[Naming, ...]:
  """The namings of a backbone's family; none where no library is known to have it."""
  return next((NAMINGS[kind] for kind in type(backbone).__mro__ if kind in NAMINGS), ())
