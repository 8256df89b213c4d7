"""Files of weights are found and read, from a disk and from the hub's cache."""

import json
import pathlib
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from saol_jax.errors import UserError
from saol_jax.weight_files import read_weights
from tests.torch_files import write_state_dict

ARRAYS = {
  "a": np.arange(6, dtype=np.float32).reshape(2, 3),
  "b": np.arange(3).astype(ml_dtypes.bfloat16),
}


def assert_read(source):
  found = read_weights(str(source))
  assert found.keys() == ARRAYS.keys()
  for name, array in ARRAYS.items():
    assert found[name].dtype == array.dtype
    np.testing.assert_array_equal(found[name], array)


def write_safetensors(path: pathlib.Path) -> None:
  """By the format's definition: length of the header, header, numbers."""
  header, end = {"__metadata__": {"format": "pt"}}, 0
  for name, array in ARRAYS.items():
    kind = {"float32": "F32", "bfloat16": "BF16"}[array.dtype.name]
    offsets, end = [end, end + array.nbytes], end + array.nbytes
    header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": offsets}
  text = json.dumps(header).encode()
  numbers = b"".join(array.tobytes() for array in ARRAYS.values())
  path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)


@pytest.mark.parametrize("name", ["a.safetensors", "a.bin", "no_suffix"])
def test_the_content_tells_the_format(tmp_path, name):
  write_safetensors(tmp_path / name)
  assert_read(tmp_path / name)
  write_state_dict(tmp_path / name, ARRAYS)
  assert_read(tmp_path / name)


def test_a_file_of_the_safetensors_library(tmp_path):
  safetensors.numpy.save_file({"a": ARRAYS["a"]}, tmp_path / "a.safetensors")
  np.testing.assert_array_equal(read_weights(str(tmp_path / "a.safetensors"))["a"], ARRAYS["a"])


def test_files_that_cannot_be_read(tmp_path):
  with pytest.raises(UserError, match=r"no\.pth' cannot be read \(No such file.*hf://org/name"):
    read_weights(str(tmp_path / "no.pth"))
  with pytest.raises(UserError, match=r"cannot be read \(Is a directory"):
    read_weights(str(tmp_path))
  write_safetensors(tmp_path / "a.safetensors")
  content = (tmp_path / "a.safetensors").read_bytes()
  (tmp_path / "a.safetensors").write_bytes(content[:-4])
  with pytest.raises(UserError, match=r"a\.safetensors is damaged .*download it again"):
    read_weights(str(tmp_path / "a.safetensors"))
  header = b'{"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
  (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"88")
  with pytest.raises(UserError, match=r"a\.safetensors holds numbers of a type .*convert it"):
    read_weights(str(tmp_path / "a.safetensors"))
  (tmp_path / "empty.pth").write_bytes(b"")
  with pytest.raises(UserError, match=r"empty\.pth is not a file of torch\.save"):
    read_weights(str(tmp_path / "empty.pth"))


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
  """The hub's cache as huggingface_hub lays it out, and no network; returns a function that adds a
  file of the model org/name to it."""
  constants = pytest.importorskip("huggingface_hub.constants")
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  model = tmp_path / "models--org--name"

  def add(file, write):
    snapshot = model / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True, exist_ok=True)
    (model / "refs").mkdir(exist_ok=True)
    (model / "refs" / "main").write_text("0" * 40)
    write(snapshot / file)

  return add


def test_models_of_the_hub(hub_cache):
  hub_cache("pytorch_model.bin", lambda path: write_state_dict(path, ARRAYS))
  assert_read("hf://org/name")
  hub_cache("model.safetensors", write_safetensors)
  assert_read("hf://org/name")
  assert_read("hf://org/name/pytorch_model.bin")


def test_safetensors_of_the_hub_come_first(hub_cache):
  hub_cache("model.safetensors", write_safetensors)
  hub_cache("pytorch_model.bin", lambda path: path.write_bytes(b"not read"))
  assert_read("hf://org/name")


def test_what_the_hub_does_not_give(hub_cache, monkeypatch):
  with pytest.raises(
    UserError, match=r"cannot be reached\. Download model\.safetensors or pytorch"
  ):
    read_weights("hf://org/name")
  with pytest.raises(UserError, match=r"cannot be reached\. Download other\.bin of org/name"):
    read_weights("hf://org/name/other.bin")
  with pytest.raises(UserError, match=r"could not be fetched.*expected hf://org/name"):
    read_weights("hf://a b/c d")
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(UserError, match="needs huggingface_hub: pip install huggingface_hub"):
    read_weights("hf://org/name")
