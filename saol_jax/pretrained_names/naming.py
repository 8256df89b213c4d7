"""The type of a naming; the package's docstring says how to write one."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from flax import nnx

Pair = (
  tuple[str | tuple[str, ...], str]
  | tuple[str | tuple[str, ...], str, Callable[[np.ndarray], np.ndarray]]
)


@dataclasses.dataclass(frozen=True)
class Naming:
  """How others name the parts of a family.

  Attributes:
    library: whose names these are, for messages.
    pairs: from one of our backbones, perhaps without values, to (their name, our path) or (their
      name, our path, function from their array to ours).
    classifier: their name of the last linear layer, which becomes GAP-FC; None where it reads
      something else than the mean of the last map.
    objection: why weights with these names do not belong into a backbone whose shapes they fit, and
      what to do instead, or None.
  """

  library: str
  pairs: Callable[[nnx.Module], Iterator[Pair]]
  classifier: str | None
  objection: Callable[[nnx.Module], str | None] = lambda backbone: None
