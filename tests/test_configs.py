"""Every recipe builds, and every field of it is read by somebody."""

import importlib.util
import pathlib

import jax
import ml_collections
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from saol_jax.backbones import list_backbones
from saol_jax.config import resolve
from saol_jax.errors import UserError
from saol_jax.evaluate import evaluate_workdir
from saol_jax.experiment import Experiment, create_configured
from saol_jax.localize import localize_workdir
from saol_jax.multipliers import Multipliers
from saol_jax.optimizer import make_schedule
from saol_jax.train import train_and_evaluate
from tests.support import ROOT, TINY, tiny_config

RECIPES = sorted((ROOT / "configs").glob("*.py"))


def get_config(path: pathlib.Path, argument: str = "") -> ml_collections.ConfigDict:
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(argument)


def fields(config, prefix="") -> set[str]:
  names = set()
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      names |= fields(value, f"{prefix}{name}.")
    else:
      names.add(prefix + name)
  return names


class Recording:
  """A config that remembers which fields were read by name, one at a time.

  Copies and dumps, which `resolve` and the workdir make, do not count.
  """

  def __init__(self, config, read, prefix=""):
    self._config, self._read, self._prefix = config, read, prefix

  def __getattr__(self, name):
    value = getattr(self._config, name)
    if isinstance(value, ml_collections.ConfigDict):
      return Recording(value, self._read, f"{self._prefix}{name}.")
    if name in self._config:
      self._read.add(self._prefix + name)
    return value

  def __contains__(self, name):
    return name in self._config


def test_every_field_is_read(monkeypatch, tmp_path):
  """By a training, an evaluation and a localisation; validation of values alone does not count."""
  read: set[str] = set()
  built = Experiment.__init__

  def build_recording(self, config):
    built(self, Recording(config, read))

  monkeypatch.setattr(Experiment, "__init__", build_recording)
  resolved = resolve
  monkeypatch.setattr("saol_jax.evaluate.resolve", lambda config: Recording(resolved(config), read))
  monkeypatch.setattr("saol_jax.evaluate.check_config", lambda *_: None)
  # Options whose fields are of use only beside another one are on.
  config = tiny_config(
    num_train_steps=2,
    dtype="float32",
    cutmix__prob=0.5,
    mixup__prob=0.5,
    data__randaugment_layers=1,
  )
  train_and_evaluate(config, tmp_path / "run")
  evaluate_workdir(config, tmp_path / "run")
  monkeypatch.setattr("saol_jax.localize.resolve", lambda config: Recording(resolved(config), read))
  monkeypatch.setattr("saol_jax.localize.check_config", lambda *_: None)
  monkeypatch.setattr("saol_jax.localize.map_scores", _stop_here)
  with pytest.raises(_Enough):
    localize_workdir(config, tmp_path / "run")
  _experiment_on_encoded_images(tmp_path / "images")
  assert fields(config) - read == set()


class _Enough(Exception):
  pass


def _stop_here(*_):
  raise _Enough


def _experiment_on_encoded_images(folder: pathlib.Path) -> None:
  """Builds what a run on a folder of images needs."""
  for split in ("train", "val"):
    for name in ("black", "white"):
      (folder / split / name).mkdir(parents=True)
      for number in range(2):
        Image.new("RGB", (40, 30), name).save(folder / split / name / f"{number}.png")
  config = get_config(ROOT / "configs" / "folder_saol.py", "resnet8,32")
  config.update_from_flattened_dict(
    {"data.data_dir": str(folder), "batch_size": 4, "num_train_steps": 1, "dtype": "float32"}
  )
  Experiment(resolve(config))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_complete_and_says_what_it_is(path):
  config = get_config(path)
  assert fields(resolve(config)) == fields(resolve(tiny_config()))
  header = path.read_text().split('"""')[1]
  assert f"python main.py --config=configs/{path.name}" in header


@pytest.mark.parametrize("head", ["saol", "gap"])
def test_demo_config_builds_for_each_head(head):
  config = get_config(ROOT / "configs" / "digits_saol.py", head)
  experiment = Experiment(resolve(config))
  assert experiment.heads[0] == head
  assert experiment.num_train_steps == config.num_train_steps


def test_cifar_config_trains_a_pyramidnet_as_cutmix_does():
  config = get_config(ROOT / "configs" / "cifar_saol.py", "pyramidnet110_a64,cifar100")
  schedule = make_schedule(config.optimizer, 300)
  rates = [float(schedule(epoch)) for epoch in (0, 149, 151, 224, 226, 299)]
  np.testing.assert_allclose(rates, [0.25, 0.25, 0.025, 0.025, 0.0025, 0.0025], rtol=1e-5)
  assert (config.batch_size, config.optimizer.weight_decay) == (64, 1e-4)
  assert config.eval_every_steps * config.batch_size == pytest.approx(5 * 50_000, rel=0.001)


@pytest.mark.parametrize("name", [n for n in list_backbones() if n.startswith("wrn")])
def test_cifar_config_takes_arguments_in_any_order(name):
  path = ROOT / "configs" / "cifar_saol.py"
  for argument in (f"cifar10,{name},gap", f"gap,{name},cifar10"):
    config = get_config(path, argument)
    assert (config.data.name, config.model.name, config.model.head) == ("cifar10", name, "gap")
  with pytest.raises(UserError, match="'vgg'"):
    get_config(path, "vgg")


@pytest.mark.parametrize("name", ["cifar", "folder", "imagenet", "wsol"])
def test_the_light_head_is_an_argument(name):
  config = get_config(ROOT / "configs" / f"{name}_saol.py", "light,resnet34")
  assert (config.model.head, config.model.width, config.model.kernel_size) == ("saol", 64, 1)
  assert config.model.name == "resnet34"


@pytest.mark.parametrize(
  ("argument", "data", "epochs", "rates", "drops"),
  [
    ("cub", "caltech_birds2011", 600, (0.001, 0.01), [150, 300, 450]),
    ("imagenet,gap", "imagenet2012", 20, (0.01, 0.1), [6, 12, 18]),
    ("crop,folder", "folder", 100, (0.001, 0.01), [25, 50, 75]),
  ],
)
def test_wsol_recipes_are_those_of_the_literature(argument, data, epochs, rates, drops):
  """The table of recipes that CutMix and ABN fine-tune with; backbone first, then heads."""
  config = get_config(ROOT / "configs" / "wsol_saol.py", argument)
  assert (config.data.name, config.num_epochs, config.data.image_size) == (data, epochs, 224)
  multipliers = Multipliers.parse(config.optimizer.multipliers)
  model = nnx.eval_shape(lambda: create_configured(resolve(config), 3, nnx.Rngs(0)))
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  factors = {name: multipliers.factor(path) for name, path in first_paths(params).items()}
  rate = config.optimizer.learning_rate
  assert rate * factors.pop("backbone") == pytest.approx(rates[0])
  assert set(factors) == {"gap"} | ({"saol"} if config.model.head == "saol" else set())
  assert {rate * factor for factor in factors.values()} == {rates[1]}
  assert np.multiply(config.optimizer.milestones, epochs) == pytest.approx(drops)
  assert (config.optimizer.decay_factor, config.optimizer.weight_decay) == (0.1, 1e-4)
  assert config.data.eval_crop == (0.875 if "crop" in argument else 0)
  assert (config.model.head == "gap") == ("gap" in argument)
  assert 224 // model.backbone.stage_strides[-1] == 14


def first_paths(params: dict) -> dict:
  """The path of one parameter of each top-level part."""
  paths = (path for path, _ in jax.tree.leaves_with_path(params))
  return {path[0].key: path for path in paths}


def test_wsol_config_names_a_bad_argument():
  path = ROOT / "configs" / "wsol_saol.py"
  assert get_config(path, "resnet18,folder,64").model.name == "resnet18"
  assert get_config(path, "resnet18,folder,64").data.image_size == 64
  with pytest.raises(UserError, match=r"'vgg'.*expected cub, imagenet, folder"):
    get_config(path, "vgg")


def test_held_out_examples_replace_the_test_split_until_the_end(tmp_path):
  config = tiny_config(
    data__validation=0.05, num_train_steps=4, eval_every_steps=2, optimizer__ema_decay=0.0
  )
  experiment = Experiment(resolve(config))
  assert experiment.eval_split == "validation"
  train_and_evaluate(config, tmp_path)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert ["test/saol_top1" in line for line in lines if "eval/saol_top1" in line] == [False, True]


def test_tiny_fields_exist():
  assert set(TINY) <= fields(tiny_config())
