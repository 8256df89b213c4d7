"""What a network costs: its parameters, and the multiply-adds of its forward pass."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from flax import nnx


@dataclasses.dataclass(frozen=True)
class Cost:
  """Of a network, or of a part of it.

  Attributes:
    parameters: how many numbers are learnt.
    multiply_adds: of one image's forward pass.
  """

  parameters: int
  multiply_adds: int

  def __add__(self, other: "Cost") -> "Cost":
    return Cost(self.parameters + other.parameters, self.multiply_adds + other.multiply_adds)


def cost(
  module: nnx.Module, forward: Callable[[nnx.Module, Any], Any], inputs: Any
) -> tuple[Cost, Any]:
  """Counts without computing anything.

  Multiply-adds are the literature's unit, often printed as "FLOPs": k * k * c_in * c_out * h * w
  for a convolution to h x w, over all convolutions and matrix products of the traced program;
  bilinear resizes are among them. One multiply-add is two FLOPs.

  Args:
    module: perhaps without values (`nnx.eval_shape`).
    forward: called as `forward(module, inputs)`.
    inputs: arrays or `jax.ShapeDtypeStruct`s.

  Returns:
    The cost, and shapes and types of what `forward` returns.
  """
  traced = trace(module, forward, inputs)
  return Cost(parameters(module), multiply_adds(traced.jaxpr.jaxpr)), traced.out_info


def trace(
  module: nnx.Module, forward: Callable[[nnx.Module, Any], Any], inputs: Any
) -> jax.stages.Traced:
  """`forward(module, inputs)` as a traced program, for `multiply_adds` or to be lowered."""
  graph, state = nnx.split(module)
  return jax.jit(lambda state, x: forward(nnx.merge(graph, state), x)).trace(state, inputs)


def image(size: int) -> jax.ShapeDtypeStruct:
  """One image of `size` pixels a side, as the forward functions take it."""
  return jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)


def parameters(module: nnx.Module) -> int:
  """How many numbers a module learns."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def multiply_adds(jaxpr: jax.extend.core.Jaxpr) -> int:
  """Multiply-adds of all convolutions and matrix products of a traced program.

  Raises:
    ValueError: the program has a loop or a branch, whose trips are not known.
  """
  total = 0
  for equation in jaxpr.eqns:
    name, parameters = equation.primitive.name, equation.params
    if name in ("scan", "while", "cond"):
      raise ValueError(f"cannot count the arithmetic of a program with {name!r}")
    if name in ("conv_general_dilated", "dot_general"):
      left, right = (variable.aval for variable in equation.invars)
      if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        each = math.prod(left.shape[axis] for axis in contracted)
      else:
        each = right.size // right.shape[parameters["dimension_numbers"].rhs_spec[0]]
      total += equation.outvars[0].aval.size * each
    for value in parameters.values():
      inner = getattr(value, "jaxpr", value)
      if isinstance(inner, jax.extend.core.Jaxpr):
        total += multiply_adds(inner)
  return total
