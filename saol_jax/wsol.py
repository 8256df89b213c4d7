"""Scores of weakly supervised localisation, by the definitions of wsolevaluation.

Choe et al. 2020, "Evaluating weakly supervised object localization methods right", and its code,
clovaai/wsolevaluation. Everything is accumulated map by map: memory does not grow with the data.

The threshold t runs over 0, 0.001, ..., 0.999. A map, scaled to [0, 1] by its own minimum and
maximum, is compared as bytes: a pixel counts where `uint8(255 m) > int(255 t)`. So only 255
thresholds differ, and they are called levels here, 0 to 254.

Boxes come in as y_min, x_min, y_max, x_max in pixels, max exclusive. For MaxBoxAcc and V2, as in
wsolevaluation, a map's box is (x, y, min(x + w, width - 1), min(y + h, height - 1)), a true one is
not cut off so, and the sides of both are counted as max - min + 1: one pixel too many, but for a
map's box at the right or lower border. That flatters small images, whose boxes have few pixels, and
a true box that ends at such a border is never met exactly. GT-known, top-1 and top-5 localisation
count sides as they are.

What the maps and boxes are is not said here, and in `--mode=localize` differs from wsolevaluation:
maps are enlarged bilinearly (there bicubically), true boxes of resized images are rounded to whole
pixels (there cut), and of several true boxes in an image the largest alone counts (there any).
"""

from typing import NamedTuple

import cv2
import numpy as np

from saol_jax.localization import box_iou, normalise

THRESHOLDS = np.arange(0, 1, 0.001)
IOUS = (0.3, 0.5, 0.7)

_NUM_LEVELS = 255
_LEVELS = (255 * THRESHOLDS).astype(int)
_MAIN_IOU = 0.5


class Overlaps(NamedTuple):
  """IoU of a map's boxes with the true one at each level, (255,) float64 each.

  Attributes:
    exact: of the contour with the largest area, sides counted as they are.
    largest: of the same, sides counted as max - min + 1.
    best: the best of all contours, sides counted as max - min + 1.
  """

  exact: np.ndarray
  largest: np.ndarray
  best: np.ndarray


def overlaps(score_map: np.ndarray, box: np.ndarray) -> Overlaps:
  """How well the boxes of a map fit the true one, at each level.

  At each level OpenCV finds the contours (RETR_TREE, CHAIN_APPROX_SIMPLE; the rims of holes are
  among them), and each gives its bounding box. Without any the box is (0, 0, 0, 0).

  Args:
    score_map: (H, W) in [0, 1].
    box: (4,) integers, y_min, x_min, y_max, x_max, max exclusive, in pixels of the map.
  """
  image = (np.asarray(score_map, np.float32) * 255).astype(np.uint8)
  # The pixels above a level change only where the map has that value.
  starts = np.union1d(image, 0)
  starts = starts[starts < _NUM_LEVELS]
  rectangles, firsts, biggest = [], [], []
  for start in starts:
    mask = (image > start).view(np.uint8)
    contours = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    firsts.append(len(rectangles))
    biggest.append(len(rectangles))
    if len(contours) > 1:
      areas = [cv2.contourArea(contour) for contour in contours]
      biggest[-1] += areas.index(max(areas))
    rectangles += [cv2.boundingRect(contour) for contour in contours] or [(0, 0, 0, 0)]
  rectangles = np.array(rectangles)
  low, high = rectangles[:, 1::-1], rectangles[:, 1::-1] + rectangles[:, :1:-1]
  exact = box_iou(np.concatenate([low, high], 1), box)
  ious = _ious(rectangles, box, *score_map.shape)
  repeats = np.diff(starts, append=_NUM_LEVELS)
  at_starts = (exact[biggest], ious[biggest], np.maximum.reduceat(ious, firsts))
  return Overlaps(*(np.repeat(values, repeats) for values in at_starts))


def _ious(rectangles: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
  """Of (n, 4) x, y, width, height with one y_min, x_min, y_max, x_max: (n,)."""
  last = (width - 1, height - 1)
  low, high = rectangles[:, :2], np.minimum(rectangles[:, :2] + rectangles[:, 2:], last)
  box = np.asarray(box, np.int64)
  true_low, true_high = box[[1, 0]], box[[3, 2]]

  def area(low, high):
    return np.maximum(high - low + 1, 0).prod(-1)

  overlap = area(np.maximum(low, true_low), np.minimum(high, true_high))
  return overlap / (area(low, high) + area(true_low, true_high) - overlap)


class BoxScores:
  """Box scores of one kind of map over a data set."""

  def __init__(self):
    """Starts with no maps."""
    self.count = 0
    # By level: maps whose largest box is right at IoU 0.5, alone and with the label right too.
    self._known, self._top1, self._top5 = np.zeros((3, _NUM_LEVELS), np.int64)
    self._largest = np.zeros(_NUM_LEVELS, np.int64)
    self._best = np.zeros((len(IOUS), _NUM_LEVELS), np.int64)

  def add(self, maps: np.ndarray, boxes: np.ndarray, top1: np.ndarray, top5: np.ndarray) -> None:
    """Counts a batch.

    Args:
      maps: (B, H, W), of the true class, of any range; constant ones and those with a NaN count as
        zeros.
      boxes: (B, 4) integers, y_min, x_min, y_max, x_max, max exclusive, in pixels of the maps.
      top1: (B,) bool, the predicted label is right.
      top5: (B,) bool, the right label is among the first five.
    """
    for score_map, box, first, fifth in zip(maps, boxes, top1, top5, strict=True):
      self.add_overlaps(overlaps(normalise(score_map), box), top1=first, top5=fifth)

  def add_overlaps(self, ious: Overlaps, *, top1: bool, top5: bool) -> None:
    """Counts one map whose overlaps are known already."""
    hit = ious.exact >= _MAIN_IOU
    self.count += 1
    self._known += hit
    self._top1 += hit & bool(top1)
    self._top5 += hit & bool(top5)
    self._largest += ious.largest >= _MAIN_IOU
    self._best += ious.best >= np.array(IOUS)[:, None]

  def curve(self) -> np.ndarray:
    """(1000,) GT-known localisation at each of `THRESHOLDS`, see `at`."""
    return self._known[_LEVELS] / self.count

  def best_threshold(self) -> float:
    """The threshold with the best GT-known localisation, the lowest of equals."""
    return float(THRESHOLDS[self.curve().argmax()])

  def at(self, threshold: float) -> dict[str, float]:
    """The scores at a fixed threshold, to be chosen on other data than these.

    Args:
      threshold: in [0, 1).

    Returns:
      Shares of the images, in [0, 1]:
      gt_known: the largest box of the true class's map has IoU >= 0.5 with the true box, sides
        counted as they are.
      top1_loc, top5_loc: that, and the true label is the predicted one, or among the first five.
    """
    level = int(255 * threshold)
    return {
      "gt_known": float(self._known[level] / self.count),
      "top1_loc": float(self._top1[level] / self.count),
      "top5_loc": float(self._top5[level] / self.count),
    }

  def best(self) -> dict[str, float]:
    """The scores at the best threshold for these very data.

    Returns:
      Shares of the images, in [0, 1]:
      max_box_acc: MaxBoxAcc, the largest box has IoU >= 0.5, at the best threshold.
      box_acc_30, box_acc_50, box_acc_70: any box has IoU >= 0.3, 0.5 or 0.7, each at its best
        threshold.
      max_box_acc_v2: MaxBoxAccV2, the mean of these three.
    """
    by_iou = self._best.max(1) / self.count
    names = [f"box_acc_{round(100 * iou)}" for iou in IOUS]
    return {
      "max_box_acc": float(self._largest.max() / self.count),
      **dict(zip(names, by_iou.tolist(), strict=True)),
      "max_box_acc_v2": float(by_iou.mean()),
    }


IGNORED = 255  # value of a mask's pixels that are not counted


def pixel_counts(score_map: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Pixels of one map by truth and by the highest of `THRESHOLDS` and 1 that they reach.

  Args:
    score_map: (H, W) in [0, 1].
    mask: (H, W) uint8, 1 object, 0 background, 255 not counted.

  Returns:
    (2, 1001) integers, background first.

  Raises:
    ValueError: another shape, or another value in the mask.
  """
  if score_map.shape != mask.shape:
    raise ValueError(f"map {score_map.shape} and mask {mask.shape} must have one shape")
  odd = np.setdiff1d(mask, (0, 1, IGNORED))
  if odd.size:
    raise ValueError(f"mask holds the value {odd[0]}; expected 0 background, 1 object, 255 ignored")
  edges = np.append(THRESHOLDS, 1.0)
  bins = np.searchsorted(edges, score_map.ravel(), side="right") - 1
  truths = ((mask == truth).ravel() for truth in (0, 1))
  return np.array([np.bincount(bins[truth], minlength=len(edges)) for truth in truths])


class PixelScores:
  """PxAP, the area under the precision-recall curve of pixels, over a data set with masks.

    PxAP = sum_l Prec(t_l) (Rec(t_l) - Rec(t_l-1)),   t falling from 1

  All pixels of all images are one set. A pixel is predicted where the map reaches t (not strictly,
  unlike the boxes, and not as a byte), t in `THRESHOLDS` and 1.
  """

  def __init__(self):
    """Starts with no maps."""
    self._counts = np.zeros((2, len(THRESHOLDS) + 1), np.int64)

  def add(self, maps: np.ndarray, masks: np.ndarray) -> None:
    """Counts a batch.

    Args:
      maps: (B, H, W), of any range; constant ones and those with a NaN count as zeros.
      masks: (B, H, W) uint8, see `pixel_counts`.
    """
    for score_map, mask in zip(maps, masks, strict=True):
      self.add_counts(pixel_counts(normalise(score_map), mask))

  def add_counts(self, counts: np.ndarray) -> None:
    """Counts one map whose pixels are counted already."""
    self._counts += counts

  def average_precision(self) -> float:
    """PxAP, in [0, 1].

    Raises:
      ValueError: no pixel so far belongs to an object.
    """
    false, true = self._counts[:, ::-1].cumsum(1)
    if not true[-1]:
      raise ValueError("no pixel of the masks belongs to an object, so PxAP is undefined")
    precision = true / np.maximum(true + false, 1)
    recall = true / true[-1]
    return float((precision * np.diff(recall, prepend=0)).sum())
