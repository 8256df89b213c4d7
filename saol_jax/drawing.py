"""What all our pictures are drawn with: colours, plots, and pages on which a pixel is a pixel.

Everything draws on its own Figure with the Agg canvas: no display, no pyplot, safe in threads.
"""

import math
import os

import numpy as np
from matplotlib import font_manager, patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

DPI = 100
FONT = "DejaVu Sans"  # comes with matplotlib
INK, GREY, PALE = "#1f2328", "#6a737d", "#d0d7de"
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


def write_text(
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
  font = font_manager.FontProperties(family=FONT, size=pixels * 72 / DPI, weight=weight)
  text = drawable(text, weight)
  artist = axes.text(
    x,
    y,
    text + end,
    fontproperties=font,
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
    artist.set_text(f"{text.rstrip()}…{end}")
  return width


def drawable(text: str, weight: str = "normal") -> str:
  """The text with a box for every character that the font lacks, line breaks among them."""
  font = font_manager.FontProperties(family=FONT, weight=weight)
  glyphs = font_manager.get_font(font_manager.findfont(font))
  return "".join(c if glyphs.get_char_index(ord(c)) else "□" for c in text)


def save(canvas: FigureCanvasAgg, path: str | os.PathLike) -> None:
  """Writes the drawn canvas as an RGB PNG."""
  canvas.draw()
  Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(path, "PNG")
