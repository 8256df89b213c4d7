"""Files that PyTorch wrote are read as PyTorch reads them, and ours are PyTorch's."""

import importlib.util

import numpy as np
import pytest

if importlib.util.find_spec("torch") is None:
  pytest.skip("torch is not installed: make test-parity does it", allow_module_level=True)

import torch

from saol_jax.errors import UserError
from saol_jax.torch_file import read_torch_file
from tests.torch_files import STORAGES, contiguous, dictionary, write_legacy, write_zip

both_formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@both_formats
def test_state_dicts_of_torch(tmp_path, zipped):
  module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
  whole = torch.arange(24.0).reshape(2, 3, 4)
  tensors = dict(module.state_dict()) | {
    "transposed": whole.permute(2, 0, 1),
    "sliced": whole[:, 1:, ::2],
    "scalar": torch.tensor(3),
    "empty": torch.zeros(0, 3),
    "parameter": torch.nn.Parameter(torch.ones(2)),
  }
  tensors |= {f"of_{kind}": torch.arange(6).reshape(2, 3).to(_dtype(kind)) for kind in STORAGES}
  content = {"state_dict": tensors, "epoch": 3, "optimizer": {"state": {0: {"m": whole}}}}
  torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
  found = read_torch_file(tmp_path / "a.pth")
  assert found.keys() == {f"state_dict.{name}" for name in tensors} | {"optimizer.state.0.m"}
  for name, tensor in tensors.items():
    array = found[f"state_dict.{name}"]
    assert array.dtype.name == str(tensor.dtype).removeprefix("torch.")
    np.testing.assert_array_equal(array.astype(np.float64), tensor.detach().double().numpy())


@both_formats
def test_a_whole_module_is_refused(tmp_path, zipped):
  module = torch.nn.Linear(2, 3)
  torch.save(module, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
  with pytest.raises(UserError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
    read_torch_file(tmp_path / "a.pth")


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_files_of_our_tests_are_torchs(tmp_path, write):
  arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(3)}
  content = dictionary({name: contiguous(name, array) for name, array in arrays.items()})
  write(tmp_path / "a.pth", content, arrays)
  found = torch.load(tmp_path / "a.pth", weights_only=True)
  assert found.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(found[name].numpy(), array)


def _dtype(name: str) -> torch.dtype:
  return getattr(torch, name)
