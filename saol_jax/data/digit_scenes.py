"""Digits on photographs, with boxes: a small data set that needs no download.

Real handwritten digits (scikit-learn's `load_digits`, 1,797 images of 8 x 8 from the UCI test set)
are enlarged, coloured and pasted at a random size and place onto random crops of scikit-learn's two
photographs. Training and test scenes share neither digits nor parts of the photographs.
"""

import dataclasses

import numpy as np
from PIL import Image
from sklearn import datasets

from saol_jax.data.source import ArraySource, DatasetInfo, held_out, train_or_validation

SIZE = 32
NUM_TRAIN = 20_000
NUM_TEST = 2_000

_SEEDS = {"train": 1, "test": 2}
_TEST_DIGITS = 1 / 3
_DIGIT_SIZES = (13, 22)  # pixels that the 8 cells of a digit cover, a side
_BLUR_LEVELS = (1, 2, 3, 4, 5)  # photo pixels, a side, that make one scene pixel
_TEST_COLUMNS = 224  # columns of each photograph, from the left, kept for the test scenes
_BRIGHTNESS = (0.5, 1.1)
_CONTRAST = 0.42  # least difference in luma, of 1, between a digit and the mean of what it covers
_OPACITY = (0.85, 1.0)
_VISIBLE = 0.3  # share of full ink from which a pixel counts as part of a stroke
_OBJECT, _NEITHER = 1, 255  # in the masks; what has less ink than a stroke, but some, is neither
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_CHUNK = 2_000  # scenes composed at once, to bound memory

# Of the 20,000 training scenes; a test recomputes them.
INFO = DatasetInfo(
  class_names=tuple("0123456789"),
  mean=(0.4169, 0.4196, 0.3813),
  std=(0.3220, 0.2672, 0.2877),
)


def load(split: str, *, validation: float = 0.0) -> ArraySource:
  """Builds one split; the same arguments give the same arrays.

  All training scenes are the same whatever `validation` is. A digit appears in many of them, so
  validation holds out digits, with every scene that they are in.

  Args:
    split: "train", "validation" or "test".
    validation: in [0, 1), the share of the training digits, and so of the scenes, held out.

  Returns:
    Images of 32 x 32, ten classes, with the mask of the digit's visible strokes and its tight box.

  Raises:
    UserError: `validation` leaves train or validation empty.
  """
  digits = datasets.load_digits()
  part = "test" if split == "test" else "train"
  rng = np.random.default_rng(_SEEDS[part])
  indices = scene_digits(part)
  labels = digits.target.astype(np.int32)
  scenes = _draw_scenes(rng, _backgrounds(part), digits.images[indices].astype(np.float32) / 16)
  source = ArraySource(scenes.images, labels[indices], INFO, scenes.boxes, scenes.masks)
  if part == "test":
    return source
  keep = np.zeros(len(labels), bool)
  members = np.unique(indices)
  keep[members] = train_or_validation(labels[members], split, validation)
  return source.part(keep[indices])


def scene_digits(part: str) -> np.ndarray:
  """Tells which digit every scene shows.

  Args:
    part: "train" (validation included) or "test".

  Returns:
    (NUM_TRAIN,) or (NUM_TEST,) indices into `load_digits`. Every digit of the part appears equally
    often, give or take one.
  """
  test = held_out(datasets.load_digits().target, _TEST_DIGITS)
  members, count = (test, NUM_TEST) if part == "test" else (~test, NUM_TRAIN)
  order = np.random.default_rng(0).permutation(np.flatnonzero(members))
  return np.resize(order, count)


@dataclasses.dataclass(frozen=True)
class _Scenes:
  images: np.ndarray  # (N, SIZE, SIZE, 3) uint8
  boxes: np.ndarray  # (N, 4) int32
  masks: np.ndarray  # (N, SIZE, SIZE) uint8


def _draw_scenes(rng: np.random.Generator, photos: list[np.ndarray], digits: np.ndarray) -> _Scenes:
  """Pastes digits (N, 8, 8), ink in [0, 1], onto crops of photos, each (h, w, 3) uint8."""
  n = len(digits)
  images = np.empty((n, SIZE, SIZE, 3), np.uint8)
  boxes = np.empty((n, 4), np.int32)
  masks = np.zeros((n, SIZE, SIZE), np.uint8)
  for start in range(0, n, _CHUNK):
    chunk = slice(start, min(start + _CHUNK, n))
    ink = _place(rng, digits[chunk])
    background = _crop(rng, photos, len(ink))
    colour = _colours(rng, background, ink)
    opacity = rng.uniform(*_OPACITY, (len(ink), 1, 1, 1)).astype(np.float32)
    alpha = opacity * ink[..., None]
    scene = background + alpha * (colour[:, None, None, :] - background)
    images[chunk] = np.rint(255 * scene)
    visible = ink >= _VISIBLE
    boxes[chunk] = _tight_boxes(visible)
    masks[chunk][ink > 0] = _NEITHER
    masks[chunk][visible] = _OBJECT
  return _Scenes(images, boxes, masks)


def _place(rng: np.random.Generator, digits: np.ndarray) -> np.ndarray:
  """Enlarges digits (n, 8, 8) to random sizes at random places: ink (n, SIZE, SIZE) in [0, 1]."""
  n = len(digits)
  side = rng.uniform(*_DIGIT_SIZES, n)
  top, left = rng.uniform(0.0, 1.0, (2, n)) * (SIZE - side)
  rows = _resampling(side, top)
  columns = _resampling(side, left)
  ink = rows @ digits @ columns.transpose(0, 2, 1)
  # Steeper edges than interpolation leaves: at twice the size a stroke would be a haze.
  return np.clip((ink - 0.2) / 0.5, 0.0, 1.0)


def _resampling(side: np.ndarray, start: np.ndarray) -> np.ndarray:
  """Cubic weights (n, SIZE, 8) of 8 cells that cover `side` pixels from `start` on, in one axis."""
  pixel = np.arange(SIZE) + 0.5
  cell = (pixel - start[:, None]) * 8 / side[:, None] - 0.5
  x = np.abs(cell[..., None] - np.arange(8))
  # Catmull-Rom: passes through the cells' values, and is 0 two cells outside the digit.
  near = 1.5 * x**3 - 2.5 * x**2 + 1
  far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
  return np.where(x < 1, near, np.where(x < 2, far, 0.0)).astype(np.float32)


def _crop(rng: np.random.Generator, photos: list[np.ndarray], n: int) -> np.ndarray:
  """Random crops, mirrored at random, of random brightness: (n, SIZE, SIZE, 3) in [0, 1]."""
  crops = np.empty((n, SIZE, SIZE, 3), np.uint8)
  which = rng.integers(len(photos), size=n)
  place = rng.uniform(0.0, 1.0, (2, n))
  for i, photo in enumerate(photos):
    here = np.flatnonzero(which == i)
    # Every window of the photo as a view; only the chosen ones are copied.
    windows = np.lib.stride_tricks.sliding_window_view(photo, (SIZE, SIZE), axis=(0, 1))
    y, x = (place[:, here].T * windows.shape[:2]).astype(int).T
    crops[here] = windows[y, x].transpose(0, 2, 3, 1)
  mirrored = rng.random(n) < 0.5
  crops[mirrored] = crops[mirrored, :, ::-1]
  brightness = rng.uniform(*_BRIGHTNESS, (n, 1, 1, 1)).astype(np.float32)
  return np.minimum(crops * (brightness / np.float32(255)), np.float32(1))


def _colours(rng: np.random.Generator, background: np.ndarray, ink: np.ndarray) -> np.ndarray:
  """Colours (n, 3) in [0, 1] of random hue, at least _CONTRAST away in luma from what ink hides."""
  n = len(ink)
  total = ink.sum((1, 2))
  behind = np.einsum("nhw,nhwc,c->n", ink, background, _LUMA) / total
  # A luma drawn evenly from what lies far enough below or above the background's.
  darker = np.maximum(behind - _CONTRAST, 0.0)
  lighter = np.maximum(1 - _CONTRAST - behind, 0.0)
  drawn = rng.uniform(0.0, 1.0, n) * (darker + lighter)
  luma = np.where(drawn < darker, drawn, behind + _CONTRAST + drawn - darker)[:, None]
  # Any colour reaches that luma by mixing in black or white, which keeps its hue.
  colour = rng.uniform(0.0, 1.0, (n, 3))
  own = colour @ _LUMA[:, None]
  mixed = np.where(own > luma, colour * luma / own, 1 - (1 - colour) * (1 - luma) / (1 - own))
  return mixed.astype(np.float32)


def _tight_boxes(visible: np.ndarray) -> np.ndarray:
  """Boxes (n, 4), y_min, x_min, y_max, x_max, max exclusive, around the True of (n, H, W)."""
  boxes = []
  for axis in (2, 1):
    hit = visible.any(axis)
    boxes.append((hit.argmax(1), hit.shape[1] - hit[:, ::-1].argmax(1)))
  (y_min, y_max), (x_min, x_max) = boxes
  return np.stack([y_min, x_min, y_max, x_max], axis=1).astype(np.int32)


def _backgrounds(part: str) -> list[np.ndarray]:
  """The part's share of both photographs, at every scale, as (h, w, 3) uint8."""
  columns = slice(None, _TEST_COLUMNS) if part == "test" else slice(_TEST_COLUMNS, None)
  photos = [Image.fromarray(p[:, columns].copy()) for p in datasets.load_sample_images().images]
  return [np.asarray(photo.reduce(level)) for photo in photos for level in _BLUR_LEVELS]
