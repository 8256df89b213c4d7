"""What a run leaves for a person: the picture of predictions and the final summary.

Everything draws on its own Figure with the Agg canvas: no display, no pyplot, safe in threads.
"""

import math
import os
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib import font_manager, patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from saol_jax import localization

DPI = 100
FONT = "DejaVu Sans"  # comes with matplotlib
INK, GREY, PALE = "#1f2328", "#6a737d", "#d0d7de"
_RIGHT, _WRONG = "#1a7f37", "#cf222e"
_PREDICTED_BOX, _TRUE_BOX = "#ffd60a", "#ffffff"
_HEAT = matplotlib.colormaps["inferno"]

# Layout of predictions.png, in pixels.
_PANEL = 144
_PANEL_GAP = 4
_HEADING = 40
_MARGIN = 24
_TOP = 76
_COLUMN_GAP, _ROW_GAP = 32, 16
_LEAST_WIDTH = 640  # room for the title and the legend


def draw_predictions(
  path: str | os.PathLike,
  images: np.ndarray,
  *,
  labels: np.ndarray,
  predicted: np.ndarray,
  probabilities: np.ndarray,
  class_names: Sequence[str],
  attention: np.ndarray,
  class_maps: np.ndarray,
  boxes: np.ndarray,
  true_boxes: np.ndarray | None = None,
  title: str = "Predictions",
) -> None:
  """Writes a PNG in which each example shows its boxes, its attention map and its class map.

  Each map is scaled to its own minimum and maximum and laid over the image in grey. The heading
  holds the predicted class with its probability, green with a tick where it is right and red with
  a cross where it is wrong; below it the true class and the IoU of the two boxes.

  Args:
    path: of the PNG; an existing file is replaced.
    images: (N, H, W, 3) uint8, N >= 1.
    labels: (N,) integers, the true classes.
    predicted: (N,) integers, the predicted classes.
    probabilities: (N,) in [0, 1], of the predicted classes.
    class_names: K names, by label. Any text: never read as markup, shortened where too long.
    attention: (N, h, w), the attention maps.
    class_maps: (N, h, w), the spatial probability of the predicted class.
    boxes: (N, 4) y_min, x_min, y_max, x_max in pixels, max exclusive. An empty box is not drawn.
    true_boxes: (N, 4) likewise, an empty one where unknown; None where all are.
    title: of the picture.

  Raises:
    ValueError: there are no images, or the arrays disagree in N.
  """
  true_boxes = np.zeros((len(images), 4)) if true_boxes is None else true_boxes
  arrays = (images, labels, predicted, attention, class_maps, boxes, true_boxes, probabilities)
  arrays = tuple(np.asarray(array) for array in arrays)
  if not len(images) or len({len(array) for array in arrays}) > 1:
    raise ValueError(
      f"arrays for {[len(array) for array in arrays]} examples: need one equal N > 0"
    )
  images, labels, predicted, attention, class_maps, boxes, true_boxes, probabilities = arrays
  right = labels == predicted
  iou = localization.box_iou(boxes, true_boxes)
  has_box = _filled(true_boxes)

  panel = panel_size(*images.shape[1:3])
  strip = 3 * panel[1] + 2 * _PANEL_GAP
  cell = np.array([_HEADING + panel[0] + _ROW_GAP, strip + _COLUMN_GAP])
  columns = page_columns(len(images), cell)
  rows = -(-len(images) // columns)
  page_height = _TOP + rows * cell[0] - _ROW_GAP + _MARGIN
  page_width = max(2 * _MARGIN + columns * cell[1] - _COLUMN_GAP, _LEAST_WIDTH)
  corners = [
    np.array([_TOP + _HEADING, _MARGIN]) + np.array(divmod(index, columns)) * cell
    for index in range(len(images))
  ]

  # Panels are composed here and shown pixel by pixel, so that nothing is resampled twice.
  page = np.full((page_height, page_width, 3), 255, np.uint8)
  for (y, x), image, *maps in zip(corners, images, attention, class_maps, strict=True):
    image = resize_image(image, panel)
    for place, shown in enumerate([image, *(overlay(image, score_map) for score_map in maps)]):
      left = x + place * (panel[1] + _PANEL_GAP)
      # Six bits a colour: nobody sees it, and the file shrinks by 40 %.
      page[y : y + panel[0], left : left + panel[1]] = shown & 0xFC
  canvas, axes = page_axes(page)

  scale = np.array(panel * 2) / np.array(images.shape[1:3] * 2)
  for index, corner in enumerate(corners):
    y, x = corner
    for box, colour, dashed in (
      (boxes[index], _PREDICTED_BOX, False),
      (true_boxes[index], _TRUE_BOX, True),
    ):
      if _filled(box):
        draw_box(
          axes, np.clip(box * scale, 0, panel * 2) + np.tile(corner, 2), colour, dashed=dashed
        )
    mark, colour = ("✓", _RIGHT) if right[index] else ("✗", _WRONG)
    name = f"{mark} {class_names[predicted[index]]}"
    share = f"  {100 * float(probabilities[index]):.1f} %"
    write_text(axes, x, y - 23, name, 13, colour, end=share, room=strip, weight="bold")
    overlap = f"   IoU {iou[index]:.2f}" if has_box[index] else ""
    truth = f"true: {class_names[labels[index]]}"
    write_text(axes, x, y - 7, truth, 12, GREY, end=overlap, room=strip)
  for y, x in corners[:columns]:
    for place, name in enumerate(("attention", "class map"), start=1):
      x_text = x + place * (panel[1] + _PANEL_GAP) + 5
      write_text(axes, x_text, y + panel[0] - 6, name, 11, "white", outline=True)

  facts = f"{right.sum()} of {len(images)} right"
  if has_box.any():
    facts += f", mean IoU {iou[has_box].mean():.2f}"
  write_text(axes, _MARGIN, 36, title, 18, INK, weight="bold", room=page_width - 2 * _MARGIN)
  write_text(axes, _MARGIN, 58, facts, 12, GREY)
  _legend(axes, page_width - _MARGIN, 58, with_true=bool(has_box.any()))
  save(canvas, path)


def _filled(boxes: np.ndarray) -> np.ndarray:
  """(..., 4) -> (...) bool: the box holds at least one pixel."""
  return (boxes[..., 2:] > boxes[..., :2]).all(-1)


def panel_size(height: int, width: int) -> tuple[int, int]:
  """Size of an image on the page: about _PANEL squared pixels, whole multiples of small images."""
  side = math.sqrt(height * width)
  scale = _PANEL / side
  if scale >= 2:
    scale = math.floor(scale)
  # A strip of an image is still an image with a heading.
  return tuple(int(np.clip(round(scale * s), _PANEL // 2, 2 * _PANEL)) for s in (height, width))


def page_columns(count: int, cell: np.ndarray) -> int:
  """The number of columns that makes the page about 3:2 with few cells left empty."""

  def cost(columns: int) -> float:
    rows = -(-count // columns)
    aspect = columns * cell[1] / (rows * cell[0])
    return abs(math.log(aspect / 1.5)) + 3 * (1 - count / (rows * columns))

  return min(range(1, count + 1), key=cost)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """(H, W, 3) uint8 -> (*size, 3): small images keep their pixels, others are filtered."""
  sharp = size[0] >= 2 * image.shape[0] and size[1] >= 2 * image.shape[1]
  method = Image.Resampling.NEAREST if sharp else Image.Resampling.LANCZOS
  return np.asarray(Image.fromarray(image).resize(size[::-1], method))


def overlay(image: np.ndarray, score_map: np.ndarray) -> np.ndarray:
  """Heat over the image in grey; (H, W, 3) uint8 and (h, w) -> (H, W, 3) uint8."""
  small = Image.fromarray(localization.normalise(score_map))
  heat = np.asarray(small.resize(image.shape[1::-1], Image.Resampling.BICUBIC)).clip(0, 1)
  grey = (image @ np.array([0.299, 0.587, 0.114]))[..., None]
  alpha = 0.25 + 0.55 * heat[..., None]
  return ((1 - alpha) * 0.8 * grey + alpha * 255 * _HEAT(heat)[..., :3]).round().astype(np.uint8)


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


def _legend(axes: Axes, right: float, y: float, *, with_true: bool) -> None:
  """Writes what lines and colours mean, ending at `right`."""
  x = right - write_text(axes, right, y, "high", 11, GREY, align="right") - 6
  axes.imshow(np.linspace(0, 1, 64)[None], cmap=_HEAT, extent=(x - 64, x, y, y - 9), aspect="auto")
  x -= 70
  x -= write_text(axes, x, y, "map: low", 11, GREY, align="right") + 18
  entries = [("predicted box", _PREDICTED_BOX, False)]
  if with_true:
    entries.insert(0, ("true box", _TRUE_BOX, True))
  for name, colour, dashed in entries:
    x -= write_text(axes, x, y, name, 11, GREY, align="right") + 6
    draw_box(axes, np.array([y - 12, x - 25, y + 3, x]), colour, dashed=dashed)
    x -= 43


def save(canvas: FigureCanvasAgg, path: str | os.PathLike) -> None:
  """Writes the drawn canvas as an RGB PNG."""
  canvas.draw()
  Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(path, "PNG")


def summary(
  *,
  heads: Mapping[str, float],
  seconds: float,
  images_per_second: float | None,
  files: Mapping[str, str | os.PathLike],
  next_commands: Sequence[tuple[str, str]] = (),
) -> str:
  """The last words of a run: accuracy, time, where everything lies, what to try next.

  Args:
    heads: top-1 as a share in [0, 1] by the head's name, e.g. {"SAOL": 0.9721}.
    seconds: wall time of the run.
    images_per_second: training throughput without compilation; None where nothing was trained.
    files: path by label, e.g. {"checkpoints": workdir / "checkpoints"}.
    next_commands: pairs of a description and a command line.

  Returns:
    Aligned lines of plain text, without a line break at the end. Commands stand alone on their
    line, to be copied.
  """
  rows = [(f"top-1 {name}", f"{100 * share:6.2f} %") for name, share in heads.items()]
  rows.append(("time", _duration(seconds)))
  if images_per_second is not None:
    rows.append(("training speed", f"{images_per_second:,.0f} images/s"))
  rows += [(label, os.fspath(path)) for label, path in files.items()]
  column = max(len(label) for label, _ in rows) + 2
  lines = [f"  {label:<{column}}{value}" for label, value in rows]
  if next_commands:
    lines.append("Next:")
    for description, command in next_commands:
      lines += [f"  # {description}", f"  {command}"]
  return "\n".join(["Done.", *lines])


def _duration(seconds: float) -> str:
  """Hours, minutes and seconds, the two largest that matter: '4 min 12 s'."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours} h {minutes:02d} min"
  return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
