"""What all our pictures are drawn with: colours, plots, and pages on which a pixel is a pixel.

Everything draws on its own Figure with the Agg canvas: no display, no pyplot, safe in threads.
"""

import functools
import logging
import math
import os
import re
from collections.abc import Sequence

import numpy as np
from matplotlib import font_manager, patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from saol_jax.image_files import printable

logger = logging.getLogger(__name__)

DPI = 100
FONT = "DejaVu Sans"  # comes with matplotlib
INK, GREY, PALE = "#1f2328", "#6a737d", "#d0d7de"
_NOT_LENDING = (FONT, "Last Resort")  # the latter has one picture for all letters of a script
_NAMED = 10  # classes that the log names
# Words of Hebrew, Arabic and their neighbours in Unicode, with what stands between them.
_RTL = r"[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]"
_RTL_WORDS = re.compile(rf"{_RTL}+(?:[ \d_.,'\"()-]+{_RTL}+)*…?")
HEADS = {"saol": ("SAOL", "#0969da"), "gap": ("GAP-FC", "#e16f24")}


def plot_figure(width: float, height: float) -> tuple[Figure, FigureCanvasAgg]:
  """A figure of so many inches, whose layout makes room for all words."""
  figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
  return figure, FigureCanvasAgg(figure)


def plain_axes(axes: Axes, *, size: float | None = None, grid: str = "both") -> None:
  """A pale frame at the left and below, a pale grid, grey numbers, no tick marks.

  Args:
    axes: to change.
    size: of the numbers, in points; None for matplotlib's.
    grid: lines across "x", "y" or "both".
  """
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["bottom", "left"]].set_color(PALE)
  axes.tick_params(colors=GREY, labelsize=size, which="both", length=0)
  axes.grid(axis=grid, color=PALE, linewidth=0.6, alpha=0.6)


def page_axes(page: np.ndarray) -> tuple[FigureCanvasAgg, Axes]:
  """A figure of the page's size in pixels, and axes whose coordinates are the pixels'."""
  height, width = page.shape[:2]
  figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
  canvas = FigureCanvasAgg(figure)
  axes = figure.add_axes((0, 0, 1, 1))
  axes.set_axis_off()
  axes.imshow(page, extent=(0, width, height, 0), interpolation="nearest", aspect="auto")
  axes.set_autoscale_on(False)
  return canvas, axes


def draw_box(axes: Axes, box: np.ndarray, colour: str, *, dashed: bool = False) -> None:
  """Draws y_min, x_min, y_max, x_max with the line inside the box, dark below to show anywhere."""
  y_min, x_min, y_max, x_max = np.round(box)
  # In whole pixels: a line of 3 over a dark one of 5, or dashes of 2 over a dark line of 2. A true
  # box over an equal predicted one leaves a rim of the latter.
  inset, below, above, style = (3, 2, 2, (0, (3, 3))) if dashed else (2.5, 5, 3, "-")
  width, height = (max(side - 2 * inset, 1) for side in (x_max - x_min, y_max - y_min))
  for line, pixels, look in (("#1a1a1a", below, "-"), (colour, above, style)):
    axes.add_patch(
      Rectangle(
        (x_min + inset, y_min + inset),
        width,
        height,
        fill=False,
        edgecolor=line,
        linewidth=pixels * 72 / DPI,
        linestyle=look,
        joinstyle="miter",
        snap=False,
      )
    )


def draw_text(
  axes: Axes,
  x: float,
  y: float,
  text: str,
  pixels: float,
  colour: str,
  *,
  end: str = "",
  room: float = math.inf,
  weight: str = "normal",
  align: str = "left",
  outline: bool = False,
) -> float:
  """Writes text + end on the baseline y, shortening text to fit into `room`; returns the width."""
  artist = axes.text(
    x,
    y,
    drawable(text + end, weight),
    family=fonts(text + end, weight),
    size=pixels * 72 / DPI,
    weight=weight,
    color=colour,
    ha=align,
    va="baseline",
    parse_math=False,
    usetex=False,
  )
  if outline:
    artist.set_path_effects([patheffects.withStroke(linewidth=2, foreground="#000000a0")])
  renderer = axes.figure.canvas.get_renderer()
  while (width := artist.get_window_extent(renderer).width) > room and text:
    # The share that would fit if all letters were equally wide, then one letter at a time.
    text = text[: min(len(text) - 1, int(len(text) * room / width))]
    artist.set_text(drawable(f"{text.rstrip()}…{end}", weight))
  return width


def drawable(text: str, weight: str = "normal") -> str:
  """The text with a box for every character that no font has, line breaks among them.

  Words of a script that runs from right to left are isolated, so that what stands beside them stays
  where it is.
  """
  text = "".join(c if _family(c, weight) else "□" for c in text)
  return _RTL_WORDS.sub("\u2068\\g<0>\u2069", text)


def fonts(text: str, weight: str = "normal") -> list[str]:
  """Names of our font and of those that lend it the characters of a text that it lacks."""
  return list(dict.fromkeys([FONT, *filter(None, (_family(c, weight) for c in text))]))


def legible(class_names: Sequence[str]) -> tuple[str, ...]:
  """Names of classes; of those with characters that no font has, what can be drawn, after `#3`.

  Without the label such names could not be told apart. Which they are stands in the log once.

  Args:
    class_names: K names, by label.
  """
  return _legible(tuple(class_names))


@functools.lru_cache(4)
def _legible(class_names: tuple[str, ...]) -> tuple[str, ...]:
  shown = list(class_names)
  numbered = [label for label, name in enumerate(shown) if not all(map(_family, name))]
  for label in numbered:
    rest = "".join(filter(_family, shown[label])).split()
    shown[label] = " ".join([f"#{label}", *rest])
  if numbered:
    named = ", ".join(f"#{label} {printable(class_names[label])}" for label in numbered[:_NAMED])
    logger.warning(
      "Pictures show the label of %d class(es) whose names no font has: %s%s. Install a font of "
      "their script, such as Noto",
      len(numbered),
      named,
      ", ..." if len(numbered) > _NAMED else "",
    )
  return tuple(shown)


@functools.cache
def _family(character: str, weight: str = "normal") -> str | None:
  """Name of the font that a character is drawn with; None where no font has it."""
  font = font_manager.FontProperties(family=FONT, weight=weight)
  if font_manager.get_font(font_manager.findfont(font)).get_char_index(ord(character)):
    return FONT
  return _lenders().get(ord(character)) if character.isprintable() else None


@functools.cache
def _lenders() -> dict[int, str]:
  """Name of a font by code point, of all that matplotlib finds: a second or more."""
  lenders: dict[int, str] = {}
  for entry in sorted(font_manager.fontManager.ttflist, key=lambda entry: entry.name):
    if (entry.style, entry.weight) != ("normal", 400) or entry.name.startswith(_NOT_LENDING):
      continue
    try:
      font = font_manager.get_font(entry.fname)
    except (OSError, RuntimeError):  # removed since, or of a kind that cannot be drawn
      continue
    if font.scalable:
      for code in font.get_charmap():
        lenders.setdefault(code, entry.name)
  return lenders


def save(canvas: FigureCanvasAgg, path: str | os.PathLike) -> None:
  """Writes the drawn canvas as an RGB PNG."""
  canvas.draw()
  Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(path, "PNG")
