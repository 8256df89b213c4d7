"""Files from others are data: whatever is put in their place, loading them runs no code of theirs.

PyTorch's files and CIFAR's, which are pickles by nature, have tests of their own.
"""

import os
import pathlib
import pickle

import pytest

from saol_jax.errors import UserError
from saol_jax.trained import restore_run
from tests.support import write_run


class _Hostile:
  """A pickle of it makes a file when it is read."""

  def __init__(self, marker: pathlib.Path):
    self.marker = marker

  def __reduce__(self):
    return os.mkdir, (str(self.marker),)


@pytest.fixture
def hostile(tmp_path) -> tuple[bytes, pathlib.Path]:
  """A pickle, and the folder that reading it would make."""
  marker = tmp_path / "marker"
  payload = pickle.dumps(_Hostile(marker))
  pickle.loads(payload)
  assert marker.exists()
  marker.rmdir()
  return payload, marker


def test_no_file_of_a_run_is_executed(tmp_path, hostile):
  """A file of each name in turn: descriptions, and arrays in whatever files Orbax keeps them."""
  payload, marker = hostile
  run = write_run(tmp_path / "run")
  names = {path.name if path.parent.name != "d" else "d/...": path for path in _files(run.folder)}
  refused = []
  for path in names.values():
    before = path.read_bytes()
    path.write_bytes(payload)
    try:
      restore_run(run.folder)
    except UserError:
      refused.append(path.name)
    path.write_bytes(before)
    assert not marker.exists(), path
  assert {"config.json", "model.json"} < set(refused)  # and some of the checkpoint's


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  return [path for path in sorted(folder.rglob("*")) if path.is_file()]
