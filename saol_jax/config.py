"""Every field that a config has, and its meaning."""

import jax
import ml_collections

from saol_jax.config_checks import check_each, check_names, check_together

# Fields that change how a run is watched or where its data lies, but not what it computes: a
# stopped run may go on with other values of these.
WATCHING = (
  "log_every_steps",
  "eval_every_steps",
  "checkpoint_every_steps",
  "figures",
  "eval_batch_size",
  "data.data_dir",
  "data.threads",
  "data.bad_in_evaluation",
  "data.max_bad_fraction",
  "evaluate.checkpoint",
  "evaluate.split",
  "localize.split",
  "localize.threshold_split",
  "localize.num_threshold_images",
  "localize.maps",
)


def default_config() -> ml_collections.ConfigDict:
  """The fields of every config; a recipe in `configs/` changes what it needs."""
  config = ml_collections.ConfigDict()
  config.seed = 0  # of initialisation, order, augmentation, CutMix and dropout
  config.dtype = "auto"  # of the computation: float32, bfloat16; auto: bfloat16 but on a CPU
  config.deterministic = False  # on GPUs too, resume bit for bit; perhaps slower there
  config.batch_size = 128  # images a step, over all devices
  config.eval_batch_size = 500  # images an evaluation step, over all devices
  config.num_epochs = 200.0  # length of the run; num_train_steps overrides it
  config.num_train_steps = 0  # length of the run in steps; 0: from num_epochs
  config.log_every_steps = 100  # steps between lines of progress
  config.eval_every_steps = 2000  # steps between evaluations; the last step is always evaluated
  config.figures = True  # pictures of maps at each evaluation, and of the classes after the last
  config.checkpoint_every_steps = 2000  # steps between checkpoints, beside one at each evaluation

  config.model = model = ml_collections.ConfigDict()
  model.name = "wrn_40_2"  # backbone, see saol_jax.list_backbones()
  model.head = "saol"  # saol: SAOL and GAP-FC side by side; gap: GAP-FC alone, the baseline
  model.width = 128  # channels of SAOL's laterals and hidden layers
  model.kernel_size = 3  # of SAOL's attention, mask and class convolutions
  model.lateral_kernel_size = 1  # of SAOL's lateral convolutions
  model.dropout = 0.0  # rate inside the blocks, for backbones that have it; or of ShakeDrop
  model.last_stride = 0  # 1 or 2, of the last stage; 0: the backbone's own
  model.norm_group = 0  # examples a batch-norm group; 0: all that are computed at once
  model.pretrained = ""  # weights to start from: a file, hf://org/name, or a workdir; empty: random

  config.loss = loss = ml_collections.ConfigDict()
  loss.mask_weight = 1.0  # of L_SS1; 0 leaves the mask branch out
  loss.consistency_weight = 1.0  # of L_SS2; 0 leaves the unmixed forward pass out
  loss.consistency_every = 1  # 2: half of the batch for L_SS2, its batch norms included
  loss.distillation_weight = 1.0  # of L_SD; 0 leaves GAP-FC untrained
  loss.distillation_beta = 0.5  # weight of the label inside L_SD
  loss.concentration_weight = 0.0  # of a loss of ours that spreads the attention; 0: as the paper
  loss.label_smoothing = 0.0  # share of each label spread over all classes

  config.cutmix = cutmix = ml_collections.ConfigDict()
  cutmix.prob = 1.0  # probability that an image is mixed; 0: no CutMix
  cutmix.alpha = 1.0  # of the Beta(alpha, alpha) that draws the area
  cutmix.per_example = True  # a box for each image, or one for the whole batch

  config.mixup = mixup = ml_collections.ConfigDict()
  mixup.prob = 0.0  # probability that an image which CutMix left alone is blended; 0: no mixup
  mixup.alpha = 0.2  # of the Beta(alpha, alpha) that draws the partner's share

  config.data = data = ml_collections.ConfigDict()
  data.name = "cifar100"  # digit_scenes, cifar10, cifar100; folder; a data set prepared by TFDS
  data.data_dir = ""  # the folder of images, or where TFDS prepared it; empty: TFDS's default
  data.validation = 0.0  # share of train held out for evaluation during training; 0: use test
  data.flip = True  # mirror half of the training images
  data.crop_padding = 4  # pixels of black around a training image before it is cropped back
  data.brightness = 0.0  # a factor within 1 +- this, drawn for each training image; 0: off
  data.contrast = 0.0  # likewise
  data.saturation = 0.0  # likewise
  data.lighting = 0.0  # std of the colour drawn along ImageNet's principal components; 0: off
  data.erasing = 0.0  # share of the training images that lose a rectangle
  data.randaugment_layers = 0  # operations of RandAugment an image; 0: off
  data.randaugment_magnitude = 9.0  # their strength, 0 to 10
  data.mean = ()  # of the three channels, as a share of 255; empty: the data set's, or ImageNet's
  data.std = ()  # likewise
  # What follows is for images that are decoded as they are read: folder, and TFDS but for CIFAR.
  data.image_size = 0  # pixels a side
  data.crop_area = (0.08, 1.0)  # of the random training crop: range of its share of the image
  data.crop_aspect = (3 / 4, 4 / 3)  # likewise: range of its width / height
  data.eval_crop = 0.875  # side of the centred crop of evaluation, of the shorter side; 0: all
  data.max_bad_fraction = 0.001  # share of broken images above which training ends with a list
  data.bad_in_evaluation = "fail"  # at a broken image; count: leave out of the score, and say so
  data.threads = 0  # images decoded at once; 0: as many as there are cores
  data.train_split = "train"  # TFDS's name of it, perhaps with a slice: train[:10%]
  data.test_split = "auto"  # likewise; auto: test, or validation where test has no labels
  data.image_field = "image"  # TFDS's name of the feature
  data.label_field = "label"  # likewise
  data.box_field = "auto"  # likewise; auto: bbox, boxes, objects/bbox or none

  config.optimizer = optimizer = ml_collections.ConfigDict()
  optimizer.name = "sgd"  # sgd (Nesterov) or adamw
  optimizer.learning_rate = 0.1  # the highest
  optimizer.momentum = 0.9  # of sgd; beta_1 of adamw
  optimizer.weight_decay = 5e-4  # added to the gradient (sgd) or decoupled (adamw)
  optimizer.decay_all = False  # decay scales and biases too, as the reference codes do
  optimizer.schedule = "cosine"  # cosine, step, one_cycle or constant
  optimizer.warmup_share = 0.0  # share of the run with a linear warm-up; one_cycle has its own
  optimizer.milestones = (0.3, 0.6, 0.8)  # of schedule step: shares of the run
  optimizer.decay_factor = 0.2  # of schedule step: factor at each milestone
  optimizer.multipliers = ""  # of the rate by parameter: "backbone=0.1, */bias=0"; 0 freezes
  optimizer.clip_norm = 0.0  # longest gradient; 0: no clipping
  optimizer.accumulate = 1  # parts that a batch is computed in, to save memory; hardly on a CPU
  optimizer.ema_decay = 0.0  # of the moving average of all variables, less at first; 0: none

  config.evaluate = evaluate = ml_collections.ConfigDict()
  evaluate.checkpoint = "latest"  # of --mode=evaluate and localize: latest or best
  evaluate.split = "auto"  # of --mode=evaluate: validation, test; auto: as during training

  config.localize = localize = ml_collections.ConfigDict()
  localize.split = "auto"  # scored by --mode=localize; auto: test, or validation if it is missing
  localize.threshold_split = "auto"  # where thresholds are chosen; auto: validation, or else train
  localize.num_threshold_images = 2000  # of it, evenly spaced; 0: all
  localize.maps = ""  # names with commas between, see explain.py; empty: all but of early stages
  return config


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Checks the values that can be checked without data, and replaces `dtype="auto"`.

  Returns:
    A copy: what is saved in the workdir and compared on resume.

  Raises:
    UserError: names the first bad field.
  """
  check_names(flat(config), flat(default_config()))
  config = config.copy_and_resolve_references()
  if config.dtype == "auto":
    config.dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  check_each(flat(config))
  check_together(config)
  return config


def differences(
  old: ml_collections.ConfigDict, new: ml_collections.ConfigDict
) -> dict[str, tuple[object, object]]:
  """Fields that matter to what a run computes and differ: name -> (old, new).

  A field that one of them does not know has its default there: new fields start with a default
  that leaves runs as they were, so that a run goes on under a newer version.
  """
  defaults = flat(default_config())
  old, new = defaults | flat(old), defaults | flat(new)
  return {
    name: (old.get(name, "(absent)"), new.get(name, "(absent)"))
    for name in sorted(old.keys() | new.keys())
    if name not in WATCHING and old.get(name, ...) != new.get(name, ...)
  }


def flat(config: ml_collections.ConfigDict, prefix: str = "") -> dict[str, object]:
  """Fields by their full names, such as `model.name`; tuples as lists, as JSON has them."""
  fields = {}
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      fields |= flat(value, f"{prefix}{name}.")
    else:
      fields[prefix + name] = list(value) if isinstance(value, tuple) else value
  return fields
