"""SAOL, the Spatially Attentive Output Layer (Kim, Baek, Kim, CVPR 2020), in JAX and Flax NNX."""

from typing import Any

from saol_jax.backbones import list_backbones
from saol_jax.model import create_model

__all__ = ["create_model", "list_backbones", "load"]


def __getattr__(name: str) -> Any:
  """Imports `load` when it is asked for: it needs Orbax, which the head alone does not."""
  if name == "load":
    from saol_jax.predictor import load

    return load
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
