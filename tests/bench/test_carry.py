"""CIFAR as mosaics and back."""

import numpy as np
import pytest

from benchmarks import carry
from saol_jax.data import cifar_files
from saol_jax.errors import UserError

NAMES = tuple(f"class {i}" for i in range(10))


@pytest.fixture
def published(tmp_path):
  """CIFAR-10's files with a few images, and these."""
  rng, arrays = np.random.default_rng(0), {}
  for split, number in (("train", 450), ("test", 7)):
    images = rng.integers(0, 256, (number, 32, 32, 3), np.uint8)
    arrays[split] = cifar_files.Arrays(images, np.arange(number, dtype=np.int32) % 10, NAMES)
    cifar_files.write("cifar10", split, arrays[split], tmp_path / "data" / "cifar-10-batches-py")
  return tmp_path / "data", arrays


def by_content(arrays: cifar_files.Arrays) -> set[tuple[bytes, int]]:
  found = {(i.tobytes(), int(label)) for i, label in zip(*arrays[:2], strict=True)}
  assert len(found) == len(arrays.images)
  return found


def test_what_is_unpacked_is_what_was_packed(published, tmp_path, monkeypatch):
  """In whatever order, since the loader has one of its own."""
  data_dir, arrays = published
  monkeypatch.setattr(carry, "_ROWS", 2)
  paths = carry.pack("cifar10", data_dir, tmp_path / "parts")
  names = ["labels.json", "train_0.webp", "train_200.webp", "train_400.webp", "test_0.webp"]
  assert [path.name for path in paths] == names
  files = carry.unpack(tmp_path / "parts", tmp_path / "there")
  assert {path.name for path in files} == {path.name for path in data_dir.glob("*/*")}
  for split in ("train", "test"):
    found = cifar_files.read("cifar10", split, tmp_path / "there" / "cifar-10-batches-py")
    assert by_content(found) == by_content(arrays[split])
    assert found.class_names == NAMES


def test_the_first_parts_can_be_unpacked_alone_and_others_not(published, tmp_path, monkeypatch):
  monkeypatch.setattr(carry, "_ROWS", 2)
  folder = tmp_path / "parts"
  *_, last_of_train, _ = carry.pack("cifar10", published[0], folder)
  last_of_train.unlink()
  carry.unpack(folder, tmp_path / "there")
  found = cifar_files.read("cifar10", "train", tmp_path / "there" / "cifar-10-batches-py")
  assert len(found.images) == 400
  assert by_content(found) <= by_content(published[1]["train"])
  there = folder / "train_200.webp"
  content = there.read_bytes()
  there.write_bytes(content[:-9])
  with pytest.raises(UserError, match=r"train_200\.webp cannot be read .*; carry it again"):
    carry.unpack(folder, tmp_path / "there")
  there.write_bytes(content)
  (folder / "train_0.webp").unlink()
  with pytest.raises(UserError, match=r"lacks train_0\.webp, and has train_200\.webp"):
    carry.unpack(folder, tmp_path / "there")
  there.unlink()
  with pytest.raises(UserError, match=r"train_0\.webp cannot be read"):
    carry.unpack(folder, tmp_path / "there")
  (folder / "labels.json").unlink()
  with pytest.raises(UserError, match=r"no labels\.json; carry that file"):
    carry.unpack(folder, tmp_path / "there")
