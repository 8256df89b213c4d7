"""The demo: SAOL on scenes of real handwritten digits, in a few minutes on a laptop.

  python main.py --config=configs/digits_saol.py --workdir=runs/digits
  python main.py --config=configs/digits_saol.py:gap --workdir=runs/digits_gap   # the baseline

Top-1 on 2,000 test scenes, seed 0: SAOL 98.25 %, its GAP-FC 98.10 %; GAP-FC alone 98.10 %. On 2
CPU cores in 234 s and 118 s (benchmarks/results/demo_cpu.json).
"""

from saol_jax.config import default_config
from saol_jax.errors import UserError


def get_config(arg: str = ""):
  """The recipe; `:gap` for GAP-FC with the same recipe, CutMix included."""
  if arg not in ("", "saol", "gap"):
    raise UserError(f"argument {arg!r} of configs/digits_saol.py; expected saol or gap")
  config = default_config()
  config.batch_size = 64
  config.num_train_steps = 2100
  config.log_every_steps = 100
  config.eval_every_steps = 700
  config.checkpoint_every_steps = 350

  config.model.name = "resnet8"
  config.model.head = arg or "saol"
  config.model.width = 32

  config.cutmix.prob = 0.5

  config.data.name = "digit_scenes"
  config.data.flip = False
  config.data.crop_padding = 0

  config.optimizer.name = "adamw"
  config.optimizer.learning_rate = 4e-3
  config.optimizer.schedule = "one_cycle"
  config.optimizer.weight_decay = 5e-2
  return config
