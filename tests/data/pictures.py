"""Pictures for the tests of encoded data sets."""

import io

import numpy as np
from PIL import Image

ROTATED = 6  # EXIF: the camera was held upright, the picture lies on its side


def scene(height: int, width: int) -> Image.Image:
  """A smooth picture whose corners have colours of their own."""
  y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
  return Image.fromarray(np.stack([220 * x, 220 * y, 40 + 160 * (1 - x) * y], -1).astype(np.uint8))


def boxed(height: int, width: int, box: tuple[int, int, int, int]) -> Image.Image:
  """White where the box (y_min, x_min, y_max, x_max) is, black elsewhere."""
  pixels = np.zeros((height, width, 3), np.uint8)
  pixels[box[0] : box[2], box[1] : box[3]] = 255
  return Image.fromarray(pixels)


def encode(image: Image.Image, kind: str, **options) -> bytes:
  """The bytes of a file."""
  stream = io.BytesIO()
  image.save(stream, kind, **options)
  return stream.getvalue()


def turned_exif(orientation: int) -> Image.Exif:
  """EXIF data that says how a picture is to be turned."""
  exif = Image.Exif()
  exif[0x0112] = orientation
  return exif


def with_orientation(image: Image.Image, orientation: int, **options) -> bytes:
  """A JPEG file whose EXIF data says how it is to be turned."""
  return encode(image, "JPEG", exif=turned_exif(orientation), quality=95, **options)


def white_region(image: np.ndarray) -> np.ndarray:
  """y_min, x_min, y_max, x_max of what is brighter than the middle of the scale; max exclusive."""
  white = image.mean(-1) > 127
  rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
  return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])
