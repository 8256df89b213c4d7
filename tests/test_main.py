"""The command line as a user meets it: good runs, and every kind of bad input."""

import dataclasses
import json
import logging
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from saol_jax import data as data_module
from saol_jax.config import resolve
from saol_jax.data import ArraySource
from saol_jax.errors import DivergedError, UserError
from saol_jax.evaluate import evaluate_workdir
from saol_jax.experiment import Experiment
from saol_jax.train import train_and_evaluate
from tests.support import ROOT, command, environment, mesh_of, records, run, snapshot, tiny_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """Workdir and output of a run through main.py."""
  workdir = tmp_path_factory.mktemp("finished")
  code, output = run(command(workdir, figures=True))
  assert code == 0, output
  return workdir, output


def test_run_shows_progress_and_ends_with_a_summary(finished):
  workdir, output = finished
  assert "Total: " in output  # the parameter overview
  for line in ("step  4/12  33.3 %", "images/s", " left", "evaluation at step 12, test: saol"):
    assert line in output
  final = records(workdir)[-1]
  assert f"{100 * final['eval/ema_saol_top1']:.2f} %" in output
  for name in ("predictions.png", "evaluation_test_latest"):
    assert str(workdir / name) in output
  for noise in ("Traceback", "Warning", "WARNING"):
    assert noise not in output


def test_pictures_are_not_blank(finished):
  for name in ("predictions.png", "curves.png", "figures/step_06.png", "figures/step_12.png"):
    picture = np.asarray(Image.open(finished[0] / name).convert("L"), np.float32)
    assert min(picture.shape) > 300
    assert picture.std() > 10


@pytest.mark.parametrize("checkpoint", ["latest", "best"])
def test_evaluate_reproduces_what_training_logged(finished, checkpoint):
  workdir, _ = finished
  before = snapshot(workdir)
  more = [f"--config.evaluate.checkpoint={checkpoint}", "--mode=evaluate"]
  code, output = run(command(workdir, *more))
  assert code == 0, output
  path = workdir / f"evaluation_test_{checkpoint}.json"
  result = json.loads(path.read_text())
  logged = {r["step"]: r for r in records(workdir) if "eval/saol_top1" in r}
  expected_step = 12
  if checkpoint == "best":
    expected_step = max(logged, key=lambda s: (logged[s]["eval/ema_saol_top1"], -s))
  assert result.pop("step") == expected_step
  wanted = {k.replace("eval/", "test/"): v for k, v in logged[expected_step].items() if k != "step"}
  assert result == wanted
  after = snapshot(workdir)
  after.pop(path.name)
  path.unlink()
  tables = {f"evaluation_test_{checkpoint}/{name}.csv" for name in ("confusion", "classes")}
  assert tables <= after.keys()
  # The latest ones are those that training left.
  assert before == {k: v for k, v in after.items() if checkpoint == "latest" or k not in tables}


def test_a_run_is_evaluated_without_its_recipe(finished):
  workdir, _ = finished
  before = snapshot(workdir)
  arguments = [f"--workdir={workdir}", "--mode=evaluate", "--config.evaluate.checkpoint=best"]
  code, output = run([sys.executable, str(ROOT / "main.py"), *arguments])
  assert code == 0, output
  path = workdir / "evaluation_test_best.json"
  assert f"written to {path}" in output
  assert snapshot(workdir).items() >= before.items()
  path.unlink()
  shutil.rmtree(path.with_suffix(""))


def test_localize_writes_a_table_and_changes_nothing_else(finished):
  workdir, _ = finished
  before = snapshot(workdir)
  maps = ["--config.localize.maps=class,cam", "--config.localize.num_threshold_images=50"]
  code, output = run(command(workdir, *maps, "--mode=localize"))
  assert code == 0, output
  found = json.loads((workdir / "localization_test_latest.json").read_text())
  assert set(found["maps"]) == {"class", "cam"}
  assert found["num_threshold_images"] == 50
  for name, scores in found["maps"].items():
    row = next(line for line in output.splitlines() if line.split()[:1] == [name])
    assert f"{100 * scores['gt_known']:.2f}" in row
  after = snapshot(workdir)
  for name in ("localization_test_latest.json", "localization_test_latest.png"):
    assert after.pop(name)
    (workdir / name).unlink()
  assert after == before


BAD_FLAGS = {
  "unknown config": (["--config=configs/nope.py"], "configs/nope.py"),
  "unknown config argument": (
    [f"--config={ROOT}/configs/digits_saol.py:x"],
    "expected saol or gap",
  ),
  "unknown field": (["--config.modle=3"], 'Did you mean "model"'),
  "unknown field of a group": (
    ["--config.optimiser.learning_rate=1"],
    "unknown config field 'optimiser'\nDid you mean \"optimizer\"",
  ),
  "group": (["--config.data=cifar10"], "Did you mean --config.data.name=cifar10?"),
  "field as a flag": (["--loss.mask_weight=0"], "did you mean --config.loss.mask_weight?"),
  "wrong type": (["--config.batch_size=a: b"], "--config.batch_size=a: b; expected a whole number"),
  "unknown mode": (["--mode=dance"], "dance"),
  "more than one file": (["--mode=predict", "--images=a.jpg", "b.jpg"], "unexpected 'b.jpg'"),
  "flag of another mode": (
    ["--mode=evaluate", "--checkpoint=best"],
    "--checkpoint is for --mode=predict and --mode=export, and would do nothing in "
    "--mode=evaluate; leave it out (evaluate and localize take --config.evaluate.checkpoint)",
  ),
  "several processes": (["--mode=localize", "--num_processes=2"], "without --num_processes"),
  "workdir from an unset variable": (["--workdir="], "needs --workdir"),
  "workdir in a bucket": (["--workdir=gs://bucket/run"], "--workdir=gs://bucket/run"),
  "workdir with a long name": ([f"--workdir=/tmp/{300 * 'x'}"], "File name too long"),
  "workdir below a file": (["--workdir=/etc/hostname/run"], "/etc/hostname/run"),
}


@pytest.mark.parametrize("name", BAD_FLAGS)
def test_bad_flag_is_one_message_and_changes_nothing(tmp_path, name):
  flags, expected = BAD_FLAGS[name]
  workdir = tmp_path / "run"
  code, output = run(command(workdir, *flags))
  assert code == 2, output
  assert expected in output
  assert output.count("error: ") == 1
  assert "Traceback" not in output
  assert not workdir.exists()


def test_a_field_before_its_recipe_is_one_message(tmp_path):
  arguments = [
    f"--workdir={tmp_path}",
    "--config.seed=1",
    f"--config={ROOT}/configs/digits_saol.py",
  ]
  code, output = run([sys.executable, str(ROOT / "main.py"), *arguments])
  assert code == 2
  assert output == (
    "error: --config=RECIPE stands before the fields that change it, --config.FIELD=VALUE\n"
  )


@pytest.mark.parametrize(
  ("recipe", "expected"),
  [
    ("x = 1", "--config names a file without a function get_config(argument)"),
    (
      "def get_config(arg=''):\n  c = tiny_config()\n  c.loss.mask_wieght = 0.0\n  return c",
      "wieght",
    ),
  ],
)
def test_a_recipe_of_ones_own_that_is_none_is_one_message(tmp_path, recipe, expected):
  path = tmp_path / "recipe.py"
  path.write_text(f"from tests.support import tiny_config\n\n{recipe}\n")
  main = [sys.executable, str(ROOT / "main.py"), f"--config={path}"]
  code, output = run([*main, f"--workdir={tmp_path}/run"])
  assert (code, output.count("\n")) == (2, 1), output
  assert expected in output
  assert not (tmp_path / "run").exists()


def test_without_a_recipe_a_workdir_without_a_run_is_named(tmp_path):
  main = [sys.executable, str(ROOT / "main.py"), "--mode=evaluate"]
  for folder, why in ((tmp_path, "has no config.json"), (tmp_path / "no", "does not exist")):
    code, output = run([*main, f"--workdir={folder}"])
    assert code == 2
    assert f"or a --workdir that holds a run: {folder} {why}" in output


BAD_FIELDS = {
  "unknown data set": ({"data__name": "digit_scene"}, "digit_scenes"),
  "unknown backbone": ({"model__name": "resnet_50"}, "resnet50"),
  "unknown head": ({"model__head": "fc"}, "saol, gap"),
  "unknown schedule": ({"optimizer__schedule": "linear"}, "one_cycle"),
  "unknown optimizer": ({"optimizer__name": "lion"}, "adamw"),
  "unknown dtype": ({"dtype": "float16"}, "bfloat16"),
  "not prepared": ({"data__name": "cifar10", "data__data_dir": "/nowhere"}, "download_and_prepare"),
  "odd batch": ({"batch_size": 15, "model__norm_group": 0}, "CutMix"),
  "norm groups": ({"model__norm_group": 5}, "norm_group=5"),
  "accumulation": ({"optimizer__accumulate": 3}, "accumulate=3"),
  "share for L_SS2": ({"loss__consistency_every": 3}, "consistency_every=3"),
  "image too small": ({"model__name": "resnet18"}, "too small"),
  "bad probability": ({"cutmix__prob": 1.5}, "cutmix.prob=1.5"),
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_bad_field_is_a_clear_error_and_changes_nothing(tmp_path, monkeypatch, name):
  """UserError is what main.py turns into one message and exit code 2, see above."""
  monkeypatch.setattr("saol_jax.experiment.data_mesh", lambda: mesh_of(1))
  changes, expected = BAD_FIELDS[name]
  with pytest.raises(UserError) as error:
    train_and_evaluate(tiny_config(**changes), tmp_path / "run")
  assert expected in str(error.value)
  assert error.value.code == 2
  assert not (tmp_path / "run").exists()


def test_devices_must_divide_the_batch(tmp_path):
  """The suite has four."""
  with pytest.raises(UserError, match=r"the 4 devices.*--config\.batch_size=20"):
    train_and_evaluate(tiny_config(batch_size=18, model__norm_group=2), tmp_path / "run")


def test_the_proposed_batch_size_satisfies_all_at_once(monkeypatch):
  """14 on one device: fives for L_SS2's share, pairs within each."""
  monkeypatch.setattr("saol_jax.experiment.data_mesh", lambda: mesh_of(1))
  changes = {"model__norm_group": 0, "loss__consistency_every": 5}
  with pytest.raises(UserError, match=r"every=5; expected a multiple of 10,") as error:
    Experiment(resolve(tiny_config(batch_size=14, **changes)))
  proposed = int(re.search(r"--config\.batch_size=(\d+)", str(error.value))[1])
  Experiment(resolve(tiny_config(batch_size=proposed, **changes)))


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ({"model__width": 16}, "model.width: 8 there, 16 now"),
    ({"optimizer__learning_rate": 0.5}, "optimizer.learning_rate: 0.004 there, 0.5 now"),
    ({"model__name": "wrn_16_4"}, "model.name: 'resnet8' there, 'wrn_16_4' now"),
  ],
)
def test_workdir_of_another_run_is_refused(finished, change, says):
  workdir, _ = finished
  before = snapshot(workdir)
  with pytest.raises(UserError) as error:
    train_and_evaluate(tiny_config(dtype="float32", **change), workdir)
  assert says in str(error.value)
  assert snapshot(workdir) == before


def test_checkpoints_without_config_are_refused(tmp_path):
  (tmp_path / "checkpoints" / "5").mkdir(parents=True)
  with pytest.raises(UserError, match=r"no config\.json"):
    train_and_evaluate(tiny_config(), tmp_path)


def test_how_a_run_is_watched_may_change(finished, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(finished[0], workdir)
  train_and_evaluate(tiny_config(log_every_steps=3, eval_every_steps=12), workdir)
  assert json.loads((workdir / "config.json").read_text())["log_every_steps"] == 3


def test_evaluating_nothing_says_train_first(tmp_path):
  with pytest.raises(UserError, match="train first"):
    evaluate_workdir(tiny_config(), tmp_path / "run")


def test_labels_outside_the_classes_are_named(monkeypatch, tmp_path):
  real = data_module.load_source

  def spoiled(*arguments, **options):
    source = real(*arguments, **options)
    labels = source.labels.copy()
    labels[7] = 10
    return ArraySource(**{**dataclasses.asdict(source), "labels": labels, "info": source.info})

  monkeypatch.setattr("saol_jax.experiment.load_source", spoiled)
  with pytest.raises(UserError, match=r"(?s)7.*10.*0.*9"):
    train_and_evaluate(tiny_config(), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_divergence_names_the_loss_and_the_step_and_saves_nothing_broken(tmp_path):
  # AdamW moves by the rate whatever the gradient: the weights overflow at once.
  config = tiny_config(optimizer__learning_rate=1e30, optimizer__schedule="constant")
  with pytest.raises(DivergedError, match=r"not finite at step [1-4]\b"):
    train_and_evaluate(config, tmp_path)
  assert not any(path.name.isdigit() for path in (tmp_path / "checkpoints").iterdir())
  assert not any("eval/saol_top1" in record for record in records(tmp_path))


def test_baseline_runs_to_the_end_and_is_evaluated(tmp_path, caplog):
  with caplog.at_level(logging.INFO, "saol_jax"):
    train_and_evaluate(tiny_config("gap", optimizer__ema_decay=0.0), tmp_path)
  final = records(tmp_path)[-1]
  assert {name for name in final if name.endswith("top1")} == {"eval/gap_top1"}
  assert (tmp_path / "curves.png").exists()
  assert re.search(rf"GAP-FC +{100 * final['eval/gap_top1']:.2f} %", caplog.text)


def test_what_was_held_out_and_the_test_split_are_told_apart(tmp_path, caplog):
  config = tiny_config("gap", optimizer__ema_decay=0.0, data__validation=0.1)
  with caplog.at_level(logging.INFO, "saol_jax"):
    train_and_evaluate(config, tmp_path)
  final = records(tmp_path)[-1]
  assert final["eval/gap_top1"] != final["test/gap_top1"]
  for split, prefix in (("validation", "eval"), ("test", "test")):
    score = f"{100 * final[f'{prefix}/gap_top1']:.2f} %"
    assert f"evaluation at step 12, {split}: gap_top1 {score}" in caplog.text
    assert re.search(rf"{split} top-1 GAP-FC +{score}", caplog.messages[-1])
    folder = tmp_path / f"evaluation_{split}_latest"
    assert re.search(rf"(?m){split} classes +{folder}$", caplog.messages[-1])
    assert folder.is_dir()


def test_training_from_memory_needs_no_tensorflow(tmp_path, monkeypatch):
  blocked = tmp_path / "blocked"
  blocked.mkdir()
  for name in ("tensorflow", "tensorflow_datasets", "clu"):
    (blocked / f"{name}.py").write_text(f"raise ModuleNotFoundError(name={name!r})\n")
  monkeypatch.setattr(
    "tests.support.environment",
    lambda devices: environment(devices) | {"PYTHONPATH": f"{blocked}:{ROOT}"},
  )
  workdir = tmp_path / "run"
  code, output = run(command(workdir))  # as in other tests, whose compiled steps serve again
  assert code == 0, output
  assert "No TensorBoard events: tensorflow is not installed" in output
  assert not (workdir / "tensorboard").exists()
  assert str(workdir / "tensorboard") not in output
  assert records(workdir)[-1]["step"] == 12
