"""The record of a run: `metrics.jsonl`, and TensorBoard where TensorFlow is installed."""

import json
import logging
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from saol_jax.distributed import is_main_process
from saol_jax.tensorflow_cpu import import_tensorflow

logger = logging.getLogger(__name__)


class RunLog:
  """Appends one JSON object a line, key `step`, to `workdir/metrics.jsonl`.

  Of several processes the first one writes; `records` are the same in all.

  Keys under `time/` depend on the machine; all others are a pure function of the config.
  """

  def __init__(self, workdir: pathlib.Path, step: int):
    """Opens the log of a run that goes on at `step`: later lines are taken back.

    They belong to steps that a killed run had done after its last checkpoint, and that will now be
    done again.
    """
    self._path = workdir / "metrics.jsonl"
    found = read_records(self._path)
    self.records = [record for record in found if record["step"] <= step]
    self._file = self._tensorboard = None
    if not is_main_process():
      return
    temporary = self._path.with_suffix(".jsonl.tmp")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in self.records))
    os.replace(temporary, self._path)
    self._file = self._path.open("a")
    self._tensorboard = _tensorboard_writer(workdir)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends a line."""
    record = {"step": step, **values}
    self.records.append(record)
    if self._file is not None:
      self._file.write(json.dumps(record) + "\n")
      self._file.flush()
    if self._tensorboard is not None:
      self._tensorboard.write_scalars(step, dict(values))
      self._tensorboard.flush()

  def write_image(self, step: int, name: str, image: np.ndarray) -> None:
    """Shows an image (H, W, 3) uint8 in TensorBoard; may be called from another thread."""
    if self._tensorboard is not None:
      self._tensorboard.write_images(step, {name: image[None]})
      self._tensorboard.flush()

  def close(self) -> None:
    """Closes the files."""
    if self._file is not None:
      self._file.close()
    if self._tensorboard is not None:
      self._tensorboard.close()


def read_records(path: pathlib.Path) -> list[dict[str, float]]:
  """The lines of a `metrics.jsonl`, without a last one that was cut off; [] without the file."""
  if not path.exists():
    return []
  records = []
  for line in path.read_text().splitlines():
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return records


def scores(records: list[dict[str, float]], name: str) -> dict[int, float]:
  """Value of `name` by step, where it was recorded."""
  return {record["step"]: record[name] for record in records if name in record}


def _tensorboard_writer(workdir: pathlib.Path):
  try:
    import_tensorflow()
    from clu import metric_writers
  except ImportError as error:
    logger.info("No TensorBoard events: %s is not installed", error.name)
    return None
  return metric_writers.SummaryWriter(str(workdir / "tensorboard"))
