"""CIFAR-10 and CIFAR-100 with wide ResNets: SAOL, and the GAP-FC baselines beside it.

  python main.py --config=configs/cifar_saol.py:cifar100,wrn_28_10 --workdir=runs/cifar100_saol
  python main.py --config=configs/cifar_saol.py:cifar100,wrn_28_10,gap --workdir=runs/cifar100_gap

Arguments, in any order: cifar10 or cifar100 (the default); a backbone (wrn_40_2 is the default);
gap for GAP-FC with the same recipe, CutMix included; light for the light SAOL.

Recipe: CutMix (Yun et al. 2019) and ABN (Fukui et al. 2019), which the SAOL authors say they kept:
300 epochs, batch 128, SGD with Nesterov momentum, rate 0.1, weight decay 5e-4, cosine decay, CutMix
with probability 0.5, flip and pad-crop; scales and biases without decay, which those codes decay
too (--config.optimizer.decay_all=True). PyramidNets instead as CutMix trains them: batch 64, rate
0.25, weight decay 1e-4, rate x 0.1 after 150 and 225 epochs; --config.model.dropout=0.5 adds the
ShakeDrop of its tables. --config.data.data_dir is a folder with the file that the data set's
authors publish, cifar-100-python.tar.gz, or one in which TFDS has prepared it.
No result of ours is known yet for these runs.
"""

from saol_jax.backbones import list_backbones
from saol_jax.config import default_config
from saol_jax.errors import UserError
from saol_jax.model import LIGHT_HEAD


def get_config(arg: str = ""):
  """The recipe, for the arguments named above."""
  config = default_config()
  config.num_epochs = 300.0
  config.log_every_steps = 100
  config.eval_every_steps = 5 * 391  # five epochs
  config.checkpoint_every_steps = 5 * 391
  config.cutmix.prob = 0.5
  for part in filter(None, arg.split(",")):
    if part in ("cifar10", "cifar100"):
      config.data.name = part
    elif part in ("saol", "gap"):
      config.model.head = part
    elif part == "light":
      config.model.update(LIGHT_HEAD)
    elif part in list_backbones():
      config.model.name = part
    else:
      raise UserError(
        f"argument {part!r} of configs/cifar_saol.py; expected cifar10, cifar100, saol, gap, "
        f"light or a backbone: {', '.join(list_backbones())}"
      )
  if config.model.name.startswith("pyramidnet"):
    config.batch_size = 64
    config.eval_every_steps = config.checkpoint_every_steps = 5 * 782  # five epochs
    config.optimizer.learning_rate = 0.25
    config.optimizer.weight_decay = 1e-4
    config.optimizer.schedule = "step"
    config.optimizer.milestones = (0.5, 0.75)
    config.optimizer.decay_factor = 0.1
  return config
