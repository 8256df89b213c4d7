"""PyTorch's files are read without PyTorch, and their pickles run nothing."""

import os
import pickle

import ml_dtypes
import numpy as np
import pytest

from saol_jax.errors import UserError
from saol_jax.torch_file import read_torch_file
from tests.torch_files import (
  STORAGES,
  call,
  contiguous,
  dictionary,
  plain,
  tensor,
  write_legacy,
  write_state_dict,
  write_zip,
)

both_formats = pytest.mark.parametrize("write", [write_zip, write_legacy])


def arrays():
  """One of each type."""
  kinds = [np.dtype(ml_dtypes.bfloat16 if d == "bfloat16" else d) for d in STORAGES]
  return {kind.name: np.arange(6).reshape(2, 3).astype(kind) for kind in kinds}


@both_formats
def test_every_type_comes_back(tmp_path, write):
  content = dictionary({name: contiguous(name, array) for name, array in arrays().items()})
  write(tmp_path / "a.pth", content, arrays())
  found = read_torch_file(tmp_path / "a.pth")
  assert found.keys() == STORAGES.keys()
  for name, array in arrays().items():
    assert found[name].dtype == array.dtype
    np.testing.assert_array_equal(found[name], array)


@both_formats
def test_windows_of_a_shared_storage(tmp_path, write):
  numbers = np.arange(24, dtype=np.float32)
  whole = numbers.reshape(2, 3, 4)
  content = {
    "transposed": tensor("0", "float32", 24, (4, 2, 3), (1, 12, 4)),
    "sliced": tensor("0", "float32", 24, (2, 2, 2), (12, 4, 2), 5),
    "repeated": tensor("0", "float32", 24, (3, 2), (0, 1), 22),
    "scalar": tensor("0", "float32", 24, (), (), 7),
    "empty": tensor("0", "float32", 24, (0, 3), (3, 1)),
  }
  write(tmp_path / "a.pth", dictionary(content), {"0": numbers})
  found = read_torch_file(tmp_path / "a.pth")
  np.testing.assert_array_equal(found["transposed"], whole.transpose(2, 0, 1))
  np.testing.assert_array_equal(found["sliced"], whole[:, 1:, 1::2])
  np.testing.assert_array_equal(found["repeated"], [[22, 23]] * 3)
  assert found["scalar"] == 7
  assert found["empty"].shape == (0, 3)


def test_big_endian(tmp_path):
  array = np.array([1.5, -2.0], np.float32)
  content = dictionary({"a": contiguous("a", array)})
  write_zip(tmp_path / "a.pth", content, {"a": array.astype(">f4")}, order="big")
  np.testing.assert_array_equal(read_torch_file(tmp_path / "a.pth")["a"], array)


def test_nested_dictionaries_are_joined_and_the_rest_is_left_out(tmp_path):
  array = np.ones(2, np.float32)
  inner = call("collections.OrderedDict") + b"(%su" % (plain("w") + contiguous("0", array))
  inner += dictionary({"_metadata": plain("of state_dict")}) + b"b"  # an attribute of it
  optimizer = b"}(%su" % (plain(0) + contiguous("0", array))
  wrapped = call("torch._utils._rebuild_parameter", contiguous("0", array), plain(True), b"}")
  content = {"model": inner, "state": optimizer, "epoch": plain(3), "p": wrapped}
  write_zip(tmp_path / "a.pth", dictionary(content), {"0": array})
  assert list(read_torch_file(tmp_path / "a.pth")) == ["model.w", "state.0", "p"]


@both_formats
def test_a_hostile_pickle_is_named_and_runs_nothing(tmp_path, write):
  marker = tmp_path / "marker"

  class Hostile:
    def __reduce__(self):
      return os.system, (f"touch {marker}",)

  hostile = pickle.dumps(Hostile(), protocol=2)
  pickle.loads(hostile)
  assert marker.exists()  # it would
  marker.unlink()
  write(tmp_path / "a.pth", hostile[2:-1], {})
  with pytest.raises(UserError, match=r"refused: its pickle asks for posix\.system"):
    read_torch_file(tmp_path / "a.pth")
  assert not marker.exists()


@pytest.mark.parametrize(
  "name", ["builtins.eval", "torch.load", "torch.hub.load", "os.path.join", "argparse.Namespace"]
)
def test_whatever_is_not_a_part_of_a_state_dict_is_refused(tmp_path, name):
  write_zip(tmp_path / "a.pth", call(name, plain("1")), {})
  with pytest.raises(UserError, match=rf"asks for {name}, .*torch\.save\(model\.state_dict\(\)"):
    read_torch_file(tmp_path / "a.pth")


def test_a_pickle_cannot_change_what_the_next_file_is_read_with(tmp_path):
  state = b"(%stb" % (plain(None) + dictionary({"__defaults__": plain((1, 2, 3, 4))}))
  write_zip(tmp_path / "hostile.pth", b"ctorch._utils\n_rebuild_tensor_v2\n" + state + b")R", {})
  with pytest.raises(UserError):
    read_torch_file(tmp_path / "hostile.pth")
  write_zip(tmp_path / "b.pth", call("torch._utils._rebuild_tensor_v2"), {})
  with pytest.raises(UserError, match="missing 4 required positional arguments"):
    read_torch_file(tmp_path / "b.pth")


@pytest.mark.parametrize(
  ("shape", "strides", "offset"),
  [((5,), (1,), 0), ((2,), (4,), 0), ((1,), (1,), 4), ((2,), (-1,), 1), ((2,), (1,), -1)],
)
def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path, shape, strides, offset):
  content = dictionary({"a": tensor("0", "float32", 4, shape, strides, offset)})
  write_zip(tmp_path / "a.pth", content, {"0": np.ones(4, np.float32)})
  with pytest.raises(UserError, match=r"a\.pth is damaged.* a tensor of shape"):
    read_torch_file(tmp_path / "a.pth")


@both_formats
def test_a_file_that_is_cut_off(tmp_path, write):
  array = np.ones(100, np.float32)
  write(tmp_path / "a.pth", dictionary({"a": contiguous("a", array)}), {"a": array})
  whole = (tmp_path / "a.pth").read_bytes()
  for size in (len(whole) // 2, len(whole) - 10):
    (tmp_path / "a.pth").write_bytes(whole[:size])
    with pytest.raises(UserError, match=r"a\.pth is (damaged|not a file of torch\.save)"):
      read_torch_file(tmp_path / "a.pth")


def test_a_flipped_bit(tmp_path):
  array = np.full(100, 7, np.float32)
  write_state_dict(tmp_path / "a.pth", {"a": array})
  content = bytearray((tmp_path / "a.pth").read_bytes())
  content[content.index(array.tobytes()) + 50] ^= 1
  (tmp_path / "a.pth").write_bytes(content)
  with pytest.raises(UserError, match=r"damaged.*CRC"):
    read_torch_file(tmp_path / "a.pth")


def test_something_else(tmp_path):
  (tmp_path / "a.pth").write_bytes(b"a tar archive, or a picture")
  with pytest.raises(UserError, match=r"write it anew with: python -c 'import torch; torch\.save"):
    read_torch_file(tmp_path / "a.pth")
