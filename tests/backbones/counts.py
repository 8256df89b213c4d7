"""Exact parameter counts of all backbones, for tests that build them and tests that derive them."""

# (classes, parameters of backbone and GAP-FC). ImageNet: torchvision's published counts, and timm's
# for resnet200 and resnext101_32x4d. wrn_28_10: 36.5 M in Zagoruyko & Komodakis 2016. The networks
# for CIFAR are derived again in the tests of their families; resnet8 is 3*3*3*32 + 18560 + 57568 +
# 73984 + 128 by hand, for the stem, the blocks and the final norm.
PARAMETERS = {
  "convnext_small": (1000, 50_223_688),
  "convnext_tiny": (1000, 28_589_128),
  "densenet121": (1000, 7_978_856),
  "densenet_bc_100_12": (10, 769_162),  # 0.8 M in Huang et al. 2017
  "efficientnet_b0": (1000, 5_288_548),
  "efficientnet_b1": (1000, 7_794_184),
  "efficientnet_b2": (1000, 9_109_994),
  "efficientnet_b3": (1000, 12_233_232),
  "efficientnet_b4": (1000, 19_341_616),
  "mobilenet_v2": (1000, 3_504_872),
  "nasnet_mobile": (1000, 5_289_978),  # Cadene's, and the trainable ones of Keras
  "pyramidnet110_a64": (100, 1_725_300),  # 1.7 M in Yun et al. 2019
  "pyramidnet200_a240": (10, 26_752_702),  # 26.8 M in Han et al. 2017
  "resnet8": (100, 151_072 + 6_500),
  "resnet18": (1000, 11_689_512),
  "resnet20": (10, 269_722),  # 0.27 M in He et al. 2016
  "resnet34": (1000, 21_797_672),
  "resnet50": (1000, 25_557_032),
  "resnet50_dcn": (1000, 25_557_032 + 871_263),  # see test_deformable.py
  "resnet56": (10, 853_018),  # 0.85 M
  "resnet101": (1000, 44_549_160),
  "resnet110": (10, 1_727_962),  # 1.7 M
  "resnet152": (1000, 60_192_808),
  "resnet200": (1000, 64_673_832),
  "resnext29_8x64d": (10, 34_426_698),  # 34.4 M in Xie et al. 2017
  "resnext50_32x4d": (1000, 25_028_904),
  "resnext101_32x4d": (1000, 44_177_704),
  "tf_efficientnet_b0": (1000, 5_288_548),
  "tf_efficientnet_b1": (1000, 7_794_184),
  "tf_efficientnet_b2": (1000, 9_109_994),
  "tf_efficientnet_b3": (1000, 12_233_232),
  "tf_efficientnet_b4": (1000, 19_341_616),
  "tf_mobilenet_v2": (1000, 3_504_872),
  # 14,714,688 in torchvision's features, then 9 * 512 * 1024 + 1024 for the last convolution.
  "vgg16_gap": (1000, 14_714_688 + 4_719_616 + 1_025_000),
  "vit_base_16": (1000, 86_567_656),
  "vit_small_16": (1000, 22_050_664),  # timm's
  "wide_resnet50_2": (1000, 68_883_240),
  "wrn_16_4": (100, 2_772_020),
  "wrn_28_10": (100, 36_536_884),
  "wrn_40_2": (100, 2_255_156),
}


def counted(name, channels):
  """The backbone's own share of an entry; `channels` of its last map go into GAP-FC."""
  classes, total = PARAMETERS[name]
  return total - (channels + 1) * classes
