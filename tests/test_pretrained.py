"""Pretrained weights go where they belong, and what does not fit is said."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from saol_jax import create_model, train
from saol_jax.backbones import ResNet, registry
from saol_jax.checkpoint import Checkpoints, has_checkpoints
from saol_jax.config import resolve
from saol_jax.errors import Stopped, UserError
from saol_jax.experiment import Experiment
from saol_jax.library_weights import match
from saol_jax.pretrained import Start, load_pretrained
from saol_jax.workdir import claim
from tests.support import tiny_config
from tests.torch_files import write_state_dict


def torchvision_resnet(depths, *, bottleneck, width=64, classes=1000):
  """Names and shapes of torchvision's `resnet.py`, in its order."""
  shapes = {}

  def norm(name, channels):
    for tensor in ("weight", "bias", "running_mean", "running_var"):
      shapes[f"{name}.{tensor}"] = (channels,)
    shapes[f"{name}.num_batches_tracked"] = ()

  def conv(name, channels, inputs, size):
    shapes[f"{name}.weight"] = (channels, inputs, size, size)

  conv("conv1", width, 3, 7)
  norm("bn1", width)
  inputs = width
  for i, depth in enumerate(depths):
    inner = width * 2**i
    outputs = inner * (4 if bottleneck else 1)
    for j in range(depth):
      block = f"layer{i + 1}.{j}"
      sizes = (1, 3, 1) if bottleneck else (3, 3)
      chain = [inputs, *[inner] * (len(sizes) - 1), outputs]
      for k, size in enumerate(sizes):
        conv(f"{block}.conv{k + 1}", chain[k + 1], chain[k], size)
        norm(f"{block}.bn{k + 1}", chain[k + 1])
      if j == 0 and (i or bottleneck):
        conv(f"{block}.downsample.0", outputs, inputs, 1)
        norm(f"{block}.downsample.1", outputs)
      inputs = outputs
  shapes |= {"fc.weight": (classes, inputs), "fc.bias": (classes,)}
  return shapes


def to_transformers(name):
  """The same in `transformers`' ResNetForImageClassification."""
  if name.startswith("fc."):
    return name.replace("fc.", "classifier.1.")
  name = re.sub(r"^conv1\.", "embedder.embedder.convolution.", name)
  name = re.sub(r"^bn1\.", "embedder.embedder.normalization.", name)
  name = re.sub(r"\.downsample\.0\.", ".shortcut.convolution.", name)
  name = re.sub(r"\.downsample\.1\.", ".shortcut.normalization.", name)
  kinds = {"conv": "convolution", "bn": "normalization"}
  name = re.sub(r"\.(conv|bn)(\d)\.", lambda m: f".layer.{int(m[2]) - 1}.{kinds[m[1]]}.", name)
  name = re.sub(
    r"^layer(\d)\.(\d+)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.", name
  )
  return f"resnet.{name}"


def numbered(shapes):
  """A constant array for each name, all different: 1, 2, 3, ..."""
  return {name: np.full(shape, i + 1, np.float32) for i, (name, shape) in enumerate(shapes.items())}


def drawn(shapes, seed=0):
  """Random arrays; variances are positive."""
  rng = np.random.default_rng(seed)
  return {
    name: np.asarray(rng.uniform(0.5, 1.5, shape), np.float32) for name, shape in shapes.items()
  }


def tiny(**options):
  return ResNet((1, 1, 1, 1), bottleneck=False, width=4, last_stride=1, **options)


TINY = torchvision_resnet((1, 1, 1, 1), bottleneck=False, width=4, classes=5)


@functools.cache
def abstract(name, classes=1000):
  """A model with shapes in place of arrays; `name` may be a builder."""

  def create():
    rngs = nnx.Rngs(0)
    return create_model(name if isinstance(name, str) else name(rngs=rngs), classes, rngs=rngs)

  return nnx.eval_shape(create)


def of_the_head(paths):
  return {path.split(".")[0] for path in paths}


# (name, depths, bottleneck, tensors of torchvision's state dict, num_batches_tracked included):
# the counts are len(torchvision.models.NAME().state_dict()).
@pytest.mark.parametrize(
  ("name", "depths", "bottleneck", "count"),
  [("resnet18", (2, 2, 2, 2), False, 122), ("resnet50", (3, 4, 6, 3), True, 320)],
)
@pytest.mark.parametrize("rename", [str, to_transformers])
def test_every_tensor_is_used_once_and_every_parameter_of_the_backbone_filled(
  name, depths, bottleneck, count, rename
):
  shapes = torchvision_resnet(depths, bottleneck=bottleneck)
  assert len(shapes) == count
  tensors = {rename(key): np.zeros(shape, np.int8) for key, shape in shapes.items()}
  found = match(abstract(name), tensors, "a.pth")
  tracked = {name for name in tensors if name.endswith("num_batches_tracked")}
  assert sorted(found.used) == sorted(tensors.keys() - tracked)
  assert len(found.values) == len(found.used)
  assert found.left_over == ()
  assert of_the_head(found.missing) == {"saol"}
  assert (
    found.classifier
    == f"GAP-FC is its {rename('fc.weight').removesuffix('.weight')}, for as many classes"
  )


def test_tensors_go_where_they_belong():
  tensors = numbered(torchvision_resnet((2, 2, 2, 2), bottleneck=False))
  values = match(abstract("resnet18"), tensors, "a.pth").values
  for ours, theirs in {
    "stem.kernel": "conv1.weight",
    "norm.scale": "bn1.weight",
    "norm.var": "bn1.running_var",
    "stages.0.1.convs.1.kernel": "layer1.1.conv2.weight",
    "stages.2.0.norms.0.mean": "layer3.0.bn1.running_mean",
    "stages.2.0.norms.1.bias": "layer3.0.bn2.bias",
    "stages.3.0.shortcut_conv.kernel": "layer4.0.downsample.0.weight",
    "stages.3.0.shortcut_norm.var": "layer4.0.downsample.1.running_var",
  }.items():
    path = tuple(int(p) if p.isdecimal() else p for p in f"backbone.{ours}".split("."))
    assert np.unique(values[path]) == tensors[theirs].flat[0], ours


def test_axes_lie_as_ours_do():
  tensors = drawn(TINY)
  values = match(abstract(tiny, 5), tensors, "a.pth").values
  kernel, theirs = values["backbone", "stem", "kernel"], tensors["conv1.weight"]
  assert kernel[6, 2, 1, 3] == theirs[3, 1, 6, 2]  # height, width, in, out
  linear = values["gap", "linear", "kernel"]
  assert linear[30, 4] == tensors["fc.weight"][4, 30]


@pytest.mark.parametrize("prefix", ["module.", "state_dict.module.encoder_q.", "model."])
def test_what_stands_before_all_names_is_found(prefix):
  tensors = {prefix + name: array for name, array in drawn(TINY).items()}
  found = match(abstract(tiny, 5), tensors, "a.pth")
  assert found.prefix == prefix
  assert of_the_head(found.missing) == {"saol"}
  assert f"after '{prefix}'" in str(found)


def test_a_classifier_beside_the_backbone():
  tensors = {f"module.{to_transformers(name)}": array for name, array in drawn(TINY).items()}
  found = match(abstract(tiny, 5), tensors, "a.pth")
  assert found.prefix == "module.resnet."
  assert "module.classifier.1.weight" in found.used


def test_weights_beside_their_moving_average():
  plain, average = drawn(TINY), drawn(TINY, seed=1)
  tensors = {f"model_ema.{name}": array for name, array in average.items()}
  tensors |= {f"model.{name}": array for name, array in plain.items()}
  tensors["optimizer.state.0.momentum"] = np.ones(3, np.float32)
  found = match(abstract(tiny, 5), tensors, "a.pth")
  np.testing.assert_array_equal(found.values["gap", "linear", "bias"], plain["fc.bias"])
  assert "optimizer.state.0.momentum" in found.left_over
  assert {name.split(".")[0] for name in found.left_over} == {"model_ema", "optimizer"}
  assert f" and {len(found.left_over) - 10} more" in str(found)


def test_a_plain_resnet_gives_deformable_convolutions_their_kernels():
  tensors = numbered(torchvision_resnet((3, 4, 6, 3), bottleneck=True))
  found = match(abstract("resnet50_dcn"), tensors, "a.pth")
  assert found.left_over == ()
  missing = [path for path in found.missing if path.startswith("backbone")]
  # Stages 3 to 5 of Zhu et al.: 4 + 6 + 3 blocks, each with a kernel and a bias for the offsets.
  assert len(missing) == 2 * 13
  assert all(".offset." in path for path in missing)
  kernel = found.values["backbone", "stages", 3, 0, "convs", 1, "kernel"]
  assert np.unique(kernel) == tensors["layer4.0.conv2.weight"].flat[0]


def test_another_number_of_classes_leaves_the_classifier_random():
  found = match(abstract(tiny, 7), drawn(TINY), "a.pth")
  assert found.classifier == "GAP-FC is random: fc.weight is (5, 32), and it needs (7, 32)"
  assert of_the_head(found.missing) == {"gap", "saol"}
  assert found.left_over == ()
  without = {name: array for name, array in drawn(TINY).items() if not name.startswith("fc")}
  found = match(abstract(tiny, 5), without, "a.pth")
  assert found.classifier == "GAP-FC is random: the file has no fc"


def test_half_precision_and_extra_tensors():
  tensors = {name: array.astype(np.float16) for name, array in drawn(TINY).items()}
  found = match(abstract(tiny, 5), tensors | {"conv1.bias": np.ones(4)}, "a.pth")
  assert {value.dtype for value in found.values.values()} == {np.dtype(np.float32)}
  assert found.left_over == ("conv1.bias",)
  assert "left over there: conv1.bias" in str(found)


def test_weights_of_another_network():
  shapes = torchvision_resnet((2, 2, 2, 2), bottleneck=False)
  with pytest.raises(UserError, match=r"lacks 80 of the backbone's 180 tensors: layer1\.2\.conv1"):
    match(abstract("resnet34"), numbered(shapes), "a.pth")
  wide = torchvision_resnet((1, 1, 1, 1), bottleneck=False, width=8)
  with pytest.raises(UserError) as error:
    match(abstract(tiny), numbered(wide), "a.pth")
  first = "conv1.weight (8, 3, 7, 7) becomes (7, 7, 3, 8), backbone.stem.kernel is (7, 7, 3, 4)"
  assert first in str(error.value)
  assert "has 60 tensors of other shapes" in str(error.value)
  with pytest.raises(
    UserError, match=r"named features\.0, .*'conv1\.weight' \(torchvision and timm"
  ):
    match(abstract(tiny), {"features.0": np.ones(3)}, "a.pth")
  with pytest.raises(UserError, match="no library's names are known for PreActivationResNet"):
    match(abstract("resnet8"), drawn(TINY), "a.pth")


def test_numbers_that_are_not_finite():
  tensors = drawn(TINY)
  tensors["layer1.0.conv1.weight"][0, 0, 0, 0] = np.nan
  with pytest.raises(UserError, match=r"layer1\.0\.conv1\.weight has numbers that are not finite"):
    match(abstract(tiny), tensors, "a.pth")


def test_load_pretrained_changes_the_model_in_place(tmp_path):
  tensors = drawn(TINY)
  write_state_dict(tmp_path / "a.pth", tensors)
  model = nnx.clone(abstract(tiny, 5))
  found = load_pretrained(model, str(tmp_path / "a.pth"))
  assert found.source == str(tmp_path / "a.pth")
  np.testing.assert_array_equal(model.gap.linear.bias[...], tensors["fc.bias"])
  last = model.backbone.stages[3][0].norms[1].var
  np.testing.assert_array_equal(last[...], tensors["layer4.0.bn2.running_var"])


# In a run.


@pytest.fixture
def run(tmp_path, monkeypatch):
  """Config and weights of a run with a ResNet small enough for the scenes' 32 pixels."""
  monkeypatch.setitem(registry._BUILDERS, "tiny", lambda **options: tiny(**options))
  tensors = drawn(torchvision_resnet((1, 1, 1, 1), bottleneck=False, width=4, classes=10))
  write_state_dict(tmp_path / "a.pth", tensors)
  config = tiny_config(model__name="tiny", model__pretrained=str(tmp_path / "a.pth"))
  return config, tensors


def zeros(like):
  """An array of zeros, or a random key, of a shape, type and sharding."""
  if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key):
    return jax.device_put(jax.random.key(0), like.sharding)
  return jax.device_put(np.zeros(like.shape, like.dtype), like.sharding)


def test_a_run_starts_from_the_weights_and_resumes_without_the_file(run, tmp_path, monkeypatch):
  config, tensors = run
  experiment = Experiment(resolve(config))
  like = experiment.abstract_state()
  monkeypatch.setattr(experiment, "init", lambda: jax.tree.map(zeros, like))  # compiles less
  state = Start(experiment).state()
  for variables in (state.variables, state.ema):
    fc = variables.params["gap"]["linear"]["kernel"]
    np.testing.assert_array_equal(fc, tensors["fc.weight"].T)
    var = variables.batch_stats["backbone"]["stages"][3][0]["norms"][1]["var"]
    np.testing.assert_array_equal(var, tensors["layer4.0.bn2.running_var"])
  for leaf, wanted in zip(*map(jax.tree.leaves, (state, like)), strict=True):
    assert (leaf.shape, leaf.dtype, leaf.sharding) == (wanted.shape, wanted.dtype, wanted.sharding)

  assert not has_checkpoints(tmp_path / "run")
  claim(resolve(config), tmp_path / "run")
  checkpoints = Checkpoints(tmp_path / "run", {})
  checkpoints.save(state.replace(step=jnp.int32(3)))
  checkpoints.close()
  assert has_checkpoints(tmp_path / "run")
  (tmp_path / "a.pth").unlink()

  def restored(*_):
    raise Stopped("as far as this test goes")

  monkeypatch.setattr(train, "RunLog", restored)
  with pytest.raises(Stopped):
    train.train_and_evaluate(config, tmp_path / "run")
  config.model.pretrained = "other.pth"
  with pytest.raises(UserError, match=r"another config:\s+model.pretrained: .*'other.pth' now"):
    train.train_and_evaluate(config, tmp_path / "run")


def test_weights_that_cannot_be_used_leave_the_workdir_alone(run, tmp_path):
  config, _ = run
  config.model.pretrained = str(tmp_path / "no.pth")
  with pytest.raises(UserError, match=r"no\.pth' cannot be read"):
    train.train_and_evaluate(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
