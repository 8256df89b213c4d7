"""Files that hold what was written, whatever happens to the machine or to their folder."""

import errno
import os
import pathlib
from typing import IO


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
