"""Tensors of a PyTorch file (`.pth`, `.bin`), without PyTorch and without running its pickle.

Both of `torch.save`'s formats are read: the zip archive (the default since PyTorch 1.6, 2020), and
the older stream of pickles, in which torchvision still serves many of its weights. A pickle is a
program: it can call any function of any module. Here it may only name what a state dict is made of,
and anything else is refused before it is imported. The reference is `torch/serialization.py`.
"""

import collections
import functools
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from saol_jax.errors import UserError

_STORAGES = {
  "DoubleStorage": np.dtype(np.float64),
  "FloatStorage": np.dtype(np.float32),
  "HalfStorage": np.dtype(np.float16),
  "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "LongStorage": np.dtype(np.int64),
  "IntStorage": np.dtype(np.int32),
  "ShortStorage": np.dtype(np.int16),
  "CharStorage": np.dtype(np.int8),
  "ByteStorage": np.dtype(np.uint8),
  "BoolStorage": np.dtype(np.bool_),
}

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_START = pickle.dumps(_LEGACY_MAGIC, protocol=2)
_LEGACY_PROTOCOL = 1001


def read_torch_file(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the tensors of a file written by `torch.save`.

  Args:
    path: of a state dict, or of a dictionary that holds one at any depth.

  Returns:
    The tensors by name. Names of nested dictionaries are joined by dots, such as
    `state_dict.conv1.weight`; what is not a tensor is left out. The arrays may share memory.

  Raises:
    UserError: the file is damaged, in another format, or its pickle names something else than the
      parts of a state dict. Nothing that it names has been imported or called then.
  """
  try:
    with path.open("rb") as file:
      start = file.read(len(_LEGACY_START))
      file.seek(0)
      if start == _LEGACY_START:
        content, numbers = _read_legacy(file, path)
      elif zipfile.is_zipfile(file):
        content, numbers = _read_zip(file, path)
      else:
        raise UserError(
          f"{path} is not a file of torch.save: neither a zip archive nor its older format. If "
          "PyTorch can read it, write it anew with: python -c 'import torch; "
          f'torch.save(torch.load("{path.name}", weights_only=True), "new.pth")\''
        )
      return {name: _array(tensor, numbers) for name, tensor in _tensors(content, "")}
  except (UserError, OSError):
    raise
  except Exception as error:  # a damaged pickle can fail in any way
    raise UserError(
      f"{path} is damaged, or not a state dict ({type(error).__name__}: {error}); download it again"
    ) from error


class _StorageType(NamedTuple):
  """Stands for `torch.FloatStorage` and its like."""

  dtype: np.dtype


class _Storage(NamedTuple):
  """A stored run of numbers, by reference."""

  key: str
  dtype: np.dtype


class _Tensor(NamedTuple):
  """A window of a storage, as the pickle describes it: not checked yet."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


_Numbers = Callable[[_Storage], np.ndarray]


class _Unpickler(pickle.Unpickler):
  """Knows what a state dict is made of, under PyTorch's names, and nothing else.

  What it hands out cannot be changed by the pickle (tuples, a type of C), or is made anew for each
  file (two functions).
  """

  def __init__(self, file: IO[bytes], path: pathlib.Path):
    super().__init__(file)
    self._path = path
    self.dtypes: dict[str, np.dtype] = {}  # of each storage that is referred to

    def tensor(storage, offset, shape, strides, *_):
      return _Tensor(storage, offset, tuple(shape), tuple(strides))

    def parameter(data, *_):
      return data

    self._known = {
      "collections.OrderedDict": collections.OrderedDict,
      "torch._utils._rebuild_tensor": tensor,  # before PyTorch 0.4
      "torch._utils._rebuild_tensor_v2": tensor,
      "torch._utils._rebuild_parameter": parameter,
      "torch.nn.parameter.Parameter": parameter,
      **{f"torch.{name}": _StorageType(dtype) for name, dtype in _STORAGES.items()},
    }

  def find_class(self, module: str, name: str) -> Any:
    """The stand-in for a global that the pickle asks for; nothing is ever imported."""
    if f"{module}.{name}" not in self._known:
      raise UserError(
        f"{self._path} is refused: its pickle asks for {module}.{name}, and only tensors in plain "
        "dictionaries are read, since a pickle can run any program. If you trust the file, save "
        "its weights alone where PyTorch is installed: torch.save(model.state_dict(), 'new.pth'), "
        "or with safetensors.torch.save_file"
      )
    return self._known[f"{module}.{name}"]

  def persistent_load(self, pid: tuple) -> _Storage:
    """The storage that a tensor refers to."""
    kind, storage_type, key, _, _, *view = pid
    if kind != "storage" or any(view):
      raise ValueError(f"an unknown reference, {pid}")
    self.dtypes[key] = storage_type.dtype
    return _Storage(key, storage_type.dtype)


def _read_zip(file: IO[bytes], path: pathlib.Path) -> tuple[Any, _Numbers]:
  """The pickle's content, and a function that reads the numbers of a storage."""
  archive = zipfile.ZipFile(file)
  names = archive.namelist()
  (pickled,) = (name for name in names if name.rpartition("/")[2] == "data.pkl")
  folder = pickled.removesuffix("data.pkl")
  order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in names else b"little"
  sign = {b"little": "<", b"big": ">"}[order]
  content = _Unpickler(archive.open(pickled), path).load()

  @functools.cache
  def numbers(storage: _Storage) -> np.ndarray:
    raw = archive.read(f"{folder}data/{storage.key}")
    return np.frombuffer(raw, storage.dtype.newbyteorder(sign))

  return content, numbers


def _read_legacy(file: IO[bytes], path: pathlib.Path) -> tuple[Any, _Numbers]:
  """Likewise: pickles of magic, version, system, content and keys; then the storages."""
  _, protocol, system = (_Unpickler(file, path).load() for _ in range(3))
  if protocol != _LEGACY_PROTOCOL or not system["little_endian"]:
    raise ValueError(f"written with protocol {protocol} on {system}")
  unpickler = _Unpickler(file, path)
  content = unpickler.load()
  stored = {}
  for key in _Unpickler(file, path).load():
    size = int.from_bytes(file.read(8), "little") * unpickler.dtypes[key].itemsize
    stored[key] = file.read(size)
    if len(stored[key]) != size:
      raise ValueError("it ends too early")
  return content, lambda storage: np.frombuffer(stored[storage.key], storage.dtype)


def _tensors(content: Any, prefix: str) -> Iterator[tuple[str, _Tensor]]:
  """The tensors of nested dictionaries, names joined by dots."""
  if isinstance(content, _Tensor):
    yield prefix, content
  elif isinstance(content, dict):
    for name, value in content.items():
      yield from _tensors(value, f"{prefix}.{name}" if prefix else str(name))


def _array(tensor: _Tensor, numbers: _Numbers) -> np.ndarray:
  """A read-only view of the storage.

  Raises:
    ValueError: it would reach beyond the storage.
  """
  stored, (_, offset, shape, strides) = numbers(tensor.storage), tensor
  if min((offset, *shape, *strides)) < 0:
    raise ValueError(f"a tensor of shape {shape} with offset {offset} and strides {strides}")
  last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
  if 0 not in shape and last >= stored.size:
    raise ValueError(f"a tensor of shape {shape} in a storage of {stored.size} numbers")
  steps = [stride * stored.itemsize for stride in strides]
  return np.lib.stride_tricks.as_strided(stored[offset:], shape, steps, writeable=False)
