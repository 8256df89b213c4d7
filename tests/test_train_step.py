import dataclasses
import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saol_jax import compiler, cutmix, distributed, losses
from saol_jax import train_step as steps
from saol_jax.config import resolve
from saol_jax.data.augment import flip_and_crop, normalise
from saol_jax.data.loader import Loader
from saol_jax.experiment import Experiment
from saol_jax.localization import has_area
from saol_jax.preparation import prepare_batch
from tests.support import assert_identical, leaves, mesh_of, tiny_config


@functools.cache
def experiment_on(devices: int, **changes) -> Experiment:
  """Shared, since its compiled steps are what these tests spend their time on."""
  return Experiment(resolve(tiny_config(**changes)), mesh_of(devices))


def run_steps(experiment: Experiment, number: int):
  loader = Loader(experiment.train, experiment.config.batch_size, experiment.config.seed)
  state, history = experiment.init(), []
  for k in range(number):
    state, metrics = experiment.train_step(state, experiment.put(loader[k]))
    history.append(jax.device_get(metrics))
  return jax.device_get(state), history


@functools.cache
def _reference(**changes):
  """Three steps on one device, shared by the tests that compare with them."""
  return run_steps(experiment_on(1, **changes), 3)


def assert_close(a, b, tolerance: float) -> None:
  a, b = leaves(a), leaves(b)
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_allclose(a[name], b[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("norm_group", [4, 0])
def test_four_devices_compute_what_one_does(norm_group):
  """Losses, gradient norm, parameters, statistics and EMA; adamw would amplify rounding: sgd.

  Statistics of the whole batch are summed in another order by four devices. Of half a million ReLUs
  one may then be on the other side of 0, which is 5e-4 of the gradient: not with this seed.
  """
  changes = {"model__norm_group": norm_group, "optimizer__name": "sgd", "seed": 7}
  one_state, one_history = _reference(**changes)
  four_state, four_history = run_steps(experiment_on(4, **changes), 3)
  assert_close(one_history, four_history, 2e-5)
  assert_close(one_state, four_state, 2e-5)


HALF = {"loss__consistency_every": 2, "batch_size": 32}


@pytest.mark.parametrize("changes", [{}, HALF])
def test_four_devices_exchange_sums_and_nothing_else(changes):
  experiment = experiment_on(4, **changes)
  experiment.compile()
  program = experiment.train_step.as_text()
  assert 1 <= program.count(" all-reduce(") + program.count(" all-reduce-start(") <= 4
  for collective in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
    assert collective not in program


def test_same_seed_same_run_and_other_seed_another():
  state, history = _reference()
  again, history_again = run_steps(experiment_on.__wrapped__(1), 3)
  assert_identical(state, again)
  assert_identical(history, history_again)
  first, other = (leaves(experiment_on(1, seed=seed).init().variables) for seed in (0, 1))
  assert any(np.any(first[name] != other[name]) for name in first)


def test_accumulation_equals_the_large_batch():
  """With norm groups that fit in a part, up to rounding; of ReLUs see above."""
  changes = {"model__norm_group": 4, "optimizer__name": "sgd", "seed": 7}
  whole_state, whole_history = _reference(**changes)
  parts_state, parts_history = run_steps(experiment_on(1, optimizer__accumulate=2, **changes), 3)
  for a, b in zip(whole_history, parts_history, strict=True):
    assert a.keys() == b.keys()
  assert_close(whole_history, parts_history, 2e-5)
  assert_close(whole_state, parts_state, 2e-5)


def test_accumulation_without_norm_groups_warns(caplog):
  experiment_on(1, optimizer__accumulate=2)
  assert "norm_group" not in caplog.text
  experiment_on(1, optimizer__accumulate=2, model__norm_group=0)
  assert "see parts of 8 images, not the batch of 16" in caplog.text


def test_first_step_is_the_paper_written_out():
  """Each number of the first step against the parts of the method put together by hand.

  No weight, and no beta, is the default. Without decay the first step of Nesterov's momentum is
  1 + momentum times the rate times the gradient, whose norm it tells.
  """
  weights = {"mask": 0.5, "consistency": 2.0, "distillation": 0.25, "concentration": 0.1}
  changes = {f"loss__{name}_weight": weight for name, weight in weights.items()}
  for name, value in {"name": "sgd", "weight_decay": 0.0, "schedule": "constant"}.items():
    changes[f"optimizer__{name}"] = value
  experiment = experiment_on(1, loss__distillation_beta=0.0, **changes)
  config, model, info = experiment.config, experiment.model, experiment.info
  state = experiment.init()
  batch = Loader(experiment.train, config.batch_size, config.seed)[0]
  key_augment, key_cutmix, _ = jax.random.split(jax.random.fold_in(state.key, 0), 3)
  images = flip_and_crop(key_augment, jnp.asarray(batch["image"]), flip=False, padding=0)
  images = normalise(images, info.mean, info.std)
  boxes = cutmix.sample_boxes(key_cutmix, 16, 32, 32, alpha=1.0, prob=0.5)
  labels = jax.nn.one_hot(batch["label"], 10)
  mixed, targets = cutmix.mix(images, labels, boxes)
  apply = jax.jit(functools.partial(model.apply, train=True))
  output, batch_stats = apply(state.variables, mixed)
  unmixed, _ = apply(state.variables, images)
  spatial, mask = output.spatial, cutmix.reduce_mask(cutmix.box_mask(boxes, 32, 32), (8, 8))
  expected = {
    "spatial": losses.soft_cross_entropy(spatial.log_probs, targets),
    "mask": losses.mask_loss(spatial.mask_logits, mask),
    "consistency": losses.consistency_loss(
      spatial.spatial_log_probs, cutmix.partner(unmixed.spatial.spatial_log_probs), mask
    ),
    "distillation": losses.self_distillation_loss(
      spatial.log_probs, output.gap_logits, targets, 0.0
    ),
    "concentration": losses.concentration_loss(spatial.attention),
  }
  expected = {name: float(value.mean()) for name, value in expected.items()}
  agreement = {
    head: float((steps.head_log_probs(output, head).argmax(-1) == targets.argmax(-1)).mean())
    for head in ("saol", "gap")
  }
  old_stats, old_params = map(leaves, (state.variables.batch_stats, state.variables.params))
  new_state, metrics = experiment.train_step(state, experiment.put(batch))
  for name, value in expected.items():
    assert float(metrics[name]) == pytest.approx(value, rel=1e-4), name
  total = sum(weights.get(name, 1.0) * value for name, value in expected.items())
  assert float(metrics["loss"]) == pytest.approx(total, rel=1e-4)
  assert float(metrics["top1"]) == agreement["saol"] != agreement["gap"]
  moved = [old_params[k] - new for k, new in leaves(new_state.variables.params).items()]
  length = math.sqrt(sum(np.sum(np.square(x)) for x in moved))
  rate = config.optimizer.learning_rate * (1 + config.optimizer.momentum)
  assert float(metrics["gradient"]) == pytest.approx(length / rate, rel=1e-3)
  # The mixed batch alone moved the running statistics.
  assert_close(new_state.variables.batch_stats, batch_stats, 1e-4)
  assert all(np.any(old_stats[k] != v) for k, v in leaves(batch_stats).items())


def test_first_parameters_are_made_with_quick_random_bits(monkeypatch):
  experiment, seen = experiment_on(1), []
  name = "jax_threefry_gpu_kernel_lowering"
  monkeypatch.setattr(compiler, "_on_gpu", lambda mesh: True)
  monkeypatch.setattr(experiment, "_init", lambda seed: seen.append(getattr(jax.config, name)))
  experiment.init()
  assert (seen, getattr(jax.config, name)) == ([True], False)


def test_the_old_state_is_given_up_for_the_new_one():
  experiment = experiment_on(1)
  state = experiment.init()
  experiment.train_step(state, experiment.put(experiment.train[np.arange(16)]))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.variables, state.opt_state)))


def test_the_mixed_and_the_unmixed_pass_drop_with_keys_of_their_own():
  experiment = experiment_on(1)
  variables, seen = experiment.abstract_state().variables, []
  apply = functools.partial(experiment.model.apply, train=True)
  blank = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)  # noqa: E731

  def record(variables, images, *, train, key):
    seen.append(jax.random.key_data(key).tolist())
    return blank(jax.eval_shape(apply, variables, images))

  images = jnp.zeros((16, 32, 32, 3))
  batch = {"image": images, "mixed": images}
  batch |= {"target": jnp.full((16, 10), 0.1), "box": jnp.zeros((16, 4), jnp.int32)}
  loss_fn = steps.make_loss_fn(experiment.config, types.SimpleNamespace(apply=record))
  key = jax.random.key(5)
  loss_fn(*map(blank, (variables.params, variables.batch_stats)), batch, key)
  seen.append(jax.random.key_data(key).tolist())
  assert len({tuple(data) for data in seen}) == len(seen) == 3


def test_the_first_parameters_and_the_steps_have_keys_of_their_own():
  experiment = experiment_on(1)
  base, key = experiment.init().key, jax.random.key(experiment.config.seed)
  keys = [jax.random.fold_in(key, 0), *(jax.random.fold_in(base, step) for step in range(3))]
  assert len({tuple(jax.random.key_data(k).tolist()) for k in keys}) == 4


def test_consistency_on_half_of_the_batch_is_that_of_every_other_norm_group():
  """Groups do not see each other, so that a group has the same loss alone."""
  half = experiment_on(4, **HALF)
  state, batch = half.init(), Loader(half.train, 32, 0)[0]
  keys = steps.step_keys(state.key, state.step)
  prepared = jax.device_get(
    prepare_batch(half.config, half.info, half.mesh, half.put(batch), *keys[:2])
  )
  apply = jax.jit(lambda variables, images: half.model.apply(variables, images, train=True)[0])
  variables = jax.device_get(state.variables)
  mixed, unmixed = (apply(variables, prepared[name]).spatial for name in ("mixed", "image"))
  values = losses.consistency_loss(
    mixed.spatial_log_probs,
    cutmix.partner(unmixed.spatial_log_probs),
    cutmix.reduce_mask(cutmix.box_mask(prepared["box"], 32, 32), (8, 8)),
  )
  taken, left = np.asarray(values).reshape(4, 2, 4).mean((0, 2))
  assert taken != pytest.approx(left, rel=1e-2)
  _, metrics = half.train_step(state, half.put(batch))
  assert float(metrics["consistency"]) == pytest.approx(taken, rel=1e-4)


def test_no_random_key_is_used_twice_in_a_step(monkeypatch):
  """With every option on; in JAX fold_in(key, i) may be one of the keys that split(key) gives."""
  options = {"randaugment_layers": 2, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4}
  options |= {"lighting": 0.1, "erasing": 0.5, "crop_padding": 2, "flip": True}
  changes = {f"data__{name}": value for name, value in options.items()}
  experiment = experiment_on(1, mixup__prob=0.5, **changes)
  used = []

  def recorded(draw):
    def call(key, *args, **kwargs):
      used.append(tuple(np.asarray(jax.random.key_data(key)).ravel().tolist()))
      return draw(key, *args, **kwargs)

    return call

  for name in ("uniform", "bernoulli", "randint", "normal", "beta", "rademacher"):
    monkeypatch.setattr(jax.random, name, recorded(getattr(jax.random, name)))
  keys = steps.step_keys(jax.random.key(3), 0)
  batch = experiment.put(experiment.train[np.arange(16)])
  prepare_batch(experiment.config, experiment.info, experiment.mesh, batch, *keys[:2])
  # Flip and two shifts; two layers of two; three jitters; lighting; erasing; CutMix; mixup.
  assert len(used) >= 3 + 4 + 3 + 1 + 4 + 4 + 2
  assert len(set(used)) == len(used)


def test_label_smoothing_is_applied_before_mixing():
  """Every row is what NumPy makes of the two labels, the share pasted and the share smoothed."""
  experiment = experiment_on(1, loss__label_smoothing=0.1, cutmix__prob=1.0)
  batch = experiment.train[np.arange(16)]
  keys = jax.random.split(jax.random.key(3))
  prepared = prepare_batch(
    experiment.config, experiment.info, experiment.mesh, experiment.put(batch), *keys
  )
  smoothed = 0.9 * np.eye(10)[batch["label"]] + 0.01
  y_min, x_min, y_max, x_max = np.asarray(prepared["box"], np.float64).T
  share = ((y_max - y_min) * (x_max - x_min) / 32**2)[:, None]
  assert share.max() > 0.1
  expected = (1 - share) * smoothed + share * smoothed.reshape(8, 2, 10)[:, ::-1].reshape(16, 10)
  np.testing.assert_allclose(prepared["target"], expected, atol=1e-6)


def test_mixup_blends_the_stated_share_of_the_images():
  experiment = experiment_on(1)
  config = experiment.config.copy_and_resolve_references()
  config.mixup.prob, config.cutmix.prob = 0.3, 0.0
  images = np.random.default_rng(0).integers(0, 256, (400, 2, 2, 3), np.uint8)
  batch = experiment.put({"image": images, "label": np.zeros(400, np.int32)})
  keys = jax.random.split(jax.random.key(3))
  prepared = prepare_batch(config, experiment.info, experiment.mesh, batch, *keys)
  blended = np.asarray(prepared["mixed"] != prepared["image"]).any((1, 2, 3))
  assert abs(blended.mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 400)


def test_images_without_a_box_are_blended_with_images_without_one():
  """Half of the partners got a box by CutMix; their mask would not say so.

  In a narrow image a small box has a height but no width: nothing was pasted.
  """
  experiment = experiment_on(1, mixup__prob=1.0, cutmix__prob=0.5)
  config = experiment.config.copy_and_resolve_references()
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (200, 32, 8, 3), np.uint8)
  batch = {"image": images, "label": rng.integers(0, 10, 200, np.int32)}
  batch = experiment.put(batch)
  keys = jax.random.split(jax.random.key(3))
  prepare = functools.partial(prepare_batch, info=experiment.info, mesh=experiment.mesh)
  both = prepare(config, batch=batch, key_augment=keys[0], key_cutmix=keys[1])
  config.cutmix.prob = 0.0
  blended = prepare(config, batch=batch, key_augment=keys[0], key_cutmix=keys[1])
  config.cutmix.prob, config.mixup.prob = 0.5, 0.0
  pasted = prepare(config, batch=batch, key_augment=keys[0], key_cutmix=keys[1])
  has_box = has_area(np.asarray(both["box"]))
  assert any(a != b for a, b in has_box.reshape(-1, 2))
  assert (has_box != (both["box"][:, 2] > both["box"][:, 0])).any()
  for name in ("mixed", "target"):
    np.testing.assert_array_equal(both[name][has_box], pasted[name][has_box])
    np.testing.assert_array_equal(both[name][~has_box], blended[name][~has_box])


def test_ema_follows_parameters_and_statistics():
  """After n steps it keeps (1 + n) / (10 + n) of itself, at most 0.9 here: 0.1 and then 2 / 11."""
  experiment = experiment_on(1)
  first, _ = run_steps(experiment, 1)
  second, _ = run_steps(experiment, 2)
  initial = jax.device_get(experiment.init().variables)
  expected = jax.tree.map(lambda old, new: 0.1 * old + 0.9 * new, initial, first.variables)
  assert_close(first.ema, expected, 1e-6)
  expected = jax.tree.map(lambda old, new: 2 / 11 * old + 9 / 11 * new, first.ema, second.variables)
  assert_close(second.ema, expected, 1e-6)


def test_ema_ends_at_its_decay_and_forgets_the_random_start():
  """One that starts at 1 while the variables are 0; 0.99 ** 900 alone would leave 1e-4."""
  update = jax.jit(lambda ema, step: steps._moving_average(ema, jnp.float32(0), 0.99, step))
  ema = jnp.float32(1)
  for step in range(100):
    ema = update(ema, jnp.int32(step))
  assert float(ema) < 1e-6
  assert float(update(jnp.float32(1), jnp.int32(1000))) == pytest.approx(0.99)


def test_loss_weights_follow_the_config():
  full = {"spatial": 1.0, "mask": 1.0, "consistency": 1.0, "distillation": 1.0}
  assert steps.loss_weights(tiny_config()) == full
  assert steps.loss_weights(tiny_config(model__head="gap")) == {"classification": 1.0}
  only = tiny_config(loss__mask_weight=0.0, loss__consistency_weight=0.0)
  assert list(steps.loss_weights(only)) == ["spatial", "distillation"]
  wide = tiny_config(loss__concentration_weight=0.1)
  assert steps.loss_weights(wide) == full | {"concentration": 0.1}


def test_pairs_and_norm_groups_are_kept_together():
  together = lambda **changes: steps.examples_kept_together(tiny_config(**changes))  # noqa: E731
  assert together(model__norm_group=4) == 4
  assert together(model__norm_group=3) == 6
  alone = {"model__norm_group": 0, "cutmix__prob": 0.0}
  assert together(**alone) == 1
  assert together(mixup__prob=0.5, **alone) == together(model__norm_group=0) == 2


def test_a_loss_of_weight_zero_costs_nothing():
  """Without L_SS2 the unmixed forward pass is gone; without L_SS1 the mask branch is."""

  def flops(**changes) -> float:
    experiment = experiment_on(1, **changes)
    experiment.compile()
    return experiment.train_step.cost_analysis()["flops"]

  full, no_ss2 = flops(), flops(loss__consistency_weight=0.0)
  # Forward, and a backward pass of about twice as much: the unmixed forward is about a quarter.
  assert 0.70 < no_ss2 / full < 0.82
  experiment = experiment_on(1, loss__mask_weight=0.0)
  assert "mask" not in experiment.abstract_state().variables.params["saol"]


def test_confusions_are_counted_unless_there_are_too_many_classes(monkeypatch):
  experiment = experiment_on(1)
  variables = experiment.abstract_state().variables
  batch = jax.eval_shape(experiment.put, experiment.train[np.arange(16)])
  batch["mask"] = jax.ShapeDtypeStruct((16,), jnp.float32)
  for most, counted in ((10, True), (9, False)):
    monkeypatch.setattr(steps, "_MOST_CLASSES", most)
    eval_step = steps.make_eval_step(
      experiment.config, experiment.info, experiment.model, experiment.heads, experiment.mesh
    )
    assert ("confusion" in jax.eval_shape(eval_step, variables, batch)["saol"]) == counted


def test_first_bad_step_is_remembered():
  experiment = experiment_on(1)
  state, _ = _reference()
  broken = jax.tree.map(jnp.asarray, state)
  params = broken.variables.params
  params["gap"]["linear"]["bias"] = params["gap"]["linear"]["bias"].at[0].set(jnp.nan)
  loader = Loader(experiment.train, 16, 0)
  for k in (3, 4):
    broken, metrics = experiment.train_step(broken, experiment.put(loader[k]))
  bad = {name: int(step) for name, step in broken.bad_step.items()}
  assert math.isnan(metrics["loss"])
  assert bad["distillation"] == 4
  assert bad["gradient"] == 4


def test_gap_baseline_trains_without_saol():
  experiment = experiment_on(1, model__head="gap", optimizer__ema_decay=0.0)
  state, history = run_steps(experiment, 2)
  assert state.ema is None
  assert "saol" not in state.variables.params
  assert set(history[0]) == {"loss", "top1", "classification", "gradient"}


def test_32_images_can_be_overfitted():
  """Both heads learn 32 images by heart."""
  experiment = experiment_on(
    1,
    batch_size=32,
    num_train_steps=60,
    cutmix__prob=0.0,
    loss__mask_weight=0.0,
    loss__consistency_weight=0.0,
    optimizer__ema_decay=0.0,
    model__norm_group=0,  # the same four neighbours in each group could be learnt by heart too
  )
  batch = experiment.put(experiment.train[np.arange(32)])
  state, values = experiment.init(), []
  for _ in range(60):
    state, metrics = experiment.train_step(state, batch)
    values.append(float(metrics["spatial"]))
  sums = experiment.eval_step(state.variables, {**batch, "mask": jnp.ones(32)})
  assert values[0] > 1.5
  assert values[-1] < 0.1
  assert float(sums["saol"]["top1"]) == 32
  assert float(sums["gap"]["top1"]) == 32


def test_bfloat16_follows_float32_and_keeps_its_state_in_float32():
  changes = {"optimizer__name": "sgd", "optimizer__learning_rate": 0.01}
  _, full = _reference(**changes)
  state, half = run_steps(experiment_on(1, dtype="bfloat16", **changes), 3)
  for a, b in zip(full, half, strict=True):
    assert float(b["loss"]) == pytest.approx(float(a["loss"]), rel=0.02)
    assert float(b["loss"]) != float(a["loss"])
  kept = (state.variables, state.ema, state.opt_state)
  floats = [leaf for leaf in jax.tree.leaves(kept) if jnp.issubdtype(leaf.dtype, jnp.floating)]
  assert {str(leaf.dtype) for leaf in floats} == {"float32"}


def test_batches_lie_where_the_mesh_says():
  experiment = experiment_on(4)
  batch = experiment.put(Loader(experiment.train, 16, 0)[0])
  shards = sorted(batch["label"].addressable_shards, key=lambda shard: shard.index[0].start or 0)
  parts = [np.asarray(shard.data) for shard in shards]
  assert [len(part) for part in parts] == [4, 4, 4, 4]
  np.testing.assert_array_equal(np.concatenate(parts), Loader(experiment.train, 16, 0)[0]["label"])


@dataclasses.dataclass(frozen=True)
class Chip:
  """What a mesh asks of a device."""

  id: int
  process_index: int
  platform: str = "tpu"
  device_kind: str = "TPU v5 lite"
  client: None = None


def test_the_devices_of_a_process_lie_side_by_side(monkeypatch):
  """On a v5e slice of 4 x 4 JAX's own order gives process 0 the places 0, 1, 6 and 15."""
  of_processes = [0, 0, 1, 1, 1, 1, 0, 2, 3, 3, 3, 3, 2, 2, 2, 0]
  chips = [Chip(id=k, process_index=process) for k, process in enumerate(of_processes)]
  monkeypatch.setattr(jax, "devices", lambda: chips[::-1])
  monkeypatch.setattr(jax, "device_count", lambda: len(chips))
  found = [(chip.process_index, chip.id) for chip in distributed.data_mesh().devices]
  assert found == sorted(found)
  assert len(found) == 16
