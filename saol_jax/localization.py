"""Where in the image: score maps, their normalisation and resizing, boxes, box overlap.

Plain NumPy on the host. Boxes are y_min, x_min, y_max, x_max in pixels, max exclusive.
"""

import functools

import numpy as np
from scipy import ndimage

# What boxes are drawn from, see `explain.saol_maps`: the best map of a class on images held out of
# training, of digit_scenes and of photographs, and a threshold between those that suited them best
# (README, "Which map finds the object").
BOX_MAP, BOX_THRESHOLD = "activated_evidence", 0.4

# Diagonal neighbours touch, as in OpenCV's contours, on which the field's box metrics are built.
_NEIGHBOURS = np.ones((3, 3), np.int32)


def normalise(maps: np.ndarray) -> np.ndarray:
  """Scales each map to [0, 1] by its own minimum and maximum.

    (m - min m) / (max m - min m);   0 where m is constant or holds a NaN or an infinity

  Args:
    maps: (..., H, W), any real numbers.

  Returns:
    (..., H, W) float32.

  Choe et al. 2020, "Evaluating weakly supervised object localization methods right".
  """
  # Wider than the input, so that a range of 6e38 or of 1e-40 is still a number.
  maps = np.asarray(maps, np.float64)
  maps = np.where(np.isfinite(maps).all((-2, -1), keepdims=True), maps, 0.0)
  low = maps.min((-2, -1), keepdims=True)
  span = maps.max((-2, -1), keepdims=True) - low
  return ((maps - low) / np.where(span > 0, span, 1.0)).astype(np.float32)


def resize_maps(maps: np.ndarray, size: tuple[int, int], method: str = "bilinear") -> np.ndarray:
  """Resizes maps, usually from the output grid to the image.

  Pixel centres lie at half-integers: output pixel i reads at (i + 0.5) * h / height - 0.5, and
  beyond the outermost centres the border value holds (PyTorch's align_corners=False, OpenCV's
  INTER_LINEAR and INTER_CUBIC). There is no smoothing where a map shrinks.

  Args:
    maps: (..., h, w).
    size: height and width of the result.
    method: "bilinear", or "bicubic", which may leave the range of the map by a tenth or so.

  Returns:
    (..., height, width) float32. A NaN or an infinity spreads over its row and column as NaN.
  """
  maps = np.asarray(maps, np.float32)
  rows = _INTERPOLATIONS[method](maps.shape[-2], size[0])
  columns = _INTERPOLATIONS[method](maps.shape[-1], size[1])
  with np.errstate(invalid="ignore"):  # 0 * inf
    return rows @ maps @ columns.T


@functools.lru_cache(maxsize=64)  # of a tenth of a megabyte for a photograph
def _bilinear(old: int, new: int) -> np.ndarray:
  """(new, old) float32: each row the two weights with which a new sample reads the old ones."""
  centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
  weights = 1 - np.abs(centres[:, None] - np.arange(old))
  return np.maximum(weights, 0).astype(np.float32)


@functools.lru_cache(maxsize=64)  # of a tenth of a megabyte for a photograph
def _bicubic(old: int, new: int) -> np.ndarray:
  """(new, old) float32: likewise, four weights of Keys' cubic with a = -0.75, as in OpenCV."""
  centres = (np.arange(new) + 0.5) * old / new - 0.5
  reads = np.floor(centres).astype(int)[:, None] + np.arange(-1, 3)
  x = np.abs(centres[:, None] - reads)
  near = 1.25 * x**3 - 2.25 * x**2 + 1
  far = -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
  weights = np.zeros((new, old), np.float32)
  # Reads beyond the border are reads of the border.
  places = (np.arange(new)[:, None], np.clip(reads, 0, old - 1))
  np.add.at(weights, places, np.where(x < 1, near, far).astype(np.float32))
  return weights


_INTERPOLATIONS = {"bilinear": _bilinear, "bicubic": _bicubic}


def largest_box(score_map: np.ndarray, threshold: float) -> np.ndarray:
  """The box around the largest connected region where the map exceeds a threshold.

  Pixels that touch by a side or a corner belong together. The largest region has the most pixels;
  of equals, the first in reading order wins. (`wsol`, like wsolevaluation, takes the contour around
  the largest area instead, holes included, and compares bytes: of regions of almost one size the
  two may choose another.)

  Args:
    score_map: (H, W) in [0, 1].
    threshold: in [0, 1]; pixels strictly above it count.

  Returns:
    (4,) int32, y_min, x_min, y_max, x_max, max exclusive; zeros where no pixel is above.
  """
  regions, count = ndimage.label(score_map > threshold, _NEIGHBOURS)
  if not count:
    return np.zeros(4, np.int32)
  sizes = np.bincount(regions.ravel())[1:]  # label 0 is the background
  y, x = ndimage.find_objects(regions)[int(sizes.argmax())]
  return np.array([y.start, x.start, y.stop, x.stop], np.int32)


def all_boxes(score_map: np.ndarray, threshold: float) -> np.ndarray:
  """The boxes around all connected regions where the map exceeds a threshold.

  Args:
    score_map: (H, W) in [0, 1].
    threshold: in [0, 1]; pixels strictly above it count.

  Returns:
    (n, 4) int32, y_min, x_min, y_max, x_max, max exclusive, the region with the most pixels first,
    equals in reading order; n is 0 where no pixel is above. See `largest_box`.
  """
  regions, _ = ndimage.label(score_map > threshold, _NEIGHBOURS)
  sizes = np.bincount(regions.ravel())[1:]  # label 0 is the background
  boxes = [(y.start, x.start, y.stop, x.stop) for y, x in ndimage.find_objects(regions)]
  return np.array(boxes, np.int32).reshape(-1, 4)[np.argsort(-sizes, kind="stable")]


def boxes_from_maps(maps: np.ndarray, size: tuple[int, int], threshold: float) -> np.ndarray:
  """One box a map, in pixels of the image: resize, normalise, largest region above the threshold.

  Args:
    maps: (B, h, w) score maps of any range.
    size: height and width of the image.
    threshold: in [0, 1], as a share of each map's own range.

  Returns:
    (B, 4) int32, y_min, x_min, y_max, x_max, max exclusive; zeros where the map is constant or not
    finite.

  Raises:
    ValueError: maps of another shape, or a threshold out of range.
  """
  maps = np.asarray(maps, np.float32)
  if maps.ndim != 3 or not 0 <= threshold <= 1:
    raise ValueError(
      f"maps of shape {maps.shape}, threshold {threshold}; expected (B, h, w), and one in [0, 1]"
    )
  boxes = np.zeros((len(maps), 4), np.int32)
  for index, score_map in enumerate(maps):
    # One at a time: 1,000 maps at 224 x 224 would be 200 MB.
    boxes[index] = largest_box(normalise(resize_maps(score_map, size)), threshold)
  return boxes


def has_area(boxes: np.ndarray) -> np.ndarray:
  """(..., 4) boxes -> (...) bool: it holds a pixel. Zeros stand for "no box" everywhere here."""
  return (boxes[..., 2:] > boxes[..., :2]).all(-1)


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Intersection over union of boxes, pair by pair.

    |a and b| / |a or b|;   0 where both are empty

  Args:
    a: (..., 4) y_min, x_min, y_max, x_max, max exclusive: the area is (y_max - y_min) *
      (x_max - x_min), without the +1 of inclusive conventions.
    b: (..., 4) likewise; leading axes broadcast against those of `a`.

  Returns:
    (...) float64 in [0, 1].
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  overlap = _area(
    np.concatenate([np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])], -1)
  )
  union = _area(a) + _area(b) - overlap
  return np.divide(overlap, union, out=np.zeros_like(union), where=union > 0)


def _area(boxes: np.ndarray) -> np.ndarray:
  """(..., 4) -> (...): 0 where a maximum does not exceed its minimum."""
  return np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), -1)
