"""Pictures of an evaluation: confusion matrix, accuracy by class, reliability diagram.

With hundreds of classes the matrix has no room for names: the most frequent confusions and the
hardest classes stand beside it by name.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from saol_jax.drawing import GREY, HEADS, INK, PALE, drawable, fonts, legible, plot_figure, save

_BLUE, _RED = "#0969da", "#cf222e"
_WITH_COUNTS, _WITH_NAMES = 12, 40  # classes that a matrix has room for
_CELLS = 400  # a side; larger matrices are drawn in blocks
_LISTED = 25
_LETTERS = 24  # of a class name


def draw_confusion(
  path: str | os.PathLike, confusion: np.ndarray, class_names: Sequence[str], title: str
) -> None:
  """Writes a PNG with the confusion matrix and the most frequent confusions.

  Args:
    path: of the PNG; an existing file is replaced.
    confusion: (K, K) counts, true class by predicted class.
    class_names: K names, any text.
    title: of the picture.
  """
  class_names = legible(class_names)
  figure, canvas = _page(13, 7, title)
  matrix, pairs = figure.subplots(1, 2, width_ratios=(1.25, 1))
  images = confusion.sum(1)
  shares = confusion / np.maximum(images, 1)[:, None]
  count = len(confusion)
  block = -(-count // _CELLS)
  # Shades rise steeply, so that one image in a hundred is seen.
  image = matrix.imshow(
    100 * _block_maxima(shares, block),
    cmap="Blues",
    norm=PowerNorm(0.35, 0, 100),
    extent=(-0.5, count - 0.5, count - 0.5, -0.5),
    interpolation="nearest",
  )
  bar = figure.colorbar(image, ax=matrix, shrink=0.6, ticks=(0, 1, 5, 20, 50, 100))
  bar.outline.set_visible(False)
  bar.ax.tick_params(colors=GREY, labelsize=8, length=0)
  bar.set_label("% of the images of the true class", color=GREY, fontsize=9)
  _bare(matrix)
  if count <= _WITH_NAMES:
    size = 9 if count <= 20 else 7
    names = [_short(name, 16) for name in class_names]
    _names(matrix.set_xticks, names, fontsize=size, rotation=90)
    _names(matrix.set_yticks, names, fontsize=size)
  if count <= _WITH_COUNTS:
    for (row, column), number in np.ndenumerate(confusion):
      if number:
        colour = "white" if shares[row, column] > 0.4 else INK
        look = {"ha": "center", "va": "center", "fontsize": 8, "color": colour}
        matrix.text(column, row, f"{number:,}", **look)
  note = f"; each cell is the largest of {block} x {block}" if block > 1 else ""
  _note(matrix, f"rows: the true class; columns: the predicted one{note}")

  wrong = confusion - np.diag(confusion.diagonal())
  order = np.lexsort((-shares.ravel(), -wrong.ravel()))[:_LISTED]
  order = order[wrong.ravel()[order] > 0]
  rows = [
    (
      f"{_short(class_names[true], _LETTERS - 4)} → {_short(class_names[predicted], _LETTERS - 4)}",
      wrong[true, predicted],
      f"{wrong[true, predicted]:,}  ({100 * shares[true, predicted]:.0f} %)",
    )
    for true, predicted in (divmod(int(place), count) for place in order)
  ]
  _bars(pairs, rows, _RED)
  _note(pairs, f"{wrong.sum():,} of {images.sum():,} are wrong, most often these")
  save(canvas, path)


def draw_classes(
  path: str | os.PathLike, confusion: np.ndarray, class_names: Sequence[str], title: str
) -> None:
  """Writes a PNG with the accuracy of the hardest classes, and of all in order.

  Args:
    path: of the PNG; an existing file is replaced.
    confusion: (K, K) counts, true class by predicted class.
    class_names: K names, any text.
    title: of the picture.
  """
  class_names = legible(class_names)
  figure, canvas = _page(13, 7, title)
  hardest, course = figure.subplots(1, 2)
  images = confusion.sum(1)
  known = np.flatnonzero(images)
  accuracy = 100 * confusion.diagonal()[known] / images[known]
  order = np.argsort(accuracy, kind="stable")
  rows = [
    (
      _short(class_names[known[place]]),
      accuracy[place],
      f"{accuracy[place]:.1f} %  ({images[known[place]]:,})",
    )
    for place in order[: max(_LISTED, _WITH_NAMES if len(known) <= _WITH_NAMES else 0)]
  ]
  _bars(hardest, rows, _BLUE)
  which = "all" if len(rows) == len(known) else f"the hardest {len(rows)} of {len(known)}"
  _note(hardest, f"{which} classes: accuracy (images)")
  course.step(np.arange(1, len(known) + 1), accuracy[order], where="mid", color=_BLUE, linewidth=2)
  course.fill_between(
    np.arange(1, len(known) + 1), accuracy[order], step="mid", color=_BLUE, alpha=0.12, linewidth=0
  )
  total = 100 * confusion.diagonal().sum() / max(images.sum(), 1)
  for value, name, style in (
    (total, f"of all images {total:.2f} %", "-"),
    (accuracy.mean(), f"mean of the classes {accuracy.mean():.2f} %", "--"),
    (np.median(accuracy), f"median class {np.median(accuracy):.2f} %", ":"),
  ):
    course.axhline(value, color=INK, linewidth=1, linestyle=style, label=name)
  course.set_ylim(0, 102)
  course.set_xlim(0.5, len(known) + 0.5)
  course.locator_params(axis="x", integer=True, min_n_ticks=1)
  course.legend(frameon=False, fontsize=9, labelcolor=INK, loc="best")
  course.grid(color=PALE, linewidth=0.6, alpha=0.6)
  course.set_xlabel("classes, hardest first", color=GREY)
  course.set_ylabel("accuracy, %", color=GREY)
  _bare(course)
  save(canvas, path)


def draw_calibration(
  path: str | os.PathLike, sums: Mapping[str, Mapping[str, np.ndarray]], title: str
) -> None:
  """Writes a PNG with a reliability diagram for each head (Guo et al. 2017).

  Args:
    path: of the PNG; an existing file is replaced.
    sums: by head, see `metrics.classification_sums`.
    title: of the picture.
  """
  figure, canvas = _page(6.5 * len(sums), 7, title)
  grid = figure.subplots(2, len(sums), height_ratios=(3, 1), squeeze=False)
  for (head, values), (axes, below) in zip(sums.items(), grid.T, strict=True):
    count, right, confidence = (
      np.asarray(values[f"bin_{name}"], np.float64) for name in ("count", "correct", "confidence")
    )
    name, colour = HEADS[head]
    edges = np.linspace(0, 1, len(count) + 1)
    place = {"x": (edges[:-1] + edges[1:]) / 2, "width": 0.92 / len(count)}
    filled = np.maximum(count, 1)
    accuracy, mean = right / filled, confidence / filled
    axes.bar(height=accuracy, color=colour, label="accuracy", **place)
    axes.bar(
      height=np.abs(mean - accuracy),
      bottom=np.minimum(mean, accuracy),
      facecolor="none",
      edgecolor=_RED,
      hatch="////",
      linewidth=0.8,
      label="gap to the confidence",
      **place,
    )
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="calibrated")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper left")
    axes.set_ylabel("share of the images that are right", color=GREY)
    total = max(count.sum(), 1)
    error = np.abs(right - confidence).sum() / total
    axes.set_title(
      f"{name}: expected calibration error {100 * error:.2f} %\n"
      f"accuracy {100 * right.sum() / total:.2f} %, "
      f"mean confidence {100 * confidence.sum() / total:.2f} %",
      loc="left",
      color=INK,
      fontsize=10,
    )
    below.bar(height=100 * count / total, color=PALE, **place)
    below.set_ylabel("images, %", color=GREY)
    below.set_xlabel("confidence", color=GREY)
    axes.set_ylim(0, 1.02)
    for panel in (axes, below):
      panel.set_xlim(0, 1)
      panel.grid(color=PALE, linewidth=0.6, alpha=0.6)
      panel.set_axisbelow(True)
      _bare(panel)
  save(canvas, path)


def _page(width: float, height: float, title: str) -> tuple[Figure, FigureCanvasAgg]:
  """A figure in inches with a title."""
  figure, canvas = plot_figure(width, height)
  look = {"color": INK, "family": fonts(title, "bold"), "fontsize": 13, "fontweight": "bold"}
  heading = figure.suptitle(drawable(title, "bold"), x=0.01, ha="left", **look)
  heading.set_parse_math(False)
  return figure, canvas


def _block_maxima(values: np.ndarray, block: int) -> np.ndarray:
  """(K, K) to the largest of each block x block; the last blocks may be smaller."""
  starts = np.arange(0, len(values), block)
  return np.maximum.reduceat(np.maximum.reduceat(values, starts, 0), starts, 1)


def _bars(axes: Axes, rows: Sequence[tuple[str, float, str]], colour: str) -> None:
  """Horizontal bars, the first on top: name, length, and what stands at the end."""
  lengths = [length for _, length, _ in rows]
  axes.barh(range(len(rows)), lengths, color=colour, alpha=0.75, height=0.7)
  _names(axes.set_yticks, [name for name, _, _ in rows], fontsize=9)
  longest = max(lengths, default=1) or 1
  for place, (_, length, words) in enumerate(rows):
    axes.text(length + 0.01 * longest, place, words, va="center", fontsize=8, color=GREY)
  axes.set_xlim(0, 1.25 * longest)
  axes.set_ylim(max(len(rows), 8) - 0.5, -0.5)  # few bars are no thicker than many
  axes.set_xticks([])
  _bare(axes)


def _note(axes: Axes, text: str) -> None:
  """A line of words above the axes."""
  axes.set_title(text, loc="left", color=GREY, fontsize=9)


def _names(set_ticks, names: Sequence[str], **look) -> None:
  """Writes names along an axis as they are, never as markup."""
  look |= {"parse_math": False, "family": fonts("".join(names))}
  set_ticks(range(len(names)), [drawable(name) for name in names], **look)


def _short(name: str, letters: int = _LETTERS) -> str:
  return name if len(name) <= letters else f"{name[: letters - 1]}…"


def _bare(axes: Axes) -> None:
  """No frame and no tick marks."""
  axes.spines[:].set_visible(False)
  axes.tick_params(colors=GREY, length=0)
