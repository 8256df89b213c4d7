"""Encoded images to small ones of one size, in TensorFlow's threads: the work of the host.

An image is a window of the original, resized to S x S. Training draws the window at random
(Inception's crop, Szegedy et al. 2015, as torchvision's `RandomResizedCrop` defines it); evaluation
takes a centred square, or the whole image, whose sides are then scaled apart.

What is done differently from torchvision and from Flax's ImageNet example, for speed:
- Only the window of a JPEG file is decoded (as Flax's example does), and where the window is larger
  than 2 S a side, at a half, a quarter or an eighth of its size, by the inverse DCT itself
  (libjpeg's scaling). Other formats are averaged over squares of as many pixels.
- What remains is a bilinear resize by less than a factor of 2, rounded to uint8. Flax's example
  sends bicubic float32 to the device: four times the bytes.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from saol_jax.data.records import Parse, parse_row
from saol_jax.tensorflow_cpu import import_tensorflow

_TRIES = 10  # windows drawn before the fallback, as in torchvision
_DRAWS = 2 * _TRIES + 2  # uniform numbers an image: areas, aspect ratios, and where
_BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))
_JPEG = b"\xff\xd8\xff"
# TensorFlow's default overflows at sharp edges: black where white should be. This one is as fast
# here, and what Pillow uses.
_DCT = "INTEGER_ACCURATE"
_BMP = b"BM"
_PLAIN_BMP = b"\x18\x00\x00\x00\x00\x00"  # from byte 28: 24 bits a pixel, not compressed


@dataclasses.dataclass(frozen=True)
class Geometry:
  """How an original becomes an image of S x S.

  Attributes:
    size: S, pixels a side.
    crop_area: range of the window's share of the original's area, in training.
    crop_aspect: range of the window's width / height, in training.
    eval_crop: side of the centred square that evaluation takes, as a share of the shorter side:
      0.875 is "resize the shorter side to 256, crop 224"; 0 takes the whole image.
  """

  size: int
  crop_area: tuple[float, float] = (0.08, 1.0)
  crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
  eval_crop: float = 0.875

  def eval_window(self, height: int, width: int) -> tuple[int, int, int, int]:
    """What evaluation takes of an original: y_min, x_min, y_max, x_max in pixels, max exclusive."""
    if not self.eval_crop:
      return 0, 0, height, width
    side = max(int(np.round(np.float32(self.eval_crop) * np.float32(min(height, width)))), 1)
    y_min, x_min = (height - side + 1) // 2, (width - side + 1) // 2
    return y_min, x_min, y_min + side, x_min + side


@dataclasses.dataclass(frozen=True)
class Decoded:
  """What came of n records; the arrays have a row for each.

  Attributes:
    images: (n, S, S, 3) uint8.
    labels: (n,) int32; -1 where the record does not say.
    boxes: (n, 4) float32, y_min, x_min, y_max, x_max as a share of the original; NaN where unknown.
    sizes: (n, 2) int32, height and width of the original.
    windows: (n, 4) int32, y, x, height and width of the window in the original.
    broken: place -> reason, of records that cannot be decoded; their rows mean nothing.
  """

  images: np.ndarray
  labels: np.ndarray
  boxes: np.ndarray
  sizes: np.ndarray
  windows: np.ndarray
  broken: dict[int, str]


def crop_draws(seed: int, place: int, count: int) -> np.ndarray:
  """The uniform numbers behind the windows of `count` consecutive training examples.

  Philox (Salmon et al. 2011) is counter-based: row i is a function of `seed` and `place + i` alone,
  and costs the same wherever it lies.

  Args:
    seed: of the run.
    place: of the first example in the endless row of all epochs.
    count: n.

  Returns:
    (n, 22) float32 in [0, 1).
  """
  blocks = -(-_DRAWS // 4)  # a counter of Philox gives four numbers
  generator = np.random.Generator(np.random.Philox(key=seed, counter=place * blocks))
  draws = generator.random((count, 4 * blocks))[:, :_DRAWS].astype(np.float32)
  return np.minimum(draws, _BELOW_ONE)  # rounding to float32 may give 1


def _usable_cores() -> int:
  try:
    return len(os.sched_getaffinity(0))  # a container may have a few of the machine's
  except AttributeError:  # not on Linux
    return os.cpu_count() or 1


class Decoder:
  """Decodes batches of records; may be called from several threads."""

  def __init__(self, geometry: Geometry, parse: Parse, *, train: bool, threads: int):
    """Builds the TensorFlow function.

    Args:
      geometry: of the images.
      parse: what a record holds.
      train: draw the windows at random.
      threads: images decoded at once; 0 for as many as there are cores.
    """
    self._tf = tf = import_tensorflow()
    self._geometry, self._parse, self._train = geometry, parse, train
    self._threads = parallel = threads or _usable_cores()
    size = geometry.size

    @tf.function(
      autograph=False,
      input_signature=[
        tf.TensorSpec([None], tf.string),
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([None, _DRAWS], tf.float32),
      ],
    )
    def decode(records, orientations, draws):
      places = tf.range(tf.size(records))
      rows = tf.data.Dataset.from_tensor_slices((places, records, orientations, draws))
      rows = rows.map(self._row, num_parallel_calls=parallel)
      # A row that fails is left out, and told by its missing place.
      rows = rows.ignore_errors(log_warning=False).batch(tf.size(records, tf.int64))
      return rows.get_single_element()

    @tf.function(
      autograph=False,
      input_signature=[
        tf.TensorSpec([None, None, 3], tf.uint8),
        tf.TensorSpec([_DRAWS], tf.float32),
      ],
    )
    def from_pixels(pixels, draws):
      window = self._window(tf.shape(pixels)[:2], draws)
      image = _shrink(tf, pixels, window, size)
      return image, window

    self._decode, self._from_pixels = decode, from_pixels

  def __call__(
    self,
    records: Sequence[bytes],
    orientations: np.ndarray,
    draws: np.ndarray | None = None,
    read_odd: Callable[[bytes], np.ndarray] | None = None,
  ) -> Decoded:
    """Decodes a batch.

    Args:
      records: n, see `parse`.
      orientations: (n,) int32, EXIF's 1 to 8: how each image is to be turned; 1 leaves it.
      draws: (n, 22) from `crop_draws`; None in evaluation.
      read_odd: tries an encoded image that TensorFlow cannot decode: to (H, W, 3) uint8, turned as
        it is to be, or any exception. It is called in several threads at once.
    """
    n = len(records)
    draws = np.zeros((n, _DRAWS), np.float32) if draws is None else draws
    try:
      places, *rows = (
        column.numpy() for column in self._decode(list(records), orientations, draws)
      )
    except self._tf.errors.InvalidArgumentError:  # not one row was left
      places, rows = np.array([], np.int32), []
    if len(places) == n:
      return Decoded(*rows, broken={})

    size = self._geometry.size
    arrays = [
      np.zeros((n, size, size, 3), np.uint8),
      np.full(n, -1, np.int32),
      np.full((n, 4), np.nan, np.float32),
      np.zeros((n, 2), np.int32),
      np.zeros((n, 4), np.int32),
    ]
    for array, rows_found in zip(arrays, rows, strict=False):
      array[places] = rows_found
    images, labels, boxes, sizes, windows = arrays

    def read(place: int) -> str | None:
      """Fills a row that TensorFlow could not; returns why it cannot be filled."""
      try:
        row = parse_row(self._parse, records[place])
        labels[place] = row.get("label", -1)
        boxes[place] = row.get("box", np.nan)
        pixels = read_odd(row["image"])
        image, window = self._from_pixels(pixels, draws[place])
      except Exception as error:  # a broken file can end in any exception of its decoder
        return " ".join(str(error).split()) or type(error).__name__
      images[place], windows[place] = image.numpy(), window.numpy()
      sizes[place] = pixels.shape[:2]
      return None

    missing = np.setdiff1d(np.arange(n), places).tolist()
    with ThreadPoolExecutor(self._threads) as threads:
      reasons = dict(zip(missing, threads.map(read, missing), strict=True))
    broken = {place: reason for place, reason in reasons.items() if reason is not None}
    return Decoded(images, labels, boxes, sizes, windows, broken)

  def _row(self, place, record, orientation, draws):
    """One record, inside TensorFlow's graph."""
    tf, size = self._tf, self._geometry.size
    row = self._parse(record)
    encoded = row["image"]

    def window_of_jpeg():
      full = tf.io.extract_jpeg_shape(encoded)[:2]
      window = self._window(full, draws)
      return _decode_window(tf, encoded, window, size), full, window

    def whole():
      # TensorFlow takes the indices of a palette for shades of grey: any other BMP is "odd".
      plain = tf.strings.substr(encoded, 28, len(_PLAIN_BMP)) == _PLAIN_BMP
      odd = (tf.strings.substr(encoded, 0, len(_BMP)) == _BMP) & ~plain
      pixels = tf.cond(
        is_jpeg,
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method=_DCT),
        lambda: tf.io.decode_image(
          tf.where(odd, b"", encoded), channels=3, expand_animations=False
        ),
      )
      pixels = _turn(tf, pixels, orientation)
      full = tf.shape(pixels)[:2]
      window = self._window(full, draws)
      return _shrink(tf, pixels, window, size), full, window

    is_jpeg = tf.strings.substr(encoded, 0, len(_JPEG)) == _JPEG
    image, full, window = tf.cond(is_jpeg & (orientation == 1), window_of_jpeg, whole)
    label = tf.cast(row.get("label", -1), tf.int32)
    box = row.get("box", tf.constant([math.nan] * 4))
    return place, image, label, box, full, window

  def _window(self, size, draws):
    """y, x, height and width (int32) of the window in an original of `size`."""
    tf, geometry = self._tf, self._geometry
    if self._train:
      return _random_window(tf, geometry, size, draws)
    if not geometry.eval_crop:  # what follows is `Geometry.eval_window`
      return tf.concat([[0, 0], size], 0)
    shorter = tf.cast(tf.reduce_min(size), tf.float32)
    side = tf.maximum(tf.cast(tf.round(geometry.eval_crop * shorter), tf.int32), 1)
    return tf.concat([(size - side + 1) // 2, [side, side]], 0)


def _random_window(tf, geometry: Geometry, size, draws):
  """As RandomResizedCrop: ten tries, then the largest centred window in range."""
  height, width = tf.unstack(tf.cast(size, tf.float32))
  (smallest, largest), (narrow, wide) = geometry.crop_area, geometry.crop_aspect
  area = height * width * (smallest + (largest - smallest) * draws[:_TRIES])
  low, high = math.log(narrow), math.log(wide)
  aspect = tf.exp(low + (high - low) * draws[_TRIES : 2 * _TRIES])
  heights, widths = tf.round(tf.sqrt(area / aspect)), tf.round(tf.sqrt(area * aspect))
  fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
  first = tf.argmax(fits)

  def drawn():
    side = tf.stack([heights[first], widths[first]])
    return tf.concat([tf.floor(draws[-2:] * ([height, width] - side + 1)), side], 0)

  def centred():
    side = tf.round(tf.minimum([height, width], [width / narrow, height * wide]))
    side = tf.maximum(side, 1)
    return tf.concat([tf.floor(([height, width] - side) / 2), side], 0)

  return tf.cast(tf.cond(fits[first], drawn, centred), tf.int32)


def _scale(tf, window, size: int):
  """0, 1, 2 or 3: how often the window can be halved with no side shorter than `size`."""
  sides = tf.reduce_min(window[2:])
  return tf.reduce_sum(tf.cast(sides >= [2 * size, 4 * size, 8 * size], tf.int32))


def _decode_window(tf, encoded, window, size: int):
  """A window of a JPEG file, resized."""
  edges = tf.concat([window[:2], window[:2] + window[2:]], 0)

  def at(ratio: int):
    near = (edges + ratio // 2) // ratio  # not further off than half a pixel
    part = tf.concat([near[:2], near[2:] - near[:2]], 0)
    return lambda: tf.io.decode_and_crop_jpeg(
      encoded, part, channels=3, ratio=ratio, dct_method=_DCT
    )

  return _resize(tf, tf.switch_case(_scale(tf, window, size), [at(1), at(2), at(4), at(8)]), size)


def _shrink(tf, pixels, window, size: int):
  """A window of an image, resized."""
  y, x, height, width = tf.unstack(window)
  crop = pixels[y : y + height, x : x + width]

  def averaged(ratio: int):
    def average():
      means = tf.nn.avg_pool2d(tf.cast(crop, tf.float32)[None], ratio, ratio, "VALID")[0]
      return tf.cast(tf.round(means), tf.uint8)

    return average

  scale = _scale(tf, window, size)
  return _resize(
    tf, tf.switch_case(scale, [lambda: crop, averaged(2), averaged(4), averaged(8)]), size
  )


def _resize(tf, pixels, size: int):
  """(h, w, 3) uint8 to (size, size, 3), bilinear, rounded."""
  pixels = tf.ensure_shape(pixels, [None, None, 3])[None]
  # The raw operation takes uint8 as it is; tf.image.resize would make a float copy first.
  resized = tf.raw_ops.ResizeBilinear(images=pixels, size=[size, size], half_pixel_centers=True)
  return tf.cast(resized[0] + 0.5, tf.uint8)


def _turn(tf, pixels, orientation):
  """An image as EXIF's orientation (1 to 8) wants it seen."""
  pixels = tf.cond(orientation >= 5, lambda: tf.transpose(pixels, [1, 0, 2]), lambda: pixels)
  # After the transposition: which axes are to be mirrored.
  rows = tf.gather([0, 0, 0, 1, 1, 0, 0, 1, 1], orientation) > 0
  columns = tf.gather([0, 0, 1, 1, 0, 0, 1, 1, 0], orientation) > 0
  pixels = tf.cond(rows, lambda: pixels[::-1], lambda: pixels)
  return tf.cond(columns, lambda: pixels[:, ::-1], lambda: pixels)
