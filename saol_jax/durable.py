"""Files that hold what was written, whatever happens to the machine or to their folder."""

import contextlib
import errno
import fcntl
import glob
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import IO

_NEW_SECONDS = 60.0


def write_text(path: pathlib.Path, text: str) -> None:
  """Replaces the content of a file at once: after a power cut, too, it is the old or the new one.

  A file that has this content already is left alone. Names of files that are not UTF-8 come back as
  the bytes that they are.
  """
  content = text.encode(errors="surrogateescape")
  if path.is_file() and path.read_bytes() == content:
    return
  temporary = path.with_name(f"{path.name}.tmp")
  with temporary.open("wb") as file:
    file.write(content)
    flush_to_disk(file)
  temporary.replace(path)


@contextlib.contextmanager
def scratch_folder(parent: pathlib.Path, prefix: str) -> Iterator[pathlib.Path]:
  """Inside `with`, a new folder for what is not whole yet; afterwards it is deleted.

  What killed processes have left of that prefix is deleted first. A folder in use is known by the
  kernel's lock on it.

  Args:
    parent: where it is made.
    prefix: of its name.
  """
  for left in parent.glob(f"{glob.escape(prefix)}*"):
    with _locked(left) as free:
      # A folder that was made just now may not have its lock yet.
      if free and time.time() - left.stat().st_mtime > _NEW_SECONDS:
        shutil.rmtree(left, ignore_errors=True)
  with tempfile.TemporaryDirectory(dir=parent, prefix=prefix) as name:
    folder = pathlib.Path(name)
    with _locked(folder):
      yield folder


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[bool]:
  """Inside `with`, the lock on a folder; whether it was to be had."""
  file = None
  try:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    free = True
  except OSError:  # another process has it, or the file system has no locks
    free = False
  try:
    yield free
  finally:
    if file is not None:
      os.close(file)


def flush_to_disk(file: IO) -> None:
  """Returns once all that was written to an open file is on disk."""
  file.flush()
  try:
    os.fsync(file.fileno())
  except OSError as error:
    if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot say
      raise


def is_at(file: os.stat_result, path: pathlib.Path) -> bool:
  """Whether a file is the one of that name, not deleted, moved away or replaced since.

  Args:
    file: `os.fstat` of it, when it was opened.
    path: its name.
  """
  try:
    return os.path.samestat(file, path.stat())
  except OSError:
    return False
