"""A picture of training images: augmented, mixed, and which part was pasted."""

import os
from collections.abc import Sequence

import numpy as np

from saol_jax.report import (
  GREY,
  INK,
  draw_box,
  page_axes,
  page_columns,
  panel_size,
  resize_image,
  save,
  write_text,
)

_MOST = 16  # examples
_GAP, _HEADING, _MARGIN, _TOP = 4, 40, 24, 76  # pixels
_COLUMN_GAP, _ROW_GAP = 32, 16
_PASTED = "#ffd60a"
_NAMED_LABELS = 3


def draw_training_images(
  path: str | os.PathLike,
  images: np.ndarray,
  mixed: np.ndarray,
  *,
  boxes: np.ndarray,
  targets: np.ndarray,
  class_names: Sequence[str],
  title: str,
) -> None:
  """Writes a PNG with three panels an example: augmented, as the network sees it, the mask.

  Args:
    path: of the PNG; an existing file is replaced.
    images: (N, H, W, 3) uint8, augmented; the first 16 are drawn.
    mixed: (N, H, W, 3) uint8, what the network sees.
    boxes: (N, 4) y_min, x_min, y_max, x_max, what CutMix pasted; without area: nothing.
    targets: (N, K), labels as they are learnt.
    class_names: K names.
    title: of the picture.
  """
  count = min(len(images), _MOST)
  panel = panel_size(*images.shape[1:3])
  strip = 3 * panel[1] + 2 * _GAP
  cell = np.array([_HEADING + panel[0] + _ROW_GAP, strip + _COLUMN_GAP])
  columns = page_columns(count, cell)
  rows = -(-count // columns)
  height = _TOP + rows * cell[0] - _ROW_GAP + _MARGIN
  width = 2 * _MARGIN + columns * cell[1] - _COLUMN_GAP
  page = np.full((height, width, 3), 255, np.uint8)
  corners = [
    np.array([_TOP + _HEADING, _MARGIN]) + np.array(divmod(index, columns)) * cell
    for index in range(count)
  ]
  scale = np.array(panel * 2) / np.array(images.shape[1:3] * 2)
  scaled = np.round(boxes[:count] * scale).astype(int)
  for (y, x), image, mixture, box in zip(corners, images, mixed, scaled, strict=False):
    mask = np.full((*panel, 3), 40, np.uint8)
    mask[box[0] : box[2], box[1] : box[3]] = 245
    for place, shown in enumerate((resize_image(image, panel), resize_image(mixture, panel), mask)):
      left = x + place * (panel[1] + _GAP)
      page[y : y + panel[0], left : left + panel[1]] = shown
  canvas, axes = page_axes(page)
  write_text(axes, _MARGIN, 36, title, 18, INK, weight="bold", room=width - 2 * _MARGIN)
  explanation = "augmented | mixed: what the network sees | pasted (white); neighbours are partners"
  write_text(axes, _MARGIN, 58, explanation, 12, GREY, room=width - 2 * _MARGIN)
  for (y, x), target, box in zip(corners, targets, scaled, strict=False):
    write_text(axes, x, y - 9, _label(target, class_names), 13, INK, room=strip)
    if box[2] > box[0]:
      draw_box(axes, box + np.tile([y, x + panel[1] + _GAP], 2), _PASTED)
  save(canvas, path)


def _label(target: np.ndarray, class_names: Sequence[str]) -> str:
  """Names of the heaviest classes with their shares; those that smoothing gives are left out."""
  heaviest = np.argsort(-target, kind="stable")[:_NAMED_LABELS]
  parts = [f"{class_names[k]} {100 * target[k]:.0f} %" for k in heaviest if target[k] >= 0.005]
  return " + ".join(parts)
