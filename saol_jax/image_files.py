"""Image files that a person points at: which they are, and their pixels."""

import collections
import contextlib
import dataclasses
import glob
import io
import logging
import math
import os
import pathlib
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from saol_jax.console import counted
from saol_jax.errors import UserError

with contextlib.suppress(ImportError):  # without it HEIC is a kind that Pillow does not know
  import pi_heif

  pi_heif.register_heif_opener()

logger = logging.getLogger(__name__)

_JPEG = (".jfif", ".jpeg", ".jpg")
KINDS = {  # as Pillow calls them, and the extensions that each may have
  "AVIF": (".avif",),
  "BMP": (".bmp",),
  "GIF": (".gif",),
  "HEIF": (".heic", ".heif"),
  "JPEG": _JPEG,
  "MPO": _JPEG,  # of some cameras
  "PNG": (".png",),
  "PPM": (".ppm",),
  "TIFF": (".tif", ".tiff"),
  "WEBP": (".webp",),
}
EXTENSIONS = tuple(sorted({extension for several in KINDS.values() for extension in several}))
MOST_PIXELS = 2**29  # of an image: TensorFlow, which decodes in training, refuses more
_pillow_limit = threading.Lock()
_OF_PREDICTIONS = (".jsonl", ".csv", ".html")  # which may lie beside the images
# In what is no JPEG file, at any place: EXIF of PNG and WebP, of PNG as text, XMP of both, and how
# AVIF is turned and mirrored, of which Pillow makes EXIF.
_TURN_MARKS = (
  *(b"eXIf", b"EXIF", b"Raw profile type exif", b"com.adobe.xmp", b"tiff:Orientation"),
  *(b"irot", b"imir"),
)


class UnreadableImage(UserError):
  """A file or an object that is not an image we can read; the message says why."""


@dataclasses.dataclass(frozen=True)
class ImageFile:
  """A file to predict.

  Attributes:
    path: to open it.
    name: to show it: the path below the folder that was asked for, or the path as it was given.
    folder: name of the folder it lies in, where the user asked for a folder of folders or for a
      pattern; "" where this says nothing of its class.
  """

  path: pathlib.Path
  name: str
  folder: str


def find_images(images: str | os.PathLike, *, leave_out: pathlib.Path) -> list[ImageFile]:
  """The files that `--images=GLOB|DIR|FILE` means, in order of their names.

  A folder is searched with all folders below it, for files with one of `EXTENSIONS`. Others are
  left out with a warning; hidden ones, those of the kinds that a prediction writes (.jsonl, .csv,
  .html) and the pictures of earlier predictions in silence. A file or a pattern is taken by its
  word, whatever the extension.

  Args:
    images: an existing file, a folder, or a pattern with *, ?, [abc] or ** (any folders).
    leave_out: folder whose files are not meant: where the pictures of an earlier call lie.

  Raises:
    UserError: there is no such file.
  """
  given = os.path.expanduser(os.fspath(images))
  leave_out = leave_out.resolve()
  if os.path.isfile(given):
    return [ImageFile(pathlib.Path(given), given, "")]
  if os.path.isdir(given):
    root = pathlib.Path(given)
    all_files = _walk(root)
    paths = [path for path in all_files if path.suffix.lower() in EXTENSIONS]
    others = collections.Counter(path.suffix.lower() for path in all_files)
    for extension in (*EXTENSIONS, *_OF_PREDICTIONS):
      del others[extension]
    if others:
      logger.warning(
        "Left out %s of other kinds: %s. Convert images among them, or name them by a pattern in "
        "quotes",
        counted(others.total(), "file"),
        describe_kinds(others),
      )
    files = [
      ImageFile(path, str(path.relative_to(root)), "" if path.parent == root else path.parent.name)
      for path in paths
    ]
    expected = f"a folder with {', '.join(EXTENSIONS)} files, or with folders of such files"
  else:
    paths = [pathlib.Path(path) for path in glob.glob(given, recursive=True)]
    files = [ImageFile(path, str(path), path.parent.name) for path in paths if path.is_file()]
    expected = "an existing file, a folder, or a quoted pattern such as 'photos/**/*.jpg'"
  files = [file for file in files if leave_out not in file.path.resolve().parents]
  if not files:
    raise UserError(f"--images={given!r} has no image: expected {expected}")
  return sorted(files, key=lambda file: file.path.parts)


def _walk(root: pathlib.Path) -> list[pathlib.Path]:
  """All files below a folder but hidden ones and the pictures of an earlier prediction.

  Links to folders are followed, each folder once.
  """
  found, seen = [], set()
  for folder, folders, names in os.walk(root, followlinks=True):
    real = os.path.realpath(folder)
    if real in seen:
      folders.clear()
    else:
      of_predictions = "predictions.jsonl" in names and "report.html" in names
      left_out = ("overlays",) if of_predictions else ()
      folders[:] = [n for n in folders if not n.startswith(".") and n not in left_out]
      found += [pathlib.Path(folder, name) for name in names if not name.startswith(".")]
    seen.add(real)
  return found


def describe_kinds(extensions: Mapping[str, int]) -> str:
  """Numbers of files by extension, the most frequent first."""
  most = sorted(extensions.items(), key=lambda entry: (-entry[1], entry[0]))
  return ", ".join(f"{count} {printable(name) or 'without extension'}" for name, count in most)


def read_image(
  source: str | os.PathLike | bytes | Image.Image | np.ndarray, *, upright: bool = True
) -> Image.Image:
  """An image as RGB.

  An animation gives its first frame, transparency is dropped, grey and palettes become RGB, 16 bits
  become 8. A file may have `MOST_PIXELS`.

  Args:
    source: a path, the bytes of a file, a PIL image, or an array (H, W, 3) uint8 of NumPy, of JAX,
      or of anything else that has `__array__`.
    upright: turn a file or a PIL image as its EXIF or XMP data says.

  Raises:
    UnreadableImage: names the file or the shape, and the reason.
  """
  if not isinstance(source, str | os.PathLike | bytes | Image.Image):
    return _from_array(source)
  is_open = isinstance(source, Image.Image)  # perhaps no more than its header has been read
  try:
    with contextlib.nullcontext(source) if is_open else _open(source) as image:
      return _rgb(ImageOps.exif_transpose(image) if upright else image)
  except Exception as error:  # a broken file can end in any exception of its decoder
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
      reason = "not a picture of a kind that Pillow knows"
      if not is_open and not _has_content(source):
        reason = "it is empty"
    raise UnreadableImage(f"{_name(source)} cannot be read as an image: {reason}") from error


def _from_array(source: Any) -> Image.Image:
  if not hasattr(source, "__array__"):
    raise UnreadableImage(
      f"an object of type {type(source).__name__} is no image: expected a path, an array (H, W, 3) "
      "uint8, a PIL image, or a list of such"
    )
  array = np.asarray(source)
  if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size:
    return Image.fromarray(array)
  mend = ""
  if array.dtype != np.uint8:
    mend += "; x in [0, 1] is converted by (x * 255).round().astype(np.uint8)"
  if array.ndim == 2:
    mend += "; grey x gets its channels by np.stack([x] * 3, -1)"
  raise UnreadableImage(
    f"an array of shape {array.shape} and dtype {array.dtype} is no image: expected (H, W, 3) uint8"
    f"{mend}"
  )


def _has_content(source: str | os.PathLike | bytes) -> bool:
  return bool(source) if isinstance(source, bytes) else os.stat(source).st_size > 0


def _name(source: str | os.PathLike | bytes | Image.Image) -> str:
  if isinstance(source, bytes):
    return f"a file of {len(source)} bytes"
  if isinstance(source, Image.Image):
    source = getattr(source, "filename", "") or f"a PIL image of {source.width} x {source.height}"
  return printable(source)


def orientation(encoded: bytes) -> int:
  """How an encoded image is to be turned, as EXIF or XMP say, 1 to 8, or 1, which is upright.

  1 where they say nothing sensible. It is what `read_image` does with the same file.
  """
  if not _may_be_turned(encoded):
    return 1
  try:
    with _open(encoded) as image:
      value = image.getexif().get(ExifTags.Base.Orientation, 1)
  except Exception:  # whoever decodes the image will say what is wrong with it
    return 1
  return value if value in range(1, 9) else 1


def _open(source: str | os.PathLike | bytes) -> Image.Image:
  """`Image.open` up to `MOST_PIXELS`, of which Pillow's limit is a third: what trains is read."""
  file = io.BytesIO(source) if isinstance(source, bytes) else source
  try:
    return Image.open(file)
  except Image.DecompressionBombError:
    with _pillow_limit:
      before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MOST_PIXELS // 2
      try:
        return Image.open(file)  # which refuses more than twice that number
      except Image.DecompressionBombError as error:
        side = math.isqrt(MOST_PIXELS)
        raise UnreadableImage(
          f"it has more than {MOST_PIXELS:,} pixels; shrink it, to {side:,} x {side:,} or less"
        ) from error
      finally:
        Image.MAX_IMAGE_PIXELS = before


def _may_be_turned(encoded: bytes) -> bool:
  """Whether Pillow has to be asked: of a million photographs most have neither EXIF nor XMP."""
  if not encoded.startswith(b"\xff\xd8"):
    return any(mark in encoded for mark in _TURN_MARKS)
  place = 2  # a JPEG file has both in APP1 segments before the pixels: no need to search these
  while (marker := encoded[place : place + 2]) not in (b"\xff\xe1", b"\xff\xda"):
    if marker[:1] != b"\xff" or marker[1:] in (b"\xff", b""):
      return True  # padded or damaged
    place += 2 + int.from_bytes(encoded[place + 2 : place + 4], "big")
  return marker == b"\xff\xe1"


def _rgb(image: Image.Image) -> Image.Image:
  if image.mode.startswith("I;16"):
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
  if image.mode in ("I", "F"):
    raise UnreadableImage(f"mode {image.mode} has no fixed brightest value, save it with 8 bits")
  return image.convert("RGB")


def printable(text: str | bytes | os.PathLike) -> str:
  """Text for a terminal: what could move its cursor or cannot be encoded is spelled out."""
  text = os.fsdecode(text)
  return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
