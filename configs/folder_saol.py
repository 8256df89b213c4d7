r"""A folder of your own images: SAOL on a small ResNet, from scratch or from pretrained weights.

  python main.py --config=configs/folder_saol.py --workdir=runs/mine --config.data.data_dir=DIR

expects DIR/train/<class>/* and DIR/val/<class>/*, or with --config.data.validation=0.1 train alone,
and takes boxes from DIR/boxes.csv where it exists (README, "Your own images"). Arguments, in any
order: a backbone (resnet18 is the default), gap for GAP-FC with the same recipe, light for the
light SAOL, and a number for the side of the images in pixels (224 is the default):

  python main.py --config=configs/folder_saol.py:wrn_16_4,64 ...

From pretrained weights (README, "Pretrained weights"), with a slower backbone:

  python main.py --config=configs/folder_saol.py:resnet50 ... \
      --config.model.pretrained=resnet50-0676ba61.pth --config.optimizer.multipliers=backbone=0.1

Recipe: ours, for some thousands of images: 100 epochs, batch 64, SGD with Nesterov momentum, rate
0.05 with a short warm-up, weight decay 1e-4, cosine decay, CutMix, random-resized crop, flip.
No result of ours is known yet for it.
"""

from saol_jax.backbones import list_backbones
from saol_jax.config import default_config
from saol_jax.errors import UserError
from saol_jax.model import LIGHT_HEAD


def get_config(arg: str = ""):
  """The recipe, for the arguments named above."""
  config = default_config()
  config.batch_size = 64
  config.eval_batch_size = 100
  config.num_epochs = 100.0
  config.eval_every_steps = 1000
  config.checkpoint_every_steps = 1000
  config.model.name = "resnet18"
  config.data.name = "folder"
  config.data.image_size = 224
  config.data.crop_padding = 0  # the random-resized crop moves the image already
  config.optimizer.learning_rate = 0.05
  config.optimizer.weight_decay = 1e-4
  config.optimizer.warmup_share = 0.03
  for part in filter(None, arg.split(",")):
    if part in ("saol", "gap"):
      config.model.head = part
    elif part == "light":
      config.model.update(LIGHT_HEAD)
    elif part in list_backbones():
      config.model.name = part
    elif part.isdecimal():
      config.data.image_size = int(part)
    else:
      raise UserError(
        f"argument {part!r} of configs/folder_saol.py; expected saol, gap, light, a side in pixels "
        f"such as 224, or a backbone: {', '.join(list_backbones())}"
      )
  return config
