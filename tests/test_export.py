"""Exports are read back in every way that they promise, and compared with the model itself."""

import errno
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tensorflow as tf
from flax import nnx
from jax import export as jax_export

from saol_jax import export
from saol_jax.errors import UserError
from saol_jax.experiment import create_configured
from saol_jax.export import export_command
from saol_jax.export_card import _localization, _plain, _sample
from saol_jax.localization import BOX_MAP
from saol_jax.predictor import load
from saol_jax.pretrained import find_pretrained
from saol_jax.trained import for_inference, restore_run
from tests.support import assert_identical, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp("run"), dtype="float32")


@pytest.fixture(scope="module")
def images(run):
  return run.experiment.source("test").images[:3]


@pytest.fixture(scope="module")
def exported(run):
  return export_command(run.folder)


@pytest.fixture(scope="module")
def fused(run, tmp_path_factory):
  return export_command(run.folder, tmp_path_factory.mktemp("fused") / "export", fuse=True)


@pytest.fixture(scope="module")
def expected(run, images):
  """What the model says, its moving average, called directly."""
  info, model = run.experiment.info, run.experiment.model
  pixels = (np.float32(images) / 255 - np.float32(info.mean)) / np.float32(info.std)
  spatial = jax.jit(lambda v, x: model.apply(v, x, train=False))(run.state.ema, pixels)[0].spatial
  return {
    "probabilities": np.exp(spatial.log_probs),
    "attention": np.asarray(spatial.attention),
    "class_probabilities": np.exp(spatial.spatial_log_probs),
  }


@pytest.mark.parametrize("which", ["exported", "fused"])
def test_programs_agree_with_the_model(which, request, images, expected):
  folder = request.getfixturevalue(which)
  for name in ("labels", "maps"):
    program = jax_export.deserialize(bytearray((folder / f"{name}.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    found = program.call(images)
    assert ("attention" in found) == (name == "maps")
    for key in found.keys() & expected.keys():
      np.testing.assert_allclose(found[key], expected[key], atol=1e-5)


def test_another_run_may_begin_with_an_export(run, exported, fused):
  model = create_configured(run.experiment.config, 10, nnx.Rngs(0))
  found = find_pretrained(model, str(exported))
  assert found.missing
  assert all(name.startswith("saol.mask.") for name in found.missing)  # only training needs it
  assert found.left_over == ()
  scale = run.state.ema.params["backbone"]["norm"]["scale"]
  np.testing.assert_array_equal(found.values["backbone", "norm", "scale"], scale)
  with pytest.raises(UserError, match="an export without --fuse"):
    find_pretrained(model, str(fused))


def test_any_batch_size(exported, images, expected):
  program = jax_export.deserialize(bytearray((exported / "labels.stablehlo").read_bytes()))
  np.testing.assert_allclose(
    program.call(images[:1])["probabilities"], expected["probabilities"][:1], atol=1e-5
  )


def test_saved_model_agrees_with_the_model(exported, images, expected):
  signatures = tf.saved_model.load(str(exported / "saved_model")).signatures
  assert set(signatures) == {"labels", "maps"}
  found = signatures["maps"](images=tf.constant(images))
  for key, value in expected.items():
    np.testing.assert_allclose(found[key].numpy(), value, atol=1e-5)


def test_program_runs_without_our_code(exported, images, expected, tmp_path):
  np.save(tmp_path / "images.npy", images)
  script = (
    "import sys, numpy as np\nfrom jax import export\n"
    "p = export.deserialize(bytearray(open(sys.argv[1], 'rb').read()))\n"
    "np.save('out.npy', p.call(np.load('images.npy'))['probabilities'])\n"
    "assert not any(name.split('.')[0] in ('saol_jax', 'flax', 'orbax') for name in sys.modules)\n"
  )
  arguments = [sys.executable, "-c", script, str(exported / "labels.stablehlo")]
  subprocess.run(arguments, cwd=tmp_path, check=True)
  np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected["probabilities"], atol=1e-5)


@pytest.mark.parametrize("which", ["exported", "fused"])
def test_load_gives_the_run_predictor(which, request, run, images):
  ours, theirs = load(request.getfixturevalue(which)), load(run.folder)
  assert ours.step == theirs.step == 3
  for a, b in zip(ours(images), theirs(images), strict=True):
    assert a.names == b.names
    np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-5)
    np.testing.assert_allclose(a.attention, b.attention, atol=1e-5)
    np.testing.assert_allclose(a.grids[BOX_MAP], b.grids[BOX_MAP], rtol=1e-3, atol=1e-4)


def test_what_was_exported_cannot_be_chosen_again(exported):
  for choice in ({"checkpoint": "best"}, {"weights": "raw"}):
    with pytest.raises(UserError, match=r"is an export, which holds one checkpoint"):
      load(exported, **choice)


def test_facts(exported, fused):
  facts = [json.loads((folder / "model.json").read_text()) for folder in (exported, fused)]
  assert [f["fused_norms"] for f in facts] == [False, True]
  assert 0 < facts[1]["norms_left"] < facts[0]["norms_left"]
  assert facts[0]["programs"]["maps"]["attention"] == ["b", 8, 8]
  assert facts[0]["weights"] == "ema"
  compared = ["labels.stablehlo", "maps.stablehlo", "saved_model: labels", "saved_model: maps"]
  assert sorted(facts[0]["largest_difference"]) == compared
  assert facts[0]["config"]["loss"]["mask_weight"] > 0  # the recipe, whatever was left out
  assert not any("mask" in name for name in facts[0]["checksums"])  # training alone needs it


def test_weights_can_be_chosen(run):
  assert_identical(restore_run(run.folder, weights="raw").variables, run.state.variables)
  assert_identical(restore_run(run.folder, weights="ema").variables, run.state.ema)
  with pytest.raises(UserError, match="expected one of auto, raw, ema"):
    restore_run(run.folder, weights="mean")


def test_what_only_training_needs_is_left_out_of_a_copy(run):
  trained = restore_run(run.folder)
  ready = for_inference(trained)
  assert "mask" in trained.variables.params["saol"]
  assert "mask" not in ready.variables.params["saol"]


def test_model_card_says_what_it_is(exported):
  text = (exported / "MODEL_CARD.md").read_text()
  for part in ("resnet8", "digit\\_scenes", "step 3", "moving average", "was not evaluated"):
    assert part in text


def test_card_leaves_hostile_names_as_text():
  assert _plain("<img src=x onerror=alert(1)>\n# [a](b)|") == (
    "&lt;img src=x onerror=alert\\(1\\)&gt; \\# \\[a\\]\\(b\\)\\|"
  )


@pytest.mark.parametrize("text", ["{", "[]", '{"maps": {}}', '{"maps": {"cam": {}}}'])
def test_card_leaves_out_what_is_damaged(tmp_path, caplog, text):
  (tmp_path / "localization_test_latest.json").write_text(text)
  assert _localization(tmp_path) == []
  assert "localization_test_latest.json is left out of the card" in caplog.text


def test_card_shows_quotes_as_they_are():
  assert _plain('bird\'s "nest" & co') == 'bird\'s "nest" &amp; co'


@pytest.mark.parametrize(
  ("step", "weights", "expected"),
  [
    (12, "ema", "predictions.png"),
    (6, "ema", "figures/step_06.png"),
    (9, "ema", None),
    (12, "raw", None),
  ],
)
def test_the_sample_is_drawn_with_what_is_exported(tmp_path, step, weights, expected):
  """A run of 12 steps, evaluated twice; its pictures show the average of the variables."""
  (tmp_path / "figures").mkdir()
  for name in ("predictions.png", "figures/step_06.png", "figures/step_12.png"):
    (tmp_path / name).touch()
  (tmp_path / "metrics.jsonl").write_text('{"step": 6}\n{"step": 12}\n')
  config = SimpleNamespace(optimizer=SimpleNamespace(ema_decay=0.9))
  found = _sample(tmp_path, SimpleNamespace(config=config, step=step, weights=weights))
  assert found == (None if expected is None else tmp_path / expected)


def test_damage_is_named(exported, tmp_path):
  folder = shutil.copytree(exported, tmp_path / "export")
  facts = json.loads((folder / "model.json").read_text())
  name = next(iter(facts["checksums"]))
  facts["checksums"][name] ^= 1
  (folder / "model.json").write_text(json.dumps(facts))
  with pytest.raises(UserError, match="is damaged"):
    load(folder)
  (folder / "model.json").write_text("{")
  with pytest.raises(UserError, match="--mode=export"):
    load(folder)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"config": None}, "config is None instead of fields"),
    ({"config": [1]}, r"config is \[1\] instead of fields"),
    ({"config": {"model": "resnet8"}}, "config.model is 'resnet8' instead of fields"),
    ({"config": {}}, "config.dtype is 'auto'"),
    ({"step": float("inf")}, "OverflowError"),
    ({"class_names": "cat"}, "class_names is 'cat'"),
    ({"image_size": [0, 0]}, r"image_size is \[0, 0\]"),
    ({"image_size": [float("inf"), 8]}, "OverflowError"),
    ({"mean": [float("nan")] * 3}, "mean is"),
    ({"std": [0.2, 0.2, 0]}, "std is"),
    ({"checksums": {}}, "checkpoint is damaged"),
    ({"export_format": 2, "fused_norms": ...}, "export_format=2, expected 1"),  # ...: left out
  ],
)
def test_wrong_facts_are_named(exported, tmp_path, changes, message):
  folder = shutil.copytree(exported, tmp_path / "export")
  facts = json.loads((folder / "model.json").read_text()) | changes
  facts = {name: value for name, value in facts.items() if value is not ...}
  (folder / "model.json").write_text(json.dumps(facts))
  with pytest.raises(UserError, match=rf"{message}.*--mode=export"):
    load(folder)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"width": 0}, "width=0"),
    ({"name": None}, "None is no backbone"),
    ({"name": "resnet9"}, "'resnet9' is unknown. Did you mean 'resnet8'"),
  ],
)
def test_an_export_of_a_network_that_cannot_be_is_named(exported, tmp_path, change, message):
  folder = shutil.copytree(exported, tmp_path / "export")
  facts = json.loads((folder / "model.json").read_text())
  facts["config"]["model"] |= change
  (folder / "model.json").write_text(json.dumps(facts))
  with pytest.raises(UserError, match=f"model.json describes no model .*{message}"):
    load(folder)


@pytest.mark.parametrize("name", ["model.json", "checkpoint"])
def test_what_an_export_has_lost_is_named(exported, tmp_path, name):
  folder = shutil.copytree(exported, tmp_path / "export")
  (folder / name).rename(tmp_path / "lost")
  with pytest.raises(UserError, match=rf"{name} .*restore the folder, or export .*--mode=export"):
    load(folder)


def test_hostile_pickles_in_a_checkpoint_are_not_executed(exported, tmp_path):
  folder = shutil.copytree(exported, tmp_path / "export")
  marker = tmp_path / "marker"
  payload = b"cos\nmkdir\n(S'%b'\ntR." % bytes(marker)
  pickle.loads(payload)
  marker.rmdir()  # it would have been made
  for path in (folder / "checkpoint").rglob("*"):
    if path.is_file():
      path.write_bytes(payload)
  with pytest.raises(UserError, match="cannot be restored"):
    load(folder)
  assert not marker.exists()


def test_a_folder_of_something_else_is_refused(run, tmp_path):
  (tmp_path / "thesis.txt").write_text("years of work")
  with pytest.raises(UserError, match="is no export"):
    export_command(run.folder, tmp_path)
  assert [path.name for path in pathlib.Path(tmp_path).iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
  "name", ["predictions/report.html", "notes.txt", "saved_model/assets.extra/requests"]
)
def test_an_export_with_more_in_it_is_refused(exported, run, tmp_path, name):
  folder = shutil.copytree(exported, tmp_path / "export")
  (folder / name).parent.mkdir(exist_ok=True)
  (folder / name).write_text("years of work")
  with pytest.raises(UserError, match=f"would lose it: {name.rpartition('/')[0] or name}.*Move"):
    export_command(run.folder, folder)
  assert (folder / name).read_text() == "years of work"


def test_an_earlier_export_is_replaced_where_a_link_points(exported, run, tmp_path, monkeypatch):
  monkeypatch.setattr("saol_jax.export._write", lambda *arguments: None)
  folder = shutil.copytree(exported, tmp_path / "export")
  (tmp_path / "link").symlink_to(folder)
  assert export_command(run.folder, tmp_path / "link") == tmp_path / "link"
  assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "link"]
  assert not list(folder.iterdir())


def test_an_export_that_fails_leaves_the_one_before(exported, run, monkeypatch):
  before = (exported / "model.json").read_bytes()
  monkeypatch.setattr("saol_jax.export.make_programs", lambda trained: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    export_command(run.folder)
  assert (exported / "model.json").read_bytes() == before
  assert not list(exported.parent.glob(".export-export-*"))


@pytest.mark.parametrize("changes", [{}, {"model__head": "gap"}])
def test_bfloat16_is_exported_and_compared_too(tmp_path, changes):
  run = write_run(tmp_path, dtype="bfloat16", **changes)
  facts = json.loads((export_command(run.folder) / "model.json").read_text())
  assert len(facts["largest_difference"]) == (2 if changes else 4)
  assert max(facts["largest_difference"].values()) < 2e-2


def test_an_export_that_says_something_else_than_the_model_is_refused(exported, run, monkeypatch):
  def wrong(folder, images):
    found = called(folder, images)
    found["maps"]["attention"] = found["maps"]["attention"] + 1e-3
    return found

  called = export._call_saved_model
  monkeypatch.setattr(export, "_call_saved_model", wrong)
  before = (exported / "model.json").read_bytes()
  with pytest.raises(UserError, match=r"saved_model: maps differs from the model by 1\.0e-03"):
    export_command(run.folder)
  assert (exported / "model.json").read_bytes() == before


def without_tensorflow(monkeypatch):
  def absent():
    raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")

  monkeypatch.setattr(export, "import_tensorflow", absent)


def with_older_tensorflow(monkeypatch):
  """TensorFlow 2.21 says this of what JAX 0.12 exports."""

  def call(images):
    raise tf.errors.InvalidArgumentError(
      None, None, "Cannot deserialize computation: failed to deserialize portable artifact"
    )

  signatures = {"labels": call, "maps": call}
  monkeypatch.setattr(tf.saved_model, "load", lambda folder: SimpleNamespace(signatures=signatures))


@pytest.mark.parametrize(
  ("make_unable", "reason"),
  [
    (without_tensorflow, "tensorflow is not installed"),
    (
      with_older_tensorflow,
      f"{tf.__version__} is too old for the programs of JAX {jax.__version__}",
    ),
  ],
)
def test_without_tensorflow_all_else_is_exported(run, tmp_path, monkeypatch, make_unable, reason):
  make_unable(monkeypatch)
  folder = export_command(run.folder, tmp_path / "export")
  facts = json.loads((folder / "model.json").read_text())
  assert facts["saved_model"].startswith("not written: ")
  assert facts["saved_model"].endswith(reason)
  assert set(facts["largest_difference"]) == {"labels.stablehlo", "maps.stablehlo"}
  assert not (folder / "saved_model").exists()
  assert "TensorFlow" not in (folder / "MODEL_CARD.md").read_text()
  assert load(folder).card.class_names == run.experiment.info.class_names


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "not here"), KeyboardInterrupt()])
def test_an_export_that_cannot_be_put_in_its_place_leaves_the_one_before(
  exported, run, tmp_path, monkeypatch, error
):
  folder = shutil.copytree(exported, tmp_path / "export")
  rename = pathlib.Path.rename

  def refuse(self, target):
    if self.name == "export" and ".export-export-" in str(self):
      raise error
    return rename(self, target)

  monkeypatch.setattr(pathlib.Path, "rename", refuse)
  with pytest.raises(type(error)):
    export_command(run.folder, folder)
  assert (folder / "model.json").read_bytes() == (exported / "model.json").read_bytes()
  assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_an_export_that_was_being_replaced_at_a_kill_is_put_back(exported, run, tmp_path):
  left = tmp_path / ".export-export-killed"
  shutil.copytree(exported, left / "before")
  os.utime(left, (0, 0))
  with pytest.raises(UserError, match="weights='none'"):
    export_command(run.folder, tmp_path / "export", weights="none")
  assert (tmp_path / "export" / "model.json").exists()
