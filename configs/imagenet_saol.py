r"""ImageNet with ResNets: SAOL, and the GAP-FC baselines beside it.

  python main.py --config=configs/imagenet_saol.py --workdir=runs/imagenet \
      --config.data.data_dir=DIR
  python main.py --config=configs/imagenet_saol.py:resnet101,gap --workdir=runs/imagenet_gap ...

Arguments, in any order: a backbone (resnet50 is the default); gap for GAP-FC with the same recipe,
CutMix included; light for the light SAOL. DIR holds `imagenet2012`, prepared by TFDS in
ArrayRecord (README, "ImageNet").

Recipe: CutMix (Yun et al. 2019), which the SAOL authors say they kept: 300 epochs, batch 256, SGD
with Nesterov momentum, rate 0.1, weight decay 1e-4, x 0.1 every 75 epochs, CutMix with probability
1, random-resized crop, flip, colour jitter and PCA lighting. Different here: 5 epochs of warm-up;
batch normalisation over groups of 32; blocks that start as their shortcut, where that code starts
all scales at 1; jitter in a fixed order, with values clipped to [0, 255]; scales and biases without
decay, which that code decays too (--config.optimizer.decay_all=True). With another
--config.batch_size scale --config.optimizer.learning_rate likewise.
Published for it: top-1 76.32 % for plain ResNet-50 and 78.60 % with CutMix (GAP-FC).
No result of ours is known yet for these runs.
"""

from saol_jax.backbones import list_backbones
from saol_jax.config import default_config
from saol_jax.errors import UserError
from saol_jax.model import LIGHT_HEAD

_STEPS_PER_EPOCH = 1_281_167 // 256


def get_config(arg: str = ""):
  """The recipe, for the arguments named above."""
  config = default_config()
  config.batch_size = 256
  config.eval_batch_size = 500
  config.num_epochs = 300.0
  config.eval_every_steps = 5 * _STEPS_PER_EPOCH
  config.checkpoint_every_steps = _STEPS_PER_EPOCH
  config.model.name = "resnet50"
  config.model.norm_group = 32
  config.data.name = "imagenet2012"
  config.data.image_size = 224
  config.data.crop_padding = 0  # the random-resized crop moves the image already
  config.data.brightness = config.data.contrast = config.data.saturation = 0.4
  config.data.lighting = 0.1
  config.optimizer.weight_decay = 1e-4
  config.optimizer.schedule = "step"
  config.optimizer.milestones = (0.25, 0.5, 0.75)
  config.optimizer.decay_factor = 0.1
  config.optimizer.warmup_share = 5 / 300
  for part in filter(None, arg.split(",")):
    if part in ("saol", "gap"):
      config.model.head = part
    elif part == "light":
      config.model.update(LIGHT_HEAD)
    elif part in list_backbones():
      config.model.name = part
    else:
      raise UserError(
        f"argument {part!r} of configs/imagenet_saol.py; expected saol, gap, light or a backbone: "
        f"{', '.join(list_backbones())}"
      )
  return config
