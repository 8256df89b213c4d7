"""What SAOL costs in parameters and arithmetic, beside GAP-FC on the same backbone.

  python benchmarks/heads.py
  python benchmarks/heads.py --networks resnet101:224:1000 wrn_40_2:32:100
  python benchmarks/heads.py --networks resnet50:224:1000 --compile

For each network (backbone, pixels a side, classes), SAOL at its default sizes and the light one
(`saol_jax.model.LIGHT_HEAD`) it counts, for one image:

  GAP-FC           the backbone and GAP-FC
  SAOL, inference  the backbone and SAOL without its mask branch; GAP-FC is left out
  SAOL, training   the backbone, SAOL with its mask branch, and the GAP-FC that it teaches; the
                   forward pass of one image, once. What a whole training step costs, with the
                   unmixed forward pass of L_SS2, is measured by step.py.

Multiply-adds are the literature's unit (often printed as "FLOPs"): k * k * c_in * c_out * h * w for
a convolution to h x w, counted over all convolutions and matrix products of the program that is
traced (`saol_jax/arithmetic.py`); the bilinear resizes are among them, since they are matrix
products. One multiply-add is two FLOPs. XLA's own count stands beside it in FLOPs
(`cost_analysis()` of the lowered program, or with --compile, which takes minutes, of the compiled
one): it leaves out products with padding, and adds normalisation, activations and softmax. There
SAOL in training is compared with GAP-FC in training, since normalisation costs more then.

Nothing is computed, so the numbers do not depend on the machine.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import record
from benchmarks.command_line import make_parser
from saol_jax import create_model
from saol_jax.arithmetic import image, multiply_adds, parameters, trace
from saol_jax.errors import UserError
from saol_jax.model import LIGHT_HEAD

NETWORKS = ("resnet50:224:1000", "wrn_28_10:32:100", "resnet18:224:1000")
LABELS = {
  "gap": "GAP-FC",
  "saol_inference": "SAOL, inference",
  "saol_training": "SAOL, training",
  "light_inference": "light SAOL, inference",
  "light_training": "light SAOL, training",
}

_HEADER = (
  "network",
  "output layer",
  "parameters, M",
  "of the head",
  "over GAP-FC",
  "multiply-adds, G",
  "of the head",
  "over GAP-FC",
  "XLA GFLOPs",
  "over GAP-FC",
)


def main() -> None:
  """Counts, prints the table and writes the JSON."""
  options = _parse()
  output, result = record.begin(options.output, "heads", anywhere=True)
  result["settings"] = {"networks": options.networks, "compile": options.compile}
  result["networks"] = [
    count_network(*_split(network), compiled=options.compile) for network in options.networks
  ]
  print(table(result["networks"]))
  record.write(output, result)


def count_network(
  name: str, image_size: int, num_classes: int, *, compiled: bool = False
) -> dict[str, Any]:
  """Parameters and arithmetic of one network with each output layer.

  Args:
    name: of a backbone.
    image_size: pixels a side.
    num_classes: K.
    compiled: let XLA count the compiled programs rather than the lowered ones.

  Returns:
    For JSON: the network, the backbone's own numbers, and `outputs` by the keys of LABELS.

  Raises:
    UserError: unknown backbone.
  """
  model, light = (
    nnx.eval_shape(lambda o=options: create_model(name, num_classes, rngs=nnx.Rngs(0), **o))
    for options in ({}, LIGHT_HEAD)
  )
  count = functools.partial(_cost, image_size=image_size, compiled=compiled)
  backbone = {"parameters": parameters(model.backbone)} | count(
    model, lambda model, images: model.backbone(images, train=False)
  )
  gap = parameters(model.gap)
  outputs = {"gap": _with_head(backbone, gap, count(model, _gap(train=False)))}
  for name_of_head, with_head in (("saol", model), ("light", light)):
    saol, mask = parameters(with_head.saol), parameters(with_head.saol.mask)
    inference, training = count(with_head, _saol), count(with_head, _everything)
    outputs[f"{name_of_head}_inference"] = _with_head(backbone, saol - mask, inference)
    outputs[f"{name_of_head}_training"] = _with_head(backbone, gap + saol, training)
  gap_in_training = count(model, _gap(train=True))["xla_flops"]
  for key, output in outputs.items():
    base = outputs["gap"]
    xla_base = gap_in_training if key.endswith("_training") else base["xla_flops"]
    output["over_gap_percent"] = {
      "parameters": 100 * (output["parameters"] / base["parameters"] - 1),
      "multiply_adds": 100 * (output["multiply_adds"] / base["multiply_adds"] - 1),
      "xla_flops": 100 * (output["xla_flops"] / xla_base - 1),
    }
  return {
    "name": name,
    "image_size": image_size,
    "num_classes": num_classes,
    "xla_flops_of": "compiled program" if compiled else "lowered program",
    "backbone": backbone,
    "outputs": outputs,
    "gap_xla_flops_in_training": gap_in_training,
  }


def table(networks: list[dict[str, Any]]) -> str:
  """The Markdown table of `count_network`'s results."""
  rows = []
  for network in networks:
    title = f"{network['name']}, {network['image_size']} px, {network['num_classes']} classes"
    for key, label in LABELS.items():
      output = network["outputs"][key]
      over = {k: f"{v:+.1f} %" for k, v in output["over_gap_percent"].items()}
      if key == "gap":
        over = dict.fromkeys(over, "")
      rows.append(
        (
          title,
          label,
          f"{output['parameters'] / 1e6:.3f}",
          f"{output['head_parameters'] / 1e6:.3f}",
          over["parameters"],
          f"{output['multiply_adds'] / 1e9:.4f}",
          f"{output['head_multiply_adds'] / 1e9:.4f}",
          over["multiply_adds"],
          f"{output['xla_flops'] / 1e9:.3f}",
          over["xla_flops"],
        )
      )
  return record.markdown(_HEADER, rows, text_columns=2)


def _gap(*, train: bool) -> Callable:
  return lambda model, images: model.gap(model.backbone(images, train=train)[-1])


def _saol(model: nnx.Module, images: jax.Array) -> Any:
  return model.saol(model.backbone(images, train=False), train=False)


def _everything(model: nnx.Module, images: jax.Array) -> Any:
  return model(images, train=True)


def _cost(
  model: nnx.Module, forward: Callable, *, image_size: int, compiled: bool
) -> dict[str, int]:
  """Arithmetic of `forward(model, images)` for one image; the model may be abstract."""
  traced = trace(model, forward, image(image_size))
  lowered = traced.lower()
  flops = lowered.compile().cost_analysis()["flops"] if compiled else record.count_flops(lowered)
  return {"multiply_adds": multiply_adds(traced.jaxpr.jaxpr), "xla_flops": int(flops)}


def _with_head(backbone: dict, head_parameters: int, cost: dict) -> dict[str, Any]:
  """Numbers of the whole network and of what it has beyond the backbone."""
  return {
    "parameters": backbone["parameters"] + head_parameters,
    "head_parameters": head_parameters,
    "multiply_adds": cost["multiply_adds"],
    "head_multiply_adds": cost["multiply_adds"] - backbone["multiply_adds"],
    "xla_flops": cost["xla_flops"],
  }


def _parse() -> argparse.Namespace:
  parser = make_parser(__doc__)
  parser.add_argument(
    "--networks",
    nargs="+",
    default=list(NETWORKS),
    metavar="BACKBONE:PIXELS:CLASSES",
    help=f"default: {' '.join(NETWORKS)}",
  )
  parser.add_argument("--compile", action="store_true", help="XLA's count after compilation")
  return parser.parse_args()


def _split(network: str) -> tuple[str, int, int]:
  """Backbone, pixels and classes of "resnet50:224:1000"."""
  try:
    name, image_size, num_classes = network.split(":")
    image_size, num_classes = int(image_size), int(num_classes)
  except ValueError:
    image_size = num_classes = 0
  if min(image_size, num_classes) < 1:
    raise UserError(
      f"--networks: {network!r}; expected BACKBONE:PIXELS:CLASSES, as {NETWORKS[0]!r}"
    )
  return name, image_size, num_classes


if __name__ == "__main__":
  record.run(main)
