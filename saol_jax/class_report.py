"""What an evaluation says of the classes: who is mistaken for whom, how often, and how surely.

A folder with `confusion.csv` and `.png`, `classes.csv` and `.png`, and `calibration.png`.
"""

import csv
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from saol_jax import class_plots
from saol_jax.drawing import HEADS

logger = logging.getLogger(__name__)

_COLUMNS = (
  "class",
  "images",
  "right",
  "accuracy",
  "predicted",
  "precision",
  "mistaken_for",
  "times",
)

Sums = Mapping[str, Mapping[str, np.ndarray]]


def write_class_report(
  folder: pathlib.Path,
  sums: Sums,
  class_names: Sequence[str],
  title: str,
  *,
  pictures: bool = True,
) -> bool:
  """Writes the tables and pictures; what cannot be written is a warning, and no more.

  Args:
    folder: made where it is missing. What an earlier report left there is replaced, but for its
      pictures where none are drawn: mostly they are of the same state.
    sums: by head, the main one first, see `metrics.classification_sums`; the main head's
      `confusion` (K, K) may be absent, and then its tables and pictures are.
    class_names: K names, by label.
    title: of the pictures.
    pictures: draw, rather than write tables alone.

  Returns:
    Whether all is there.
  """
  head, main = next(iter(sums.items()))
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if "confusion" in main:
      confusion = np.asarray(main["confusion"]).round().astype(np.int64)
      write_confusion(folder / "confusion.csv", confusion, class_names)
      write_classes(folder / "classes.csv", confusion, class_names)
      if pictures:
        whose = f"{title}, {HEADS[head][0]}"
        class_plots.draw_confusion(folder / "confusion.png", confusion, class_names, whose)
        class_plots.draw_classes(folder / "classes.png", confusion, class_names, whose)
    if pictures:
      class_plots.draw_calibration(folder / "calibration.png", sums, title)
  except Exception as error:  # the scores are worth more
    logger.warning("%s is incomplete (%s: %s)", folder, type(error).__name__, error)
    return False
  return True


def write_confusion(
  path: str | os.PathLike, confusion: np.ndarray, class_names: Sequence[str]
) -> None:
  """Writes counts (K, K) with a row for each true class and a column for each predicted one."""
  with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
    writer = csv.writer(file)
    writer.writerow(["true \\ predicted", *class_names])
    writer.writerows(
      [name, *row] for name, row in zip(class_names, confusion.tolist(), strict=True)
    )


def write_classes(
  path: str | os.PathLike, confusion: np.ndarray, class_names: Sequence[str]
) -> None:
  """Writes a line for each class, in the order of the labels.

  Columns: class; images of it; right, how many of these were recognised; accuracy, their share;
  predicted, how often it was the answer; precision, the share of these that were right;
  mistaken_for, the most frequent wrong answer, and times, how often. What is undefined is empty.
  """
  right, images, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
  wrong = confusion - np.diag(right)
  with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
    writer = csv.writer(file)
    writer.writerow(_COLUMNS)
    for label, name in enumerate(class_names):
      other = wrong[label].argmax()
      mistaken = [class_names[other], wrong[label, other]] if wrong[label, other] else ["", 0]
      counts = (right[label], images[label]), (right[label], predicted[label])
      accuracy, precision = (f"{a / b:.6g}" if b else "" for a, b in counts)
      row = [name, images[label], right[label], accuracy, predicted[label], precision, *mistaken]
      writer.writerow(row)
