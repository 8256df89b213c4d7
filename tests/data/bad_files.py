"""Image files of every kind that a folder may hold, and what is wrong with them."""

import pathlib

import numpy as np
from PIL import Image

from saol_jax.data import BadImages, Geometry, Reading, load_source
from tests.data.pictures import ROTATED, encode, scene, turned_exif, with_orientation

SIZE = 32
READING = Reading(geometry=Geometry(SIZE, eval_crop=0), bad_images=BadImages(0.5, "count"))

PHOTO = scene(60, 90)
JPEG_BYTES = encode(PHOTO, "JPEG", quality=95)
_deep = np.asarray(PHOTO.convert("L")).astype(np.uint16) * 257
_transparent = Image.merge("RGBA", (*PHOTO.split(), Image.new("L", PHOTO.size, 90)))

ODD = {  # each decodes, whatever its name says
  "png_named.jpg": encode(PHOTO, "PNG"),
  "gif_named.jpg": encode(PHOTO, "GIF"),
  "two_frames.gif": encode(PHOTO, "GIF", save_all=True, append_images=[Image.new("RGB", (90, 60))]),
  "rgba.png": encode(_transparent, "PNG"),
  "palette.png": encode(PHOTO.quantize(64), "PNG"),
  "grey.jpg": encode(PHOTO.convert("L"), "JPEG", quality=95),
  "cmyk.jpg": encode(PHOTO.convert("CMYK"), "JPEG", quality=95),
  "16_bit.png": encode(Image.fromarray(_deep), "PNG"),
  "16_bit.tif": encode(Image.fromarray(_deep), "TIFF"),
  "one_pixel.png": encode(PHOTO.resize((1, 1)), "PNG"),
  "one_pixel.jpg": encode(PHOTO.resize((1, 1)), "JPEG"),
  "long.jpg": encode(PHOTO.resize((20_000, 2)), "JPEG", quality=95),
  "high.png": encode(PHOTO.resize((2, 20_000)), "PNG"),
  "turned.jpg": with_orientation(PHOTO, ROTATED),
  "progressive.JPEG": encode(PHOTO, "JPEG", quality=95, progressive=True),
  "plain.bmp": encode(PHOTO, "BMP"),
  "palette.bmp": encode(PHOTO.quantize(64), "BMP"),
  "lossless.webp": encode(PHOTO, "WEBP", lossless=True),
  "transparent.webp": encode(_transparent, "WEBP", lossless=True, exact=True),
  "web.avif": encode(PHOTO, "AVIF", quality=95),
  "turned.avif": encode(PHOTO, "AVIF", quality=95, exif=turned_exif(ROTATED)),
  # PHOTO as pillow-heif 1.4.0 writes it with quality 90; pi_heif only reads.
  "phone.heic": (pathlib.Path(__file__).parent / "scene.heic").read_bytes(),
}
BROKEN = {
  "truncated.jpg": (JPEG_BYTES[: len(JPEG_BYTES) // 2], "truncated"),
  "truncated.png": (ODD["rgba.png"][:200], "truncated"),
  "empty.jpg": (b"", "it is empty"),
  "text.jpg": (b"I am no picture, but I say that I am one.\n", "not a picture"),
  "unreadable.jpg": (None, "No such file"),  # a link to nowhere: root may read all else
}
GOOD = ("deep/er/0.jpeg", "deep/er/1.jpeg", "fine.jpeg")


def write(root, files):
  """Files by path; None makes a link to nowhere."""
  for name, data in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if data is None:
      path.symlink_to(root / "nowhere")
    else:
      path.write_bytes(data)
  return root


def load(root, split="train", **changes):
  fields = {"geometry": READING.geometry, "bad_images": READING.bad_images} | changes
  return load_source("folder", split, data_dir=str(root), reading=Reading(**fields))


def place_of(source) -> dict[str, int]:
  """Index by the file's name."""
  return {source.name(i).rpartition("/")[2]: i for i in range(len(source))}
