"""The README's wrapper around somebody else's network."""

import inspect
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.third_party_resnet import ResNet
from saol_jax.model import FunctionalModel, Variables, create_model
from tests.backbones.numerics import build
from tests.support import ROOT, run


@pytest.fixture(scope="module")
def example():
  """The README's wrapper, its code and what it defines; test_readme.py runs the whole block."""
  blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
  (block,) = (block for block in blocks if "third_party_resnet" in block)
  block, names = block[: block.index("rngs = ")], {"__name__": "readme"}
  exec(compile(block, "README.md", "exec"), names)
  return block[block.index("class ") :], names["Stages"]


def test_it_is_short(example):
  assert 10 < len([line for line in example[0].splitlines() if line]) < 20


def test_the_maps_are_those_inside(example):
  network = build(lambda: ResNet(7, rngs=nnx.Rngs(0)))
  fc = network.fc
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 24, 16, 3)), jnp.float32)
  network.eval()
  logits = network(x)
  backbone = example[1](network)
  maps = backbone(x, train=False)
  assert [m.shape[1:] for m in maps] == [
    (24 // stride, 16 // stride, channels)
    for stride, channels in zip(backbone.stage_strides, backbone.stage_channels, strict=True)
  ]
  np.testing.assert_allclose(fc(maps[-1].mean((1, 2))), logits, rtol=1e-5)


def test_it_trains(example):
  """Every parameter gets a gradient, and `train` reaches the normalisation of others."""

  def create(rngs):
    return create_model(example[1](ResNet(1000, rngs=rngs)), 10, width=4, rngs=rngs)

  model, filled = FunctionalModel(create), build(lambda: create(nnx.Rngs(0)))
  variables = Variables(
    *(nnx.to_pure_dict(nnx.state(filled, kind)) for kind in (nnx.Param, nnx.BatchStat))
  )
  x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 32, 32, 3)), jnp.float32)

  @jax.jit
  def step(variables):
    def loss(params):
      output, stats = model.apply(variables.replace(params=params), x, train=True)
      spatial = output.spatial
      parts = output.gap_logits[:, 0], spatial.log_probs[:, 0], spatial.mask_logits[:, 0, 0]
      return sum(part.sum() for part in parts), stats

    gradients, stats = jax.grad(loss, has_aux=True)(variables.params)
    return gradients, stats, model.apply(variables, x, train=False)[1]

  gradients, trained, evaluated = step(variables)
  for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.abs(gradient).max() > 0, jax.tree_util.keystr(path)
  before, after = variables.batch_stats["backbone"], trained["backbone"]
  for old, new, same in zip(
    *map(jax.tree.leaves, (before, after, evaluated["backbone"])), strict=True
  ):
    assert (np.asarray(old) != new).any()
    np.testing.assert_array_equal(old, same)


def test_a_recipe_can_register_it(example, tmp_path):
  recipe = tmp_path / "recipe.py"
  recipe.write_text(
    "from flax import nnx\n"
    "from configs.folder_saol import get_config\n"
    "from examples.third_party_resnet import ResNet\n"
    "from saol_jax.backbones import register\n\n"
    f"{example[0]}\n"
    "@register\n"
    "def others(*, rngs, **options):\n"
    "  return Stages(ResNet(1000, rngs=rngs))\n"
  )
  main = [sys.executable, str(ROOT / "main.py")]
  code, output = run([*main, f"--config={recipe}:others", "--mode=list", "--backbones=others"])
  assert code == 0, output
  assert output.splitlines()[-1].split()[0] == "others"
  assert output.splitlines()[-1].split()[-3:] == ["16/2", "32/4", "64/8"]


def test_the_example_knows_nothing_of_us():
  assert "saol" not in inspect.getsource(inspect.getmodule(ResNet)).lower()
