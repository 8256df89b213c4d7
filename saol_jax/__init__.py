"""SAOL, the Spatially Attentive Output Layer (Kim, Baek, Kim, CVPR 2020), in JAX and Flax NNX."""

import importlib
from typing import Any

from saol_jax.backbones import list_backbones
from saol_jax.errors import missing_package
from saol_jax.model import create_model

__all__ = ["create_model", "list_backbones", "load"]

_SUBMODULES = (
  "backbones",
  "compare",
  "config",
  "cutmix",
  "data",
  "errors",
  "evaluate",
  "explain",
  "export",
  "fuse",
  "heads",
  "localization",
  "localize",
  "losses",
  "metrics",
  "mixup",
  "model",
  "norm",
  "optimizer",
  "predict",
  "predictor",
  "pretrained",
  "train",
  "wsol",
)


def __getattr__(name: str) -> Any:
  """Imports `load` and submodules when they are asked for: they need what the head does not."""
  if name != "load" and name not in _SUBMODULES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  try:
    if name == "load":
      return importlib.import_module("saol_jax.predictor").load
    return importlib.import_module(f"saol_jax.{name}")
  except ModuleNotFoundError as error:
    raise ImportError(missing_package(error)) from error


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__, *_SUBMODULES})
