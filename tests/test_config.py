import ast
import inspect
import io
import math
import re
import tokenize

import jax
import ml_collections
import pytest

from saol_jax.config import WATCHING, default_config, differences, resolve
from saol_jax.errors import UserError

NAN = math.nan

# Field -> values that make no sense.
BAD = {
  "dtype": ["float16", ""],
  "seed": [-1, 2**32, 2**64],
  "batch_size": [0, -8],
  "eval_batch_size": [0],
  "num_epochs": [NAN, float("inf")],
  "num_train_steps": [-1],
  "log_every_steps": [0],
  "eval_every_steps": [0],
  "checkpoint_every_steps": [-5],
  "model.width": [0],
  "model.kernel_size": [0, 2, -3],
  "model.lateral_kernel_size": [0, 4],
  "model.dropout": [-0.1, 1.0, NAN],
  "model.norm_group": [-1],
  "loss.mask_weight": [-1.0, NAN],
  "loss.consistency_weight": [-1.0, NAN],
  "loss.consistency_every": [0],
  "loss.distillation_weight": [-1.0, NAN],
  "loss.distillation_beta": [-0.5, NAN],
  "loss.concentration_weight": [-0.1, NAN],
  "loss.label_smoothing": [-0.1, 1.0, NAN],
  "cutmix.prob": [-0.1, 1.1, NAN],
  "mixup.prob": [-0.1, 1.1, NAN],
  "mixup.alpha": [0.0, -1.0, NAN],
  "data.brightness": [-0.1, NAN],
  "data.contrast": [-0.1, NAN],
  "data.saturation": [-0.1, NAN],
  "data.lighting": [-0.1, NAN],
  "data.erasing": [-0.1, 1.1, NAN],
  "data.randaugment_layers": [-1],
  "data.randaugment_magnitude": [-1.0, 10.5, NAN],
  "cutmix.alpha": [0.0, -1.0, NAN],
  "data.validation": [-0.1, 1.0, NAN],
  "data.crop_padding": [-1],
  "data.mean": [(0.5,), (0.5, 0.5, 0.0), (0.5, 0.5, 127.0), (NAN, 0.5, 0.5), ("a", "b", "c")],
  "data.std": [(0.5, 0.5), (0.5, 0.5, -0.1), ("a", "b", "c")],
  "data.image_size": [-1],
  "data.crop_area": [(0.5,), (0.0, 1.0), (0.6, 0.5), (0.5, 1.1), (NAN, 1.0), ("a", "b")],
  "data.crop_aspect": [(0.0, 1.0), (2.0, 1.0), (1.0, 1.0, 1.0), ("a", "b")],
  "data.eval_crop": [-0.1, 1.1, NAN],
  "data.max_bad_fraction": [-0.1, 1.1, NAN],
  "data.bad_in_evaluation": ["skip"],
  "data.threads": [-1],
  "optimizer.learning_rate": [0.0, -0.1, NAN, float("inf")],
  "optimizer.momentum": [-0.1, 1.0, NAN],
  "optimizer.weight_decay": [-1e-4, NAN],
  "optimizer.warmup_share": [-0.1, 1.0, NAN],
  "optimizer.milestones": [(0.6, 0.3), (0.3, 0.3), (0.0, 0.5), (0.5, 1.0), (NAN,), ("abc",)],
  "optimizer.decay_factor": [0.0, -0.1, NAN],
  "optimizer.clip_norm": [-1.0, NAN],
  "optimizer.accumulate": [0],
  "optimizer.ema_decay": [-0.1, 1.0, NAN],
  "evaluate.checkpoint": ["newest"],
  "evaluate.split": ["train"],
  "localize.split": ["val"],
  "localize.threshold_split": ["val"],
  "localize.num_threshold_images": [-1],
}
# Checked against what is known elsewhere (data sets, backbones, schedules, ...), or any value goes.
UNCHECKED = {
  "deterministic",
  "figures",
  "model.name",
  "model.head",
  "model.last_stride",
  "cutmix.per_example",
  "data.name",
  "data.data_dir",
  "data.flip",
  "data.train_split",
  "data.test_split",
  "data.image_field",
  "data.label_field",
  "data.box_field",
  "model.pretrained",
  "optimizer.name",
  "optimizer.decay_all",
  "optimizer.multipliers",
  "optimizer.schedule",
  "localize.maps",
}


def changed(**fields):
  """The default config with changes; a dot in a field's name is spelled `__`."""
  config = default_config()
  config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
  return config


def fields(config, prefix=""):
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from fields(value, f"{prefix}{name}.")
    else:
      yield prefix + name


def test_every_field_has_a_comment_on_its_line():
  source = inspect.getsource(default_config)
  comments = {
    token.start[0]: token.string
    for token in tokenize.generate_tokens(io.StringIO(source).readline)
    if token.type == tokenize.COMMENT
  }
  missing, found = [], set()
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
      continue
    if len(node.targets) > 1:  # config.model = model = ...: a group
      continue
    group, name = node.targets[0].value.id, node.targets[0].attr
    found.add(name if group == "config" else f"{group}.{name}")
    words = comments.get(node.lineno, "#").lstrip("# ").split()
    if not words:
      missing.append(f"{group}.{name}")
  assert found == set(fields(default_config()))
  assert not missing


def test_every_field_is_checked_or_known_to_be_checked_elsewhere():
  assert BAD.keys() | UNCHECKED == set(fields(default_config()))
  assert not BAD.keys() & UNCHECKED


@pytest.mark.parametrize(
  ("field", "value"), [(field, value) for field, values in BAD.items() for value in values]
)
def test_bad_value_names_the_field_and_the_value(field, value):
  with pytest.raises(UserError, match=rf"^{re.escape(f'{field}={value!r}')}.*expected"):
    resolve(changed(**{field: value}))


@pytest.mark.parametrize("epochs", [0.0, -1.0])
def test_a_run_needs_a_length(epochs):
  with pytest.raises(UserError, match=rf"num_epochs={epochs} and num_train_steps=0"):
    resolve(changed(num_epochs=epochs))
  resolve(changed(num_epochs=epochs, num_train_steps=1))


def test_a_milestone_within_the_warm_up_would_never_be_seen():
  fields = {"optimizer__warmup_share": 0.4, "optimizer__milestones": (0.3, 0.6)}
  with pytest.raises(UserError, match=r"milestones=\(0.3, 0.6\) begin before .*warmup_share=0.4"):
    resolve(changed(optimizer__schedule="step", **fields))
  resolve(changed(optimizer__schedule="cosine", **fields))


def test_losses_on_pasted_cells_need_cutmix():
  for left in ("mask", "consistency"):
    weights = {f"loss__{name}_weight": float(name == left) for name in ("mask", "consistency")}
    with pytest.raises(UserError, match=r"cutmix.prob=0 .*--config.loss.mask_weight=0"):
      resolve(changed(cutmix__prob=0.0, **weights))
  resolve(changed(cutmix__prob=0.0, loss__mask_weight=0.0, loss__consistency_weight=0.0))
  resolve(changed(cutmix__prob=0.0, model__head="gap"))


def test_mixup_needs_images_that_cutmix_leaves_alone():
  config = default_config()
  config.mixup.prob = 0.5
  with pytest.raises(UserError, match=r"mixup\.prob=0.5 would do nothing"):
    resolve(config)
  config.cutmix.prob = 0.5
  resolve(config)


def test_a_field_that_nothing_reads_and_one_that_is_missing_are_named():
  config = default_config()
  config.loss.mask_wieght = 0.0
  with pytest.raises(UserError, match=r"'loss.mask_wieght', .* Did you mean 'loss.mask_weight'\?"):
    resolve(config)
  config = default_config()
  config.model = {"name": "resnet8"}
  with pytest.raises(UserError, match=r"no field 'model.dropout', and \d more are missing"):
    resolve(config)


def test_values_at_the_edge_are_allowed():
  edges = {
    "model__dropout": 0.0,
    "optimizer__ema_decay": 0.9999,
    "cutmix__prob": 1.0,
    "optimizer__weight_decay": 0.0,
    "optimizer__milestones": (),
    "model__kernel_size": 1,
    "batch_size": 1,
    "seed": 2**32 - 1,
  }
  resolved = resolve(changed(**edges))
  assert resolved.optimizer.milestones == ()
  assert resolved.batch_size == 1


def test_auto_dtype_is_settled_in_a_copy(monkeypatch):
  config = default_config()
  assert resolve(config).dtype == "float32"
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  assert resolve(config).dtype == "bfloat16"
  assert resolve(changed(dtype="float32")).dtype == "float32"
  assert config.dtype == "auto"


def test_differences_names_what_a_run_computes_with_and_nothing_else():
  assert differences(default_config(), default_config()) == {}
  for name in WATCHING:
    assert name in set(fields(default_config())), name
  watched = changed(
    log_every_steps=7, eval_batch_size=3, data__data_dir="/elsewhere", evaluate__checkpoint="best"
  )
  assert differences(default_config(), watched) == {}
  other = changed(seed=5, model__width=64, optimizer__milestones=(0.5,))
  assert differences(default_config(), other) == {
    "seed": (0, 5),
    "model.width": (128, 64),
    "optimizer.milestones": ([0.3, 0.6, 0.8], [0.5]),
  }


def test_differences_with_a_config_that_has_other_fields_and_has_been_through_json():
  saved = ml_collections.ConfigDict({**default_config().to_dict(), "gone": 1}, convert_dict=True)
  del saved.optimizer.clip_norm
  saved.optimizer.ignore_type = True  # lets a list take the place of a tuple
  saved.optimizer = {**saved.optimizer.to_dict(), "milestones": [0.3, 0.6, 0.8]}
  found = differences(saved, default_config())
  assert found == {"gone": (1, "(absent)"), "optimizer.ignore_type": (True, "(absent)")}
  found = differences(saved, changed(optimizer__clip_norm=2.0))
  assert found["optimizer.clip_norm"] == (0.0, 2.0)  # not known then: what it is by default
