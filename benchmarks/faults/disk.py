"""A small file system that can be filled, and folders that become read-only under a process."""

import contextlib
import os
import pathlib
import subprocess
from collections.abc import Iterator


class Disk:
  """A tmpfs of its own in a folder, or that folder itself where mounting is not permitted."""

  def __init__(self, folder: pathlib.Path, megabytes: int):
    self.folder, self._filler = folder, folder / "filler"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs"]
    self.small = _succeeds("mount", *options, str(folder))

  def close(self) -> None:
    """Unmounts it; what is on it is gone."""
    if self.small:
      subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

  @contextlib.contextmanager
  def full(self, left: int) -> Iterator[None]:
    """Inside, no more than `left` bytes are free."""
    with self._filler.open("wb", buffering=0) as file:
      try:
        while True:
          usage = os.statvfs(self.folder)
          excess = usage.f_bavail * usage.f_frsize - left
          if excess <= 0:
            break
          file.write(bytes(min(excess, 1 << 20)))
      except OSError:  # the run took the rest
        pass
    try:
      yield
    finally:
      self._filler.unlink()

  @staticmethod
  @contextlib.contextmanager
  def read_only(folder: pathlib.Path) -> Iterator[None]:
    """Inside, nothing can be opened for writing in the folder; root's rights do not help.

    Files that a process has open already stay writable.
    """
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
      subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
      yield
    finally:
      subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _succeeds(*command: str) -> bool:
  return subprocess.run(command, capture_output=True, check=False).returncode == 0
