"""A run begins where another one of ours ended."""

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from saol_jax import create_model
from saol_jax.config import resolve
from saol_jax.errors import UserError
from saol_jax.experiment import Experiment, create_configured
from saol_jax.model import variables_of
from saol_jax.pretrained import Start, find_pretrained, load_pretrained
from saol_jax.train import train_and_evaluate
from tests.support import tiny_config, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run of the demo's network with a moving average, as if trained."""
  return write_run(tmp_path_factory.mktemp("run"), steps=(3,))


def by_path(variables):
  leaves = jax.tree_util.tree_leaves_with_path((variables.params, variables.batch_stats))
  return {jax.tree_util.keystr(path): np.asarray(value) for path, value in leaves}


def model_of(num_classes, **changes):
  config = resolve(tiny_config(**changes))
  return create_configured(config, num_classes, nnx.Rngs(7))


def test_the_moving_average_of_the_newest_checkpoint_is_step_0(run, monkeypatch, caplog):
  caplog.set_level("INFO")
  experiment = Experiment(resolve(tiny_config(seed=5, model__pretrained=str(run.folder))))
  other = run.experiment.init()
  monkeypatch.setattr(experiment, "init", lambda: other)  # compiled already
  state = Start(experiment).state()
  expected = by_path(run.state.ema)
  for variables in (state.variables, state.ema):
    found = by_path(variables)
    assert found.keys() == expected.keys()
    for name, value in found.items():
      np.testing.assert_array_equal(value, expected[name], err_msg=name)
  assert int(state.step) == 0
  assert f"tensors of step 3, moving average of {run.folder}" in caplog.text
  assert "of its last layers, for 10 classes: gap.linear, saol.classify" in caplog.text
  assert "missing there, as they start: none" in caplog.text
  assert "normalised" not in caplog.text


def test_other_classes_get_last_layers_of_their_own(run):
  model = model_of(4)
  before = by_path(variables_of(model))
  found = load_pretrained(model, str(run.folder))
  assert set(found.missing) == {
    *("gap.linear.kernel", "gap.linear.bias"),
    *("saol.classify.kernel", "saol.classify.bias"),
  }
  assert found.classifier == "of its last layers, for 10 classes: none"
  theirs = by_path(run.state.ema)
  for name, value in by_path(variables_of(model)).items():
    last = any(part in name for part in ("['gap']", "['classify']"))
    np.testing.assert_array_equal(value, (before if last else theirs)[name], err_msg=name)


def test_a_head_of_another_size_stays_random_and_the_backbone_is_taken(run):
  found = find_pretrained(model_of(10, model__width=12), str(run.folder))
  assert not any(name.startswith("backbone") for name in found.missing)
  # All of a part, and not what happens to have the same shape, such as the bias of a score.
  missing = [name for name in found.missing if name.startswith("saol.attention")]
  assert "saol.attention.score.bias" in missing
  assert len(missing) == 7
  assert found.classifier == "of its last layers, for 10 classes: gap.linear"
  gap = create_model("resnet8", 10, head="gap", rngs=nnx.Rngs(0))
  assert find_pretrained(gap, str(run.folder)).missing == ()


def test_another_backbone_is_refused(run):
  model = create_model("wrn_16_4", 10, rngs=nnx.Rngs(0))
  with pytest.raises(UserError, match=r"another backbone, model.name='resnet8'.* and \d+ more\."):
    find_pretrained(model, str(run.folder))
  with pytest.raises(UserError, match=r"model.name='resnet8', and not 'resnet20'"):
    find_pretrained(model_of(10), str(run.folder), "resnet20")
  assert find_pretrained(model_of(10), str(run.folder), "one_of_my_own").missing == ()


def test_another_normalisation_is_said(run, monkeypatch, caplog):
  fields = {"data__mean": (0.2, 0.2, 0.2), "data__std": (0.5, 0.5, 0.5)}
  experiment = Experiment(resolve(tiny_config(model__pretrained=str(run.folder), **fields)))
  monkeypatch.setattr(experiment, "init", lambda: run.state)
  Start(experiment).state()
  info = run.experiment.info
  assert f"--config.data.mean='{tuple(round(x, 4) for x in info.mean)}'" in caplog.text


def test_a_folder_without_a_run_is_one_message_and_leaves_the_workdir_alone(tmp_path):
  (tmp_path / "empty").mkdir()
  message = (
    r"model.pretrained='\S+/empty': .*empty is no workdir of a run.* Expected the workdir or"
  )
  with pytest.raises(UserError, match=message):
    train_and_evaluate(tiny_config(model__pretrained=str(tmp_path / "empty")), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_folder_of_the_hub_is_its_file_of_weights(tmp_path):
  save_file({"conv1.weight": np.zeros((1, 1, 1, 1), np.float32)}, tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(UserError, match=r"is not of a ResNet.*'conv1.weight'|lacks \d+ of the back"):
    find_pretrained(create_model("resnet18", 10, rngs=nnx.Rngs(0)), str(tmp_path))
