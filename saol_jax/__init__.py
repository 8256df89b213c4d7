"""SAOL, the Spatially Attentive Output Layer (Kim, Baek, Kim, CVPR 2020), in JAX and Flax NNX."""

from saol_jax.backbones import list_backbones
from saol_jax.model import create_model

__all__ = ["create_model", "list_backbones"]
