"""Learning rates by parameter: `optimizer.multipliers`, for fine-tuning and freezing."""

import dataclasses
import difflib
import fnmatch
import math
from collections.abc import Iterator
from typing import Any

import jax

from saol_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Multipliers:
  """Rules that give each parameter a factor of the learning rate.

  A parameter's path is its place in the model, such as `backbone/stages/0/1/conv1/kernel`; the log
  of a run lists all. A pattern names a parameter or everything below a place; `*` stands for any
  characters, slashes too: `backbone`, `*/bias`, `backbone/stages/[01]`. Of several rules that match
  a parameter the last one counts. Without any its factor is 1.

  Factor 0 freezes: such a parameter never changes, has no gradient, no decay and no momentum, takes
  no part in clipping, and the backward pass leaves out what only it would need. Running statistics
  of batch normalisation are no parameters: they go on following the data, frozen or not.

  Attributes:
    rules: pairs of a pattern and a factor.
  """

  rules: tuple[tuple[str, float], ...] = ()

  @classmethod
  def parse(cls, text: str) -> "Multipliers":
    """Reads `PATTERN=FACTOR, PATTERN=FACTOR, ...`.

    Raises:
      UserError: something else, or a factor that is not a number of 0 or more.
    """
    rules = []
    for part in filter(None, (part.strip() for part in text.split(","))):
      pattern, _, factor = (piece.strip() for piece in part.rpartition("="))
      try:
        rules.append((pattern, float(factor)))
      except ValueError:
        factor = ""
      if not pattern or not factor or not 0 <= rules[-1][1] < math.inf:
        raise UserError(
          f"optimizer.multipliers={text!r}: cannot read {part!r}; expected PATTERN=FACTOR with a "
          "factor of 0 (frozen) or more, such as backbone=0.1"
        )
    return cls(tuple(rules))

  def factor(self, path: tuple[Any, ...]) -> float:
    """The factor of the parameter at a key path of JAX."""
    name = _name(path)
    return next((factor for rule, factor in reversed(self.rules) if _matches(rule, name)), 1.0)

  def labels(self, params: Any) -> Any:
    """The tree of `params` with "frozen" or "trained" for each parameter."""
    return jax.tree.map_with_path(
      lambda path, _: "trained" if self.factor(path) else "frozen", params
    )

  def scale(self, updates: Any) -> Any:
    """The updates, each times its parameter's factor."""
    return jax.tree.map_with_path(lambda path, update: self.factor(path) * update, updates)

  def stop_frozen(self, params: Any) -> Any:
    """The same parameters, the frozen ones as constants to differentiation."""
    if not self.rules:
      return params
    return jax.tree.map_with_path(
      lambda path, leaf: leaf if self.factor(path) else jax.lax.stop_gradient(leaf), params
    )

  def check(self, params: Any) -> None:
    """Raises UserError for a rule that matches none of `params`, or if they all are frozen."""
    names = [_name(path) for path, _ in jax.tree.leaves_with_path(params)]
    for pattern, _ in self.rules:
      if not any(_matches(pattern, name) for name in names):
        places = sorted({place for name in names for place in _places(name)})
        close = difflib.get_close_matches(pattern, places, n=5, cutoff=0.6)
        known = ", ".join(close or [place for place in places if "/" not in place])
        raise UserError(
          f"optimizer.multipliers: {pattern!r} matches no parameter of the model; expected a path "
          f"or a pattern, such as {known}. The log of a run lists all paths"
        )
    if self.rules and "trained" not in jax.tree.leaves(self.labels(params)):
      raise UserError(
        "optimizer.multipliers freezes every parameter, so nothing would be trained; leave a part "
        "of the model out, such as with backbone=0"
      )

  def describe(self, params: Any) -> str:
    """One line: how many numbers have which factor."""
    sizes: dict[float, int] = {}
    for path, leaf in jax.tree.leaves_with_path(params):
      factor = self.factor(path)
      sizes[factor] = sizes.get(factor, 0) + math.prod(leaf.shape)
    return ", ".join(
      f"{size:,} parameters {f'x {factor:g}' if factor else 'frozen'}"
      for factor, size in sorted(sizes.items())
    )


def _matches(pattern: str, name: str) -> bool:
  """A pattern names a parameter, or a place above it."""
  return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}/*")


def _name(path: tuple[Any, ...]) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _places(name: str) -> Iterator[str]:
  """A path and those above it."""
  parts = name.split("/")
  for end in range(1, len(parts) + 1):
    yield "/".join(parts[:end])
