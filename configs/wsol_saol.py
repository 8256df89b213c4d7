r"""Weakly supervised localisation: fine-tuning on a grid of 14 x 14, to be scored against boxes.

  python main.py --config=configs/wsol_saol.py:cub --workdir=runs/cub --config.data.data_dir=DIR \
      --config.model.pretrained=resnet50-0676ba61.pth

and the same command with --mode=localize, which prints the scores of every map. README,
"Pretrained weights", says where the weights come from and which networks they are known for; those
of an ImageNet run of your own are --config.model.pretrained=runs/imagenet.

Arguments, in any order:
  cub       CUB-200-2011, the default: TFDS's caltech_birds2011 in ArrayRecord, prepared in DIR by
            tfds.builder("caltech_birds2011", data_dir="DIR").download_and_prepare(
                file_format="array_record")
  imagenet  ImageNet, as configs/imagenet_saol.py takes it. TFDS's holds no boxes, so that such a
            run is trained but not scored; for scores, lay ImageNet out as a folder, see below
  folder    your own images, as configs/folder_saol.py takes them, with boxes in DIR/boxes.csv
  a backbone (resnet50 is the default), and a number for the side of the images in pixels (224)
  gap       GAP-FC alone with the same recipe, the baseline of CAM
  light     the light SAOL
  crop      evaluate on the centred square of 0.875 of the shorter side; otherwise the whole image
            is resized straight to a square, and no box is cut (wsolevaluation's protocol)

Recipe: the last stage has stride 1, so that the grid of a ResNet at 224 pixels is 14 x 14 (the
paper's); heads learn with 10 times the rate of the backbone; SGD with Nesterov momentum, weight
decay 1e-4, CutMix with probability 1; random crops of at least 0.766 of the image, which is what a
crop of 224 pixels leaves of 256 (wsolevaluation takes exactly that, of an image that was resized to
a square first).
  cub       600 epochs, batch 32, rate 0.001 (heads 0.01), x 0.1 every 150
  imagenet  20 epochs, batch 256, rate 0.01 (heads 0.1), x 0.1 every 6
  folder    cub's with 100 epochs; ours
These rates fine-tune; from scratch, without model.pretrained, the backbone needs the full rate:
--config.optimizer.multipliers=.
Published, from ImageNet weights, top-1 localisation of ResNet-50's CAM: CUB 49.41 %, with CutMix
54.81 %; ImageNet 46.30 % and 47.25 %.
No result of ours is known yet for these runs.
"""

from saol_jax.backbones import list_backbones
from saol_jax.config import default_config
from saol_jax.errors import UserError
from saol_jax.model import LIGHT_HEAD

_CUB_EPOCH = 5_994 // 32  # steps
_IMAGENET_EPOCH = 1_281_167 // 256


def get_config(arg: str = ""):
  """The recipe, for the arguments named above."""
  config = default_config()
  config.batch_size = 32
  config.eval_batch_size = 100
  config.num_epochs = 600.0
  config.eval_every_steps = 20 * _CUB_EPOCH
  config.checkpoint_every_steps = 5 * _CUB_EPOCH
  config.model.name = "resnet50"
  config.model.last_stride = 1
  config.data.name = "caltech_birds2011"
  config.data.image_size = 224
  config.data.crop_padding = 0  # the random-resized crop moves the image already
  config.data.crop_area = ((224 / 256) ** 2, 1.0)
  config.data.eval_crop = 0.0
  config.optimizer.learning_rate = 0.01
  config.optimizer.multipliers = "backbone=0.1"
  config.optimizer.weight_decay = 1e-4
  config.optimizer.schedule = "step"
  config.optimizer.milestones = (0.25, 0.5, 0.75)
  config.optimizer.decay_factor = 0.1
  for part in filter(None, arg.split(",")):
    if part == "imagenet":
      config.batch_size = 256
      config.num_epochs = 20.0
      config.eval_every_steps = config.checkpoint_every_steps = _IMAGENET_EPOCH
      config.model.norm_group = 32
      config.data.name = "imagenet2012"
      config.optimizer.learning_rate = 0.1
      config.optimizer.milestones = (0.3, 0.6, 0.9)
    elif part == "folder":
      config.num_epochs = 100.0
      config.eval_every_steps = config.checkpoint_every_steps = 1000
      config.data.name = "folder"
    elif part in ("saol", "gap"):
      config.model.head = part
    elif part == "light":
      config.model.update(LIGHT_HEAD)
    elif part == "crop":
      config.data.eval_crop = 0.875
    elif part in list_backbones():
      config.model.name = part
    elif part.isdecimal():
      config.data.image_size = int(part)
    elif part != "cub":
      raise UserError(
        f"argument {part!r} of configs/wsol_saol.py; expected cub, imagenet, folder, saol, gap, "
        f"light, crop, a side in pixels such as 224, or a backbone: {', '.join(list_backbones())}"
      )
  return config
