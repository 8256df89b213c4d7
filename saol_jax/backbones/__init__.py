"""Backbones: networks that turn images into stage feature maps, coarse last."""

from saol_jax.backbones import efficientnet, mobilenet, resnext  # noqa: F401  known by name only
from saol_jax.backbones.cifar_resnet import CifarResNet
from saol_jax.backbones.convnext import ConvNeXt
from saol_jax.backbones.densenet import DenseNet
from saol_jax.backbones.inverted_residual import InvertedResidualNetwork
from saol_jax.backbones.nasnet import NASNet
from saol_jax.backbones.pyramidnet import PyramidNet
from saol_jax.backbones.registry import (
  check_backbone,
  create_backbone,
  is_built_in,
  list_backbones,
  register,
)
from saol_jax.backbones.resnet import ResNet
from saol_jax.backbones.small import resnet8
from saol_jax.backbones.vgg import VGG
from saol_jax.backbones.vit import VisionTransformer
from saol_jax.backbones.wide_resnet import PreActivationResNet

__all__ = [
  "VGG",
  "CifarResNet",
  "ConvNeXt",
  "DenseNet",
  "InvertedResidualNetwork",
  "NASNet",
  "PreActivationResNet",
  "PyramidNet",
  "ResNet",
  "VisionTransformer",
  "check_backbone",
  "create_backbone",
  "is_built_in",
  "list_backbones",
  "register",
  "resnet8",
]
