"""CIFAR-10 and CIFAR-100 from the files that their authors publish ("python version").

From https://www.cs.toronto.edu/~kriz/cifar.html: `cifar-10-python.tar.gz` and
`cifar-100-python.tar.gz`, as they are or unpacked. Neither TFDS nor TensorFlow is needed. The files
are pickles, and a pickle is a program: here it may name only what a NumPy array of bytes is made
of, and stand-ins take the place of that, so that it can neither import nor call anything.

`python -m saol_jax.data.cifar_files NAME TFDS_DIR DIR` writes the files from TFDS's preparation,
for a machine that has no TFDS.
"""

import io
import pathlib
import pickle
import sys
import tarfile
from typing import Any, NamedTuple

import numpy as np

from saol_jax.errors import UserError

_SIDE = 32


class Layout(NamedTuple):
  """Where the authors put what, for one of the data sets.

  Attributes:
    archive: the file to download.
    folder: what it unpacks to.
    splits: "train" and "test" -> names of files.
    meta: name of the file with the names of the classes.
    labels, names: keys in these files.
  """

  archive: str
  folder: str
  splits: dict[str, tuple[str, ...]]
  meta: str
  labels: str
  names: str


LAYOUTS = {
  "cifar10": Layout(
    "cifar-10-python.tar.gz",
    "cifar-10-batches-py",
    {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    "batches.meta",
    "labels",
    "label_names",
  ),
  "cifar100": Layout(
    "cifar-100-python.tar.gz",
    "cifar-100-python",
    {"train": ("train",), "test": ("test",)},
    "meta",
    "fine_labels",
    "fine_label_names",
  ),
}


class Arrays(NamedTuple):
  """One split: (N, 32, 32, 3) uint8, (N,) int32, and the K names of the classes."""

  images: np.ndarray
  labels: np.ndarray
  class_names: tuple[str, ...]


def find(name: str, data_dir: str | None) -> pathlib.Path | None:
  """The unpacked folder or the archive, in `data_dir` or itself; None where there is neither."""
  if not data_dir:
    return None
  root, layout = pathlib.Path(data_dir).expanduser(), LAYOUTS[name]
  candidates = [root / layout.folder, root / layout.archive]
  if root.name in (layout.folder, layout.archive):
    candidates.append(root)
  return next((path for path in candidates if path.exists()), None)


def read(name: str, split: str, path: pathlib.Path) -> Arrays:
  """Reads one split, "train" or "test", in the order of the files.

  Args:
    name: a key of LAYOUTS.
    split: "train" or "test".
    path: from `find`.

  Raises:
    UserError: a file is missing or damaged, or is not what its name says.
  """
  layout = LAYOUTS[name]
  wanted = (layout.meta, *layout.splits[split])
  try:
    meta, *parts = (_unpickle(content) for content in _contents(path, layout.folder, wanted))
    images = np.concatenate([part["data"].numbers() for part in parts])
    labels = np.concatenate([np.array(part[layout.labels], np.int32) for part in parts])
    names = tuple(str(n, "utf-8") if isinstance(n, bytes) else n for n in meta[layout.names])
    images = images.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
  except Exception as error:  # a damaged archive or pickle can fail in any way
    raise UserError(
      f"{path} does not hold {name} as its authors publish it ({type(error).__name__}: {error}); "
      f"get {layout.archive} again from https://www.cs.toronto.edu/~kriz/cifar.html"
    ) from error
  return Arrays(np.ascontiguousarray(images), labels, names)


def write(name: str, split: str, arrays: Arrays, folder: pathlib.Path) -> None:
  """Writes one split as `read` finds it, all files but the last equally long."""
  layout = LAYOUTS[name]
  folder.mkdir(parents=True, exist_ok=True)
  rows = arrays.images.transpose(0, 3, 1, 2).reshape(len(arrays.images), -1)
  files = layout.splits[split]
  length = -(-len(rows) // len(files))
  for i, file in enumerate(files):
    part = slice(i * length, (i + 1) * length)
    _pickle(folder / file, {"data": rows[part], layout.labels: arrays.labels[part].tolist()})
  _pickle(folder / layout.meta, {layout.names: list(arrays.class_names)})


class _Array:
  """Stands for an array that is being unpickled: NumPy makes it empty, and then sets its state."""

  def __init__(self, *_):
    self._state = None

  def __setstate__(self, state: Any) -> None:
    self._state = state

  def numbers(self) -> np.ndarray:
    """The bytes as an array."""
    _, shape, dtype, fortran, content = self._state
    if dtype.name not in (b"u1", "u1"):
      raise ValueError(f"numbers of type {dtype.name!r}, expected bytes")
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Dtype:
  """Stands for `numpy.dtype`."""

  def __init__(self, name: Any, *_):
    self.name = name

  def __setstate__(self, state: Any) -> None:
    """Byte order, which bytes have none of."""


class _Unpickler(pickle.Unpickler):
  """Knows the parts of an array, under the names of NumPy 1 and 2, and nothing else."""

  _KNOWN = {  # noqa: RUF012
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
  }

  def find_class(self, module: str, name: str) -> type:
    """What stands for a name."""
    if (module, name) not in self._KNOWN:
      raise pickle.UnpicklingError(f"it names {module}.{name}, which is refused")
    return self._KNOWN[module, name]


def _unpickle(content: bytes) -> dict[str, Any]:
  found = _Unpickler(io.BytesIO(content), encoding="bytes").load()  # Python 2's strings
  return {str(k, "ascii") if isinstance(k, bytes) else k: v for k, v in found.items()}


def _pickle(path: pathlib.Path, content: dict[str, Any]) -> None:
  path.write_bytes(pickle.dumps(content, protocol=4))  # 5 names other parts of an array


def _contents(path: pathlib.Path, folder: str, names: tuple[str, ...]) -> list[bytes]:
  """The named files of the unpacked folder or of the archive."""
  if path.is_dir():
    return [(path / name).read_bytes() for name in names]
  found = {}
  with tarfile.open(path, "r:gz") as archive:  # packed in one stream: read once, from start to end
    for member in archive:
      name = member.name.removeprefix("./").removeprefix(f"{folder}/")
      if name in names and member.isfile():
        found[name] = archive.extractfile(member).read()
  missing = [name for name in names if name not in found]
  if missing:
    raise FileNotFoundError(f"no {folder}/{', '.join(missing)} inside")
  return [found[name] for name in names]


if __name__ == "__main__":
  if len(sys.argv) != 4 or sys.argv[1] not in LAYOUTS:
    sys.exit(f"usage: python -m saol_jax.data.cifar_files {'|'.join(LAYOUTS)} TFDS_DIR DIR")
  from saol_jax.data.cifar import read_prepared

  try:
    for of_split in ("train", "test"):
      target = pathlib.Path(sys.argv[3]) / LAYOUTS[sys.argv[1]].folder
      write(sys.argv[1], of_split, read_prepared(sys.argv[1], of_split, sys.argv[2]), target)
  except (UserError, OSError) as user_error:
    print(f"error: {user_error}", file=sys.stderr)
    sys.exit(2)
