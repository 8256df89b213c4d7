"""The picture of predictions: each example with its boxes, its attention and its class map."""

import functools
import os
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from saol_jax import localization
from saol_jax.drawing import GREY, draw_box, draw_text, legible, save
from saol_jax.sheet import FACTS, MARGIN, Sheet, panel_size, resize_image

_RIGHT, _WRONG = "#1a7f37", "#cf222e"
_PREDICTED_BOX, _TRUE_BOX = "#ffd60a", "#ffffff"
_HEAT = matplotlib.colormaps["inferno"]
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
  class_names = legible(class_names)
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
  has_box = localization.has_area(true_boxes)

  panel = panel_size(*images.shape[1:3])
  sheet = Sheet(
    [
      _panels(image, maps, panel)
      for image, *maps in zip(images, attention, class_maps, strict=True)
    ],
    least_width=_LEAST_WIDTH,
  )
  scale = np.array(panel * 2) / np.array(images.shape[1:3] * 2)
  for index, (corner, *_) in enumerate(sheet.places):
    for box, colour, dashed in (
      (boxes[index], _PREDICTED_BOX, False),
      (true_boxes[index], _TRUE_BOX, True),
    ):
      if localization.has_area(box):
        inside = np.clip(box * scale, 0, panel * 2)
        draw_box(sheet.axes, inside + np.tile(corner, 2), colour, dashed=dashed)
    _write_answer(
      sheet,
      corner,
      predicted=class_names[predicted[index]],
      true=class_names[labels[index]],
      right=right[index],
      probability=float(probabilities[index]),
      iou=iou[index] if has_box[index] else None,
    )
  for places in sheet.places[: sheet.columns]:
    for (y, x), name in zip(places[1:], ("attention", "class map"), strict=True):
      draw_text(sheet.axes, x + 5, y + panel[0] - 6, name, 11, "white", outline=True)

  facts = f"{right.sum()} of {len(images)} right"
  if has_box.any():
    facts += f", mean IoU {iou[has_box].mean():.2f}"
  sheet.write_heading(title, facts)
  _legend(sheet.axes, sheet.width - MARGIN, FACTS, with_true=bool(has_box.any()))
  save(sheet.canvas, path)


def _write_answer(
  sheet: Sheet,
  corner: tuple[float, float],
  *,
  predicted: str,
  true: str,
  right: bool,
  probability: float,
  iou: float | None,
) -> None:
  """Writes the two lines above an example, whose corner is (y, x)."""
  y, x = corner
  words = functools.partial(draw_text, sheet.axes, x, room=sheet.strip)
  mark, colour = ("✓", _RIGHT) if right else ("✗", _WRONG)
  share = f"  {100 * probability:.1f} %"
  words(y - 23, f"{mark} {predicted}", 13, colour, end=share, weight="bold")
  words(y - 7, f"true: {true}", 12, GREY, end="" if iou is None else f"   IoU {iou:.2f}")


def _panels(
  image: np.ndarray, maps: Sequence[np.ndarray], size: tuple[int, int]
) -> list[np.ndarray]:
  """The image, and each map over it."""
  image = resize_image(image, size)
  # Six bits a colour: nobody sees it, and the file shrinks by 40 %.
  return [shown & 0xFC for shown in (image, *(overlay(image, score_map) for score_map in maps))]


def overlay(image: np.ndarray, score_map: np.ndarray) -> np.ndarray:
  """Heat over the image in grey; (H, W, 3) uint8 and (h, w) -> (H, W, 3) uint8."""
  small = Image.fromarray(localization.normalise(score_map))
  heat = np.asarray(small.resize(image.shape[1::-1], Image.Resampling.BICUBIC)).clip(0, 1)
  grey = (image @ np.array([0.299, 0.587, 0.114]))[..., None]
  alpha = 0.25 + 0.55 * heat[..., None]
  return ((1 - alpha) * 0.8 * grey + alpha * 255 * _HEAT(heat)[..., :3]).round().astype(np.uint8)


def _legend(axes: Axes, right: float, y: float, *, with_true: bool) -> None:
  """Writes what lines and colours mean, ending at `right`."""
  x = right - draw_text(axes, right, y, "high", 11, GREY, align="right") - 6
  axes.imshow(np.linspace(0, 1, 64)[None], cmap=_HEAT, extent=(x - 64, x, y, y - 9), aspect="auto")
  x -= 70
  x -= draw_text(axes, x, y, "map: low", 11, GREY, align="right") + 18
  entries = [("predicted box", _PREDICTED_BOX, False)]
  if with_true:
    entries.insert(0, ("true box", _TRUE_BOX, True))
  for name, colour, dashed in entries:
    x -= draw_text(axes, x, y, name, 11, GREY, align="right") + 6
    draw_box(axes, np.array([y - 12, x - 25, y + 3, x]), colour, dashed=dashed)
    x -= 43
