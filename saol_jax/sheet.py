"""A page of examples: two lines of words above three panels each, below a heading."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from saol_jax.drawing import GREY, INK, draw_text, page_axes

# In pixels.
MARGIN, FACTS = 24, 58  # around the page; y of the second line of the heading
_TOP, _WORDS = 76, 40  # room for the heading, and for the words above an example
_PANEL, _PANEL_GAP = 144, 4
_COLUMN_GAP, _ROW_GAP = 32, 16


class Sheet:
  """The page, with the panels on it; words and boxes are drawn on top.

  Panels are composed before and shown pixel by pixel, so that nothing is resampled twice.

  Attributes:
    places: (N, 3, 2) integers, y and x of the upper left corner of each panel.
    strip: width of the three panels of an example together.
    columns: examples in a row.
    width: of the page.
    canvas, axes: of the page; the axes' coordinates are its pixels.
  """

  def __init__(self, panels: Sequence[Sequence[np.ndarray]], *, least_width: int = 0):
    """Lays out N examples.

    Args:
      panels: three an example, (h, w, 3) uint8, all of one size, see `panel_size`.
      least_width: of the page, where few examples leave too little room for the heading.
    """
    height, width = panels[0][0].shape[:2]
    self.strip = 3 * width + 2 * _PANEL_GAP
    cell = np.array([_WORDS + height + _ROW_GAP, self.strip + _COLUMN_GAP])
    self.columns = _page_columns(len(panels), cell)
    rows = -(-len(panels) // self.columns)
    page_height = _TOP + rows * cell[0] - _ROW_GAP + MARGIN
    self.width = max(2 * MARGIN + self.columns * cell[1] - _COLUMN_GAP, least_width)

    corners = np.array([divmod(index, self.columns) for index in range(len(panels))]) * cell
    steps = np.array([(0, place * (width + _PANEL_GAP)) for place in range(3)])
    self.places = np.array([_TOP + _WORDS, MARGIN]) + corners[:, None] + steps
    page = np.full((page_height, self.width, 3), 255, np.uint8)
    for places, example in zip(self.places, panels, strict=True):
      for (y, x), panel in zip(places, example, strict=True):
        page[y : y + height, x : x + width] = panel
    self.canvas, self.axes = page_axes(page)

  def write_heading(self, title: str, facts: str) -> None:
    """Writes the page's two lines, shortened where they are too long."""
    room = self.width - 2 * MARGIN
    draw_text(self.axes, MARGIN, 36, title, 18, INK, weight="bold", room=room)
    draw_text(self.axes, MARGIN, FACTS, facts, 12, GREY, room=room)


def panel_size(height: int, width: int) -> tuple[int, int]:
  """Size of an image on the page: about _PANEL squared pixels, whole multiples of small images."""
  side = math.sqrt(height * width)
  scale = _PANEL / side
  if scale >= 2:
    scale = math.floor(scale)
  # A strip of an image is still an image with a heading.
  return tuple(int(np.clip(round(scale * s), _PANEL // 2, 2 * _PANEL)) for s in (height, width))


def _page_columns(count: int, cell: np.ndarray) -> int:
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
