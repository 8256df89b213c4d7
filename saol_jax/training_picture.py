"""A picture of training images: augmented, mixed, and which part was pasted."""

import os
from collections.abc import Sequence

import numpy as np

from saol_jax.drawing import INK, draw_box, draw_text, legible, save
from saol_jax.sheet import Sheet, panel_size, resize_image

_MOST = 16  # examples
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
  class_names = legible(class_names)
  panel = panel_size(*images.shape[1:3])
  scale = np.array(panel * 2) / np.array(images.shape[1:3] * 2)
  scaled = np.round(boxes[:_MOST] * scale).astype(int)
  sheet = Sheet(
    [
      [resize_image(image, panel), resize_image(mixture, panel), _mask(box, panel)]
      for image, mixture, box in zip(images, mixed, scaled, strict=False)
    ]
  )
  sheet.write_heading(
    title, "augmented | mixed: what the network sees | pasted (white); neighbours are partners"
  )
  for ((y, x), middle, _), target, box in zip(sheet.places, targets, scaled, strict=False):
    draw_text(sheet.axes, x, y - 9, _label(target, class_names), 13, INK, room=sheet.strip)
    if box[2] > box[0]:
      draw_box(sheet.axes, box + np.tile(middle, 2), _PASTED)
  save(sheet.canvas, path)


def _mask(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """(*size, 3) uint8, white inside the box."""
  mask = np.full((*size, 3), 40, np.uint8)
  mask[box[0] : box[2], box[1] : box[3]] = 245
  return mask


def _label(target: np.ndarray, class_names: Sequence[str]) -> str:
  """Names of the heaviest classes with their shares; those that smoothing gives are left out."""
  heaviest = np.argsort(-target, kind="stable")[:_NAMED_LABELS]
  parts = [f"{class_names[k]} {100 * target[k]:.0f} %" for k in heaviest if target[k] >= 0.005]
  return " + ".join(parts)
