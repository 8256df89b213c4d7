"""The record of a run: `metrics.jsonl`, and TensorBoard where TensorFlow is installed."""

import contextlib
import json
import logging
import os
import pathlib
import threading
from collections.abc import Iterator, Mapping

import numpy as np

from saol_jax.distributed import is_main_process
from saol_jax.durable import flush_to_disk, is_at, write_text
from saol_jax.errors import UserError
from saol_jax.tensorboard import TensorBoard

logger = logging.getLogger(__name__)


class RunLog:
  """Appends one JSON object a line, key `step`, to `workdir/metrics.jsonl`.

  Of several processes the first one writes; `records` are the same in all.

  Keys under `time/` differ from run to run; all others repeat exactly on one machine, on a GPU only
  where `config.deterministic` is on.
  """

  def __init__(self, workdir: pathlib.Path, step: int):
    """Opens the log of a run that goes on at `step`: later lines are taken back.

    They belong to steps that a killed run had done after its last checkpoint, and that will now be
    done again.

    Raises:
      UserError: the folder cannot be written.
    """
    self._path = workdir / "metrics.jsonl"
    found = read_records(self._path)
    self.records = [record for record in found if record["step"] <= step]
    self._file = self._tensorboard = None
    self._lock = threading.Lock()
    if not is_main_process():
      return
    self._write_all()
    self._tensorboard = TensorBoard(workdir / "tensorboard")

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends a line, which is on disk when this returns: before the checkpoint that follows.

    Raises:
      UserError: it cannot be written.
    """
    record = {"step": step, **values}
    self.put_back()
    with self._lock:
      self.records.append(record)
      if self._file is not None:
        with self._writing():
          self._file.write(json.dumps(record) + "\n")
          flush_to_disk(self._file)
    if self._tensorboard is not None:
      self._tensorboard.write_scalars(step, values)

  def put_back(self) -> None:
    """Writes all lines anew where the file has vanished or is another; in any thread.

    Raises:
      UserError: it cannot be written.
    """
    with self._lock:
      if self._file is None or is_at(self._opened, self._path):
        return
      logger.warning(
        "LOG VANISHED: %s is gone or another; it is written anew, with all its lines", self._path
      )
      self._write_all()

  def write_image(self, step: int, name: str, image: np.ndarray) -> None:
    """Shows an image (H, W, 3) uint8 in TensorBoard; may be called from another thread."""
    if self._tensorboard is not None:
      self._tensorboard.write_image(step, name, image)

  def wait(self) -> None:
    """Waits until TensorBoard's events are on disk too."""
    if self._tensorboard is not None:
      self._tensorboard.wait()

  def close(self) -> None:
    """Closes the files; what could not be written has been said by `write`."""
    self._close_file()
    if self._tensorboard is not None:
      self._tensorboard.close()

  def _write_all(self) -> None:
    """Writes all records to the file of that name, and opens it."""
    self._close_file()
    with self._writing():
      self._path.parent.mkdir(parents=True, exist_ok=True)
      write_text(self._path, "".join(json.dumps(record) + "\n" for record in self.records))
      self._file = self._path.open("a")
      self._opened = os.fstat(self._file.fileno())

  def _close_file(self) -> None:
    if self._file is not None:
      with contextlib.suppress(OSError):  # closing tries again to write what could not be written
        self._file.close()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      raise UserError(
        f"{self._path} cannot be written: {error.strerror or error}; the checkpoints saved so far "
        "are as they were. Free some space or mend the folder, then run the same command again to "
        "go on."
      ) from error


def read_records(path: pathlib.Path) -> list[dict[str, float]]:
  """The lines of a `metrics.jsonl`; [] without the file.

  A last line that was cut off is left out, and with a warning any other that is damaged.
  """
  if not path.exists():
    return []
  records = []
  lines = path.read_text(errors="replace").splitlines()
  for number, line in enumerate(lines, 1):
    try:
      record = json.loads(line)
      numbers = all(isinstance(value, int | float) for value in record.values())
      if not (numbers and isinstance(record["step"], int)):
        raise ValueError
    except (ValueError, KeyError, AttributeError):
      if number < len(lines):
        logger.warning("DAMAGED LOG: line %d of %s is left out: %.80s", number, path, line)
    else:
      records.append(record)
  return records


def scores(records: list[dict[str, float]], name: str) -> dict[int, float]:
  """Value of `name` by step, where it was recorded."""
  return {record["step"]: record[name] for record in records if name in record}
