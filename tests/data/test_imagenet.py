"""The real imagenet2012 builder on tars made here, and what the recipe makes of its data set."""

import functools
import logging
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

import saol_jax
from benchmarks import miniature
from configs.imagenet_saol import get_config
from saol_jax.checkpoint import Checkpoints
from saol_jax.config import resolve
from saol_jax.data import BadImages, Geometry, Reading, load_source
from saol_jax.data.augment import normalise
from saol_jax.data.decode import Decoder
from saol_jax.data.loader import Loader
from saol_jax.data.resize import resize
from saol_jax.errors import UserError
from saol_jax.experiment import Experiment
from saol_jax.image_files import read_image
from saol_jax.tensorflow_cpu import import_tensorflow
from saol_jax.train import train_and_evaluate
from tests.data.pictures import encode, scene
from tests.support import records

SIZE = 16
# The first, the second and the last of the 1,000 classes in the order of their WordNet ids.
LABELS = {"n01440764": 0, "n01443537": 1, "n15075141": 999}
BROKEN = "n01443537_3.JPEG"
# Of the first validation images: sea snake, alp, Shetland sheepdog.
VALIDATION_LABELS = [65, 970, 230]


def photo(number: int) -> bytes:
  """Each differs from all others."""
  image = scene(50 + 3 * number, 110 - number)
  return encode(image.convert("L") if number % 5 == 4 else image, "JPEG", quality=90)


TRAIN = {wnid: [photo(8 * i + n) for n in range(8)] for i, wnid in enumerate(LABELS)}
TRAIN["n01443537"][3] = TRAIN["n01443537"][3][:300]
VALIDATION = [photo(30 + n) for n in range(11)]


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
  import_tensorflow()
  root = tmp_path_factory.mktemp("imagenet")
  miniature.prepare_imagenet(root, TRAIN, VALIDATION)
  return root


def load(root, split="train", name="imagenet2012", **changes):
  reading = Reading(geometry=Geometry(SIZE), bad_images=BadImages(0.1, "count"), **changes)
  return load_source(name, split, data_dir=str(root), reading=reading)


def recipe(imagenet):
  """Of ImageNet, for a network and images that are small."""
  config = get_config("resnet8")
  config.batch_size, config.num_train_steps = 16, 20
  config.eval_batch_size, config.eval_every_steps = 4, 20
  config.log_every_steps = config.checkpoint_every_steps = 10
  config.model.width, config.model.norm_group = 4, 4
  config.loss.consistency_weight = 0.0  # compiling it costs more than all the steps
  config.data.data_dir, config.data.image_size = str(imagenet), SIZE
  return config


def file_names(source) -> list[str]:
  return [source.name(i).partition(" ")[0] for i in range(len(source))]


def test_images_have_their_labels_and_names(imagenet):
  source = load(imagenet)
  assert len(source) == 24
  assert len(source.info.class_names) == 1000
  assert source.info.class_names[999] == "n15075141"
  batch = source[np.arange(24)]
  decoder = Decoder(Geometry(SIZE), lambda record: {"image": record}, train=False, threads=1)
  names = file_names(source)
  assert sorted(names) == sorted(f"{wnid}_{n}.JPEG" for wnid in TRAIN for n in range(8))
  for name, image, label, broken in zip(
    names, *(batch[k] for k in ("image", "label", "broken")), strict=True
  ):
    wnid, number = re.fullmatch(r"(n\d+)_(\d)\.JPEG", name).groups()
    assert label == LABELS[wnid]
    assert broken == (name == BROKEN)
    if not broken:
      (expected,) = decoder([TRAIN[wnid][int(number)]], np.ones(1, np.int32)).images
      np.testing.assert_array_equal(image, expected)


def test_the_validation_images_are_the_test_split(imagenet):
  test = load(imagenet, "test")
  names = file_names(test)
  assert sorted(names) == [f"ILSVRC2012_val_{n:08d}.JPEG" for n in range(1, 12)]
  labels = dict(zip(names, test[np.arange(11)]["label"].tolist(), strict=True))
  assert [labels[f"ILSVRC2012_val_{n:08d}.JPEG"] for n in (1, 2, 3)] == VALIDATION_LABELS
  assert not set(names) & set(file_names(load(imagenet)))


def test_a_held_out_part_and_the_rest_are_train(imagenet):
  reading = Reading(geometry=Geometry(SIZE))
  parts = [
    load_source("imagenet2012", split, data_dir=str(imagenet), validation=0.25, reading=reading)
    for split in ("train", "validation")
  ]
  assert [len(part) for part in parts] == [18, 6]
  assert sorted(file_names(parts[0]) + file_names(parts[1])) == sorted(file_names(load(imagenet)))


def test_a_copy_with_smaller_images_is_the_same_data_set(imagenet, tmp_path, caplog):
  with caplog.at_level(logging.INFO):
    name = resize("imagenet2012", str(imagenet), str(tmp_path), short_side=40)
  assert name == "imagenet2012_40"
  assert f"--config.data.name={name}" in caplog.text
  assert f"copied as it is: {BROKEN}" in caplog.text
  for split in ("train", "test"):
    source, copy = load(imagenet, split), load(tmp_path, split, name=name)
    assert file_names(copy) == file_names(source)
    rows = np.arange(len(source))
    small, full = copy[rows], source[rows]
    np.testing.assert_array_equal(small["label"], full["label"])
    np.testing.assert_array_equal(small["broken"], full["broken"])
    assert np.abs(small["image"].astype(int) - full["image"]).mean() < 3
    assert copy.info == source.info
  shortest = [
    min(read_image(copy.records.parse(r)["image"].numpy()).size)
    for r in copy.records.read(rows).records
  ]
  assert shortest == [40] * 11

  shard = next(tmp_path.rglob("*train*"))
  before, kept = shard.read_bytes(), next(tmp_path.rglob("*test*")).stat()
  shard.unlink()
  resize("imagenet2012", str(imagenet), str(tmp_path), short_side=40)
  assert shard.read_bytes() == before
  assert next(tmp_path.rglob("*test*")).stat() == kept  # the finished shard is not written again
  with pytest.raises(UserError, match="a copy with another quality"):
    resize("imagenet2012", str(imagenet), str(tmp_path), short_side=40, quality=80)


def test_twenty_steps_with_the_recipe(imagenet, tmp_path):
  config = recipe(imagenet)
  config.data.max_bad_fraction = 0.1
  state = train_and_evaluate(config, tmp_path)
  assert int(state.step) == 20

  lines = records(tmp_path, timing=True)
  assert [line["step"] for line in lines] == [10, 20, 20]
  for line in lines[:2]:
    assert all(np.isfinite(value) for value in line.values())
    assert {"train/loss_spatial", "train/loss_mask", "train/loss_distillation"} < line.keys()
    assert 0 <= line["time/data_wait_share"] <= 1
  # What the loader alone says of the same batches.
  loader = Loader(load(imagenet), 16, config.seed)
  replaced = [loader[k]["replaced"].sum() for k in range(20)]
  assert sum(replaced) >= 13  # one of 24 is broken, and 320 images were seen
  expected = [sum(replaced[:10]), sum(replaced[10:])]
  assert [line["train/replaced_images"] for line in lines[:2]] == expected
  # 11 images in batches of 4, each counted once.
  assert "eval/broken_images" not in lines[2]
  experiment, batch = Experiment(resolve(config)), load(imagenet, "test")[np.arange(11)]
  images = normalise(batch["image"], experiment.info.mean, experiment.info.std)
  apply = jax.jit(functools.partial(experiment.model.apply, train=False))
  log_probs = apply(state.variables, images)[0].spatial.log_probs
  nll = -np.asarray(log_probs)[np.arange(11), batch["label"]].mean()
  assert lines[2]["eval/saol_nll"] == pytest.approx(nll, rel=1e-3)


def test_what_is_trained_so_far_is_saved_when_the_data_cannot_be_read_any_more(imagenet, tmp_path):
  config = recipe(imagenet)
  config.data.max_bad_fraction = 0.03  # one image of 24 is more
  source = load(imagenet)
  broken = file_names(source).index(BROKEN)
  config.seed = next(s for s in range(99) if broken not in Loader(source, 16, s).indices(0))
  with pytest.raises(UserError, match=BROKEN):
    train_and_evaluate(config, tmp_path)
  checkpoints = Checkpoints(tmp_path, {})
  assert list(checkpoints.steps) == [1]
  state = checkpoints.restore(Experiment(resolve(config)).abstract_state())
  checkpoints.close()
  assert int(state.step) == 1
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.variables))


def test_damage_on_the_disk_costs_what_it_hits(imagenet, tmp_path):
  """One byte of one image; the checksums of ArrayRecord tell which examples are lost."""
  shutil.copytree(imagenet / "imagenet2012", tmp_path / "imagenet2012")
  whole = load(imagenet)
  shard = next(tmp_path.rglob("*train*"))
  data = bytearray(shard.read_bytes())
  data[20_000] ^= 255
  shard.write_bytes(data)
  batch, intact = load(tmp_path)[np.arange(24)], whole[np.arange(24)]
  lost = batch["broken"] & ~intact["broken"]
  assert lost.sum() == 1
  good = ~batch["broken"]
  np.testing.assert_array_equal(batch["image"][good], intact["image"][good])


def test_labels_of_a_split_without_labels_are_refused(imagenet, monkeypatch):
  source = load(imagenet, "test")
  monkeypatch.setattr(source.records, "labels", np.full(11, -1, np.int32))
  with pytest.raises(
    UserError, match=r"ILSVRC2012_val_\d+\.JPEG .*has the label -1, expected 0 to 999"
  ):
    source[np.arange(2)]


# TensorFlow


def test_tensorflow_gets_no_accelerator(monkeypatch):
  tf = import_tensorflow()
  hidden = []
  monkeypatch.setattr(tf.config, "set_visible_devices", lambda *args: hidden.append(args))
  assert import_tensorflow.__wrapped__() is tf
  assert hidden == [([], "GPU"), ([], "TPU")]


def test_nothing_else_imports_tensorflow():
  package = pathlib.Path(saol_jax.__file__).parent
  importing = re.compile(r"^\s*(import|from) tensorflow( |\.|$)", re.MULTILINE)
  found = {path.name for path in package.rglob("*.py") if importing.search(path.read_text())}
  assert found == {"tensorflow_cpu.py"}
