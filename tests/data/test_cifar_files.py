"""CIFAR as its authors publish it, in pickles that Python 2 wrote."""

import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from saol_jax.data import cifar_files, load_source
from saol_jax.errors import UserError
from tests.data.cifar_checks import CIFAR10, check_cifar


@pytest.fixture
def published(tmp_path):
  """A CIFAR-10 of random images as its authors publish it, written by Python 2, unpacked."""
  rng, images = np.random.default_rng(0), {"train": [], "test": []}
  folder = tmp_path / "cifar-10-batches-py"
  folder.mkdir()
  files = [("train", f"data_batch_{i}") for i in range(1, 6)] + [("test", "test_batch")]
  for split, name in files:
    rows = rng.integers(0, 256, (20, 3072), np.uint8)  # channel by channel, then row by row
    content = {"labels": [i % 10 for i in range(20)], "data": rows}
    (folder / name).write_bytes(python2_pickle(content))
    for row in rows:
      image = np.empty((32, 32, 3), np.uint8)
      for channel in range(3):
        image[:, :, channel] = row[1024 * channel : 1024 * (channel + 1)].reshape(32, 32)
      images[split].append(image)
  (folder / "batches.meta").write_bytes(python2_pickle({"label_names": CIFAR10}))
  return tmp_path, {split: np.array(part) for split, part in images.items()}


def python2_pickle(content) -> bytes:
  """As Python 2 and the NumPy of 2009 wrote it with protocol 2: all strings are bytes.

  Assembled from opcodes of pickletools, since Python 3 cannot write it.
  """

  def string(value: bytes) -> bytes:
    return b"T" + len(value).to_bytes(4, "little") + value  # BINSTRING

  def value_of(value) -> bytes:
    if isinstance(value, str):
      return string(value.encode())
    if isinstance(value, int):
      return b"K" + bytes([value])  # BININT1
    if isinstance(value, list):
      return b"](" + b"".join(map(value_of, value)) + b"e"
    shape = b"".join(b"M" + side.to_bytes(2, "little") for side in value.shape) + b"\x86"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b")
    dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = b"(K\x01" + shape + dtype + b"\x89" + string(value.tobytes()) + b"t"
    return empty + b"\x87R" + state + b"b"

  items = b"".join(string(key.encode()) + value_of(value) for key, value in content.items())
  return b"\x80\x02}(" + items + b"u."


def test_cifar_is_read_from_what_its_authors_publish(published):
  folder, images = published
  # The pickles here are what NumPy reads too.
  own = pickle.loads((folder / "cifar-10-batches-py/test_batch").read_bytes(), encoding="bytes")
  assert own[b"data"].shape == (20, 3072)
  check_cifar(folder, images)
  check_cifar(folder / "cifar-10-batches-py", images)
  with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
    archive.add(folder / "cifar-10-batches-py", "cifar-10-batches-py")
  shutil.rmtree(folder / "cifar-10-batches-py")
  check_cifar(folder, images)
  check_cifar(folder / "cifar-10-python.tar.gz", images)


def test_published_files_are_written_as_they_are_read(published, tmp_path):
  folder, images = published
  for split in ("train", "test"):
    arrays = cifar_files.read("cifar10", split, folder / "cifar-10-batches-py")
    cifar_files.write("cifar10", split, arrays, tmp_path / "new" / "cifar-10-batches-py")
  own = (tmp_path / "new/cifar-10-batches-py/data_batch_2").read_bytes()
  np.testing.assert_array_equal(
    pickle.loads(own)["data"][3].reshape(3, 32, 32), images["train"][23].transpose(2, 0, 1)
  )
  check_cifar(tmp_path / "new", images)


def test_a_pickle_that_names_anything_else_is_refused(published):
  folder, _ = published
  evil = b"\x80\x02cos\nsystem\n" + b"U\x0etouch executed\x85R."
  (folder / "cifar-10-batches-py/test_batch").write_bytes(evil)
  with pytest.raises(UserError, match=r"it names os\.system, which is refused"):
    load_source("cifar10", "test", data_dir=str(folder))
  assert not Path("executed").exists()


@pytest.mark.parametrize("damage", ["cut", "no array", "not there", "no archive"])
def test_a_damaged_published_file_is_named(published, damage):
  folder, _ = published
  path = folder / "cifar-10-batches-py/test_batch"
  if damage == "cut":
    path.write_bytes(path.read_bytes()[:5000])
  elif damage == "no array":
    path.write_bytes(python2_pickle({"labels": [1], "data": [1, 2]}))
  elif damage == "not there":
    path.unlink()
  else:
    shutil.rmtree(path.parent)
    (folder / "cifar-10-python.tar.gz").write_bytes(b"<html>not found</html>")
  with pytest.raises(UserError, match=r"as its authors publish it .* get cifar-10-python.tar.gz"):
    load_source("cifar10", "test", data_dir=str(folder))
