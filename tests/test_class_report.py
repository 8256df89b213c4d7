"""Tables and pictures of the classes, against counts done by hand."""

import csv
import logging
import os

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from saol_jax import class_plots, class_report
from saol_jax.metrics import confusion_counts

# True by predicted: b is taken for c twice, c never appears, and nothing is taken for d.
COUNTS = np.array([[5, 0, 1, 0], [1, 4, 2, 0], [0, 0, 0, 0], [0, 3, 0, 0]])
NAMES = ("a", 'b,"x"', "c\n$\\c", "d 猫")


def read(path):
  with open(path, newline="", encoding="utf-8") as file:
    return list(csv.reader(file))


def sums_of(confusion):
  """Of a head, with confidences of 0.9 for what is right and 0.5 for the rest."""
  right, total = confusion.diagonal().sum(), confusion.sum()
  count, correct = np.zeros((2, 15))
  count[[13, 7]] = right, total - right
  correct[13] = right
  confidence = count * np.where(np.arange(15) == 13, 0.9, 0.5)
  bins = {"bin_count": count, "bin_correct": correct, "bin_confidence": confidence}
  return {"confusion": confusion.astype(np.float32), **bins}


def test_confusions_count_each_example_once_and_padding_never():
  log_probs = jnp.log(jnp.array([[0.6, 0.4, 0], [0.1, 0.2, 0.7], [0.4, 0.4, 0.2], [0, 0, 1]]))
  found = confusion_counts(log_probs, jnp.array([0, 0, 1, 2]), jnp.array([1.0, 1, 1, 0]))
  assert found.tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 0]]  # the first of equals


def test_tables_by_hand(tmp_path):
  class_report.write_class_report(
    tmp_path / "new" / "report", {"saol": sums_of(COUNTS)}, NAMES, "title", pictures=False
  )
  folder = tmp_path / "new" / "report"
  assert sorted(path.name for path in folder.iterdir()) == ["classes.csv", "confusion.csv"]
  header, *rows = read(folder / "confusion.csv")
  assert header == ["true \\ predicted", *NAMES]
  assert [row[0] for row in rows] == list(NAMES)
  assert np.array([row[1:] for row in rows], int).tolist() == COUNTS.tolist()
  header, *rows = read(folder / "classes.csv")
  columns = ["class", "images", "right", "accuracy", "predicted", "precision"]
  assert header == [*columns, "mistaken_for", "times"]
  assert rows == [
    ["a", "6", "5", "0.833333", "6", "0.833333", NAMES[2], "1"],
    [NAMES[1], "7", "4", "0.571429", "7", "0.571429", NAMES[2], "2"],
    [NAMES[2], "0", "0", "", "3", "0", "", "0"],
    [NAMES[3], "3", "0", "0", "0", "", NAMES[1], "3"],
  ]


@pytest.mark.parametrize("count", [4, 450])
def test_pictures_stay_legible(count, tmp_path, recwarn):
  """Four classes with odd names and 450 without a mistake; the page's size never changes."""
  confusion = COUNTS if count == 4 else 3 * np.eye(count, dtype=int)
  names = NAMES if count == 4 else [f"class {label} of a great many" for label in range(count)]
  sums = {"saol": sums_of(confusion), "gap": sums_of(confusion)}
  class_report.write_class_report(tmp_path, sums, names, "100 $ _title_ 猫")
  for name in ("confusion", "classes", "calibration"):
    picture = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"), np.float32)
    assert picture.shape == (700, 1300), name
    assert picture.std() > 10, name
  assert not [str(warning.message) for warning in recwarn]  # such as of a missing glyph


def test_the_most_frequent_confusions_and_the_hardest_classes_are_named(tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(class_plots, "_bars", lambda axes, rows, colour: drawn.append(rows))
  class_plots.draw_confusion(tmp_path / "a.png", COUNTS, "abcd", "title")
  class_plots.draw_classes(tmp_path / "b.png", COUNTS, "abcd", "title")
  pairs, classes = drawn
  assert [(name, length) for name, length, _ in pairs] == [
    ("d → b", 3),
    ("b → c", 2),
    ("a → c", 1),  # as often as b → a, and of fewer images
    ("b → a", 1),
  ]
  assert [words for *_, words in pairs][:2] == ["3  (100 %)", "2  (29 %)"]
  assert [name for name, *_ in classes] == ["d", "b", "a"]  # nothing is known of c


@pytest.mark.parametrize("count", [1, 2, 3, 5, 30])
def test_classes_are_counted_in_whole_numbers(count, monkeypatch):
  saved = []
  monkeypatch.setattr(class_plots, "save", lambda canvas, path: saved.append(canvas.figure))
  names = [str(label) for label in range(count)]
  class_plots.draw_classes("unused.png", np.eye(count, dtype=int), names, "title")
  ticks = saved[0].axes[1].get_xticks()
  assert (ticks == ticks.round()).all()
  assert ((ticks >= 1) & (ticks <= count)).any()


def test_tables_take_names_that_are_not_utf_8(tmp_path):
  names = [os.fsdecode(b"caf\xe9"), "tea"]
  for write in (class_report.write_confusion, class_report.write_classes):
    write(tmp_path / "table.csv", np.eye(2, dtype=np.int64), names)
    assert b"caf\xe9," in (tmp_path / "table.csv").read_bytes()


def test_names_that_no_font_has_are_numbered(tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(class_plots, "_bars", lambda axes, rows, colour: drawn.append(rows))
  names = ["a", "\ue000", "\ue001", "d\ue000"]
  class_plots.draw_confusion(tmp_path / "a.png", COUNTS, names, "title")
  class_plots.draw_classes(tmp_path / "b.png", COUNTS, names, "title")
  pairs, classes = drawn
  assert [name for name, *_ in pairs] == ["#3 d → #1", "#1 → #2", "a → #2", "#1 → a"]
  assert [name for name, *_ in classes] == ["#3 d", "#1", "a"]


def test_blocks_of_a_large_matrix_keep_their_largest_share():
  values = np.zeros((7, 7))
  values[0, 6], values[5, 2] = 0.3, 0.8
  assert class_plots._block_maxima(values, 3).tolist() == [[0, 0, 0.3], [0.8, 0, 0], [0, 0, 0]]


def test_what_cannot_be_written_is_a_warning(tmp_path, monkeypatch, caplog):
  def full_disk(*_):
    raise OSError("No space left on device")

  monkeypatch.setattr(class_plots, "draw_classes", full_disk)
  with caplog.at_level(logging.WARNING, "saol_jax"):
    class_report.write_class_report(tmp_path, {"gap": sums_of(COUNTS)}, NAMES, "title")
  assert f"{tmp_path} is incomplete (OSError: No space left on device)" in caplog.messages


def test_too_many_classes_for_a_matrix_leave_the_calibration(tmp_path):
  sums = sums_of(COUNTS)
  del sums["confusion"]
  class_report.write_class_report(tmp_path, {"gap": sums}, NAMES, "title")
  assert [path.name for path in tmp_path.iterdir()] == ["calibration.png"]
