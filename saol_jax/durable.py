"""Files that hold what was written, whatever happens to the machine or to their folder."""

import errno
import os
import pathlib
from typing import IO


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
