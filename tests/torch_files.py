"""Files in the formats of `torch.save`, byte by byte, so that no PyTorch is needed to test them."""

import pathlib
import pickle
import pickletools
import zipfile
from collections.abc import Mapping

import numpy as np

STORAGES = {
  "float64": "DoubleStorage",
  "float32": "FloatStorage",
  "float16": "HalfStorage",
  "bfloat16": "BFloat16Storage",
  "int64": "LongStorage",
  "int32": "IntStorage",
  "int16": "ShortStorage",
  "int8": "CharStorage",
  "uint8": "ByteStorage",
  "bool": "BoolStorage",
}


def plain(value) -> bytes:
  """The instructions that push a number, a string or a tuple of them."""
  return pickletools.optimize(pickle.dumps(value, protocol=2))[2:-1]


def call(name: str, *arguments: bytes) -> bytes:
  """The instructions that call a global with what others have pushed."""
  module, _, attribute = name.rpartition(".")
  return b"c%s\n%s\n(%stR" % (module.encode(), attribute.encode(), b"".join(arguments))


def dictionary(items: Mapping[str, bytes]) -> bytes:
  """The instructions that make a dictionary of what others push."""
  return b"}(%su" % b"".join(plain(name) + value for name, value in items.items())


def tensor(key: str, dtype: str, size: int, shape, strides, offset: int = 0) -> bytes:
  """The instructions by which `torch.save` describes a window of a storage."""
  storage = b"(%sctorch\n%s\n%stQ" % (
    plain("storage"),
    STORAGES[dtype].encode(),
    plain(key) + plain("cpu") + plain(size),
  )
  hooks = call("collections.OrderedDict")
  arguments = (storage, plain(offset), plain(tuple(shape)), plain(tuple(strides)), plain(False))
  return call("torch._utils._rebuild_tensor_v2", *arguments, hooks)


def contiguous(key: str, array: np.ndarray) -> bytes:
  """The same for a whole array in row-major order."""
  strides = [stride // array.itemsize for stride in array.strides]
  return tensor(key, array.dtype.name, array.size, array.shape, strides)


def write_zip(
  path: pathlib.Path, content: bytes, storages: Mapping[str, np.ndarray], *, order: str = "little"
) -> None:
  """Writes the format of PyTorch 1.6 and later."""
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", b"\x80\x02" + content + b".")
    archive.writestr("archive/byteorder", order)
    for key, array in storages.items():
      archive.writestr(f"archive/data/{key}", array.tobytes())
    archive.writestr("archive/version", "3\n")


def write_legacy(path: pathlib.Path, content: bytes, storages: Mapping[str, np.ndarray]) -> None:
  """Writes the older format: a pickle after the other, then the numbers."""
  system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
  # Storages are referred to with a sixth item there: what they are a view of.
  content = content.replace(b"tQ", b"NtQ")
  with path.open("wb") as file:
    for value in (0x1950A86A20F9469CFC6C, 1001, system):
      file.write(pickle.dumps(value, protocol=2))
    file.write(b"\x80\x02" + content + b".")
    file.write(pickle.dumps(list(storages), protocol=2))
    for array in storages.values():
      file.write(array.size.to_bytes(8, "little") + array.tobytes())


def write_state_dict(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes contiguous arrays as a state dict."""
  content = dictionary({name: contiguous(name, array) for name, array in arrays.items()})
  write_zip(path, content, arrays)
