"""Image files: found, and read as a person sees them."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from saol_jax import image_files
from saol_jax.errors import UserError
from saol_jax.image_files import (
  UnreadableImage,
  find_images,
  orientation,
  printable,
  read_image,
)
from tests.data.pictures import encode
from tests.support import empty_files


def test_files_are_read_as_a_person_sees_them(tmp_path, photo):
  turned = Image.fromarray(photo).transpose(Image.Transpose.ROTATE_90)
  exif = Image.Exif()
  exif[0x0112] = 6  # "turn me 90 degrees clockwise"
  turned.save(tmp_path / "turned.png", exif=exif)
  np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "turned.png")), photo)

  grey = Image.fromarray((np.arange(600, dtype=np.uint16) * 100).reshape(20, 30))
  grey.save(tmp_path / "deep.png")
  expected = (np.arange(600) * 100 // 256).reshape(20, 30)
  for channel in np.moveaxis(np.asarray(read_image(tmp_path / "deep.png")), -1, 0):
    np.testing.assert_array_equal(channel, expected)

  Image.fromarray(photo).quantize(256).save(tmp_path / "palette.gif")
  error = np.asarray(read_image(tmp_path / "palette.gif")).astype(int) - photo
  assert np.abs(error).mean() < 12


@pytest.mark.parametrize(
  ("image", "message"),
  [
    (np.zeros((4, 4, 3), np.float32), r"\(4, 4, 3\).*float32.*expected.*uint8; x in \[0, 1\].*255"),
    (np.zeros((4, 4), np.uint8), r"\(4, 4\).*expected.*uint8; grey x.*np.stack"),
    (jnp.zeros((4, 4, 3)), r"\(4, 4, 3\).*float32"),
    (b"xx", "a file of 2 bytes cannot be read.*not a picture"),
    (None, "an object of type NoneType is no image: expected a path"),
    (5, "type int"),
    ([5], "type list"),
    ((i for i in ()), "type generator"),
    (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
    ("/nowhere/x.png", "/nowhere/x.png cannot be read.*No such file"),
    (Image.new("F", (3, 3)), "mode F"),
  ],
)
def test_what_is_no_image_is_named(predictor, photo, image, message):
  with pytest.raises(UnreadableImage, match=message):
    predictor([photo, image])
  with pytest.raises(UnreadableImage, match=message.replace("type list", "type int")):
    predictor(image)


def test_arrays_of_other_libraries_are_images(predictor, images):
  expected = np.stack([prediction.probabilities for prediction in predictor(images)])
  for given in (jnp.asarray(images), list(jnp.asarray(images))):
    found = np.stack([prediction.probabilities for prediction in predictor(given)])
    np.testing.assert_array_equal(found, expected)
  (found,) = predictor(jnp.asarray(images[0]))
  np.testing.assert_array_equal(found.probabilities, expected[0])


def _turned(kind):
  """A file of 400 x 400 pixels of noise, larger than 65,536 bytes, that says "turn me" (6)."""
  noise = np.random.default_rng(0).integers(0, 256, (400, 400, 1), dtype=np.uint8).repeat(3, 2)
  exif = Image.Exif()
  exif[0x0112] = 6
  options = {"exif": exif}
  if kind == "XMP":
    options = {"xmp": b'<rdf:Description tiff:Orientation="6"/>'}
  elif kind == "after ICC":
    options["icc_profile"] = bytes(200_000)
  elif kind == "none":
    options = {"icc_profile": bytes(200_000)}
  encoded = encode(
    Image.fromarray(noise), kind if kind in ("WEBP", "PNG") else "JPEG", quality=95, **options
  )
  if kind == "PNG":  # the chunk of its EXIF data after the pixels, before the last chunk
    start = encoded.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(encoded[start : start + 4], "big")
    encoded = encoded[:start] + encoded[end:-12] + encoded[start:end] + encoded[-12:]
  return noise, encoded


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "JPEG", "XMP", "after ICC", "none"])
def test_training_turns_what_prediction_turns(kind):
  noise, encoded = _turned(kind)
  assert len(encoded) > 65536
  assert orientation(encoded) == (1 if kind == "none" else 6)
  expected = noise if kind == "none" else np.rot90(noise, -1)
  found = np.asarray(read_image(encoded))
  assert np.abs(found.astype(int) - expected).mean() < 10  # unrelated noise: 85


def test_an_opened_image_is_read_as_its_file_is(tmp_path):
  encoded = _turned("JPEG")[1]
  opened = Image.open(io.BytesIO(encoded))
  np.testing.assert_array_equal(np.asarray(read_image(opened)), np.asarray(read_image(encoded)))
  assert opened.size == (400, 400)  # the caller's is left alone
  assert opened.getexif()[0x0112] == 6
  cut = Image.open(io.BytesIO(encoded[:5000]))
  with pytest.raises(UnreadableImage, match=r"PIL image of 400 x 400 cannot be read.*truncated"):
    read_image(cut)
  (tmp_path / "cut.jpg").write_bytes(encoded[:5000])
  with (
    Image.open(tmp_path / "cut.jpg") as cut,
    pytest.raises(UnreadableImage, match=r"cut.jpg cannot be read as an image.*truncated"),
  ):
    read_image(cut)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_large_images_are_read_up_to_the_limit_of_training(tmp_path, monkeypatch, kind):
  """400 x 400 pixels stand for the 200 million of a telephone. Pillow refuses twice its number."""
  (tmp_path / "large").write_bytes(_turned(kind)[1])
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400 * 400 // 3)
  monkeypatch.setattr(image_files, "MOST_PIXELS", 400 * 400)
  assert read_image(tmp_path / "large").size == (400, 400)
  assert orientation((tmp_path / "large").read_bytes()) == 6
  monkeypatch.setattr(image_files, "MOST_PIXELS", 400 * 400 - 2)
  with pytest.raises(UnreadableImage, match=r"large cannot.*159,998 pixels; shrink it, to 399 x"):
    read_image(tmp_path / "large")
  assert Image.MAX_IMAGE_PIXELS == 400 * 400 // 3


@pytest.mark.parametrize("count", [0, 3, 4, 21, 200])
def test_a_cut_off_file_is_not_turned(count):
  assert orientation(_turned("XMP")[1][:count]) == 1


def test_what_is_found(tmp_path):
  empty_files(
    tmp_path, ["b.png", "a/x.JPG", "a/c/y.png", "a/notes.txt", ".hidden/z.png", "out/o.png"]
  )
  (tmp_path / "a" / "loop").symlink_to(tmp_path)
  out = tmp_path / "out"

  def names(images):
    return [(file.name, file.folder) for file in find_images(images, leave_out=out)]

  assert names(tmp_path) == [("a/c/y.png", "c"), ("a/x.JPG", "a"), ("b.png", "")]
  assert names(tmp_path / "b.png") == [(str(tmp_path / "b.png"), "")]
  found = names(f"{tmp_path}/**/*.png")
  assert [name.removeprefix(f"{tmp_path}/") for name, _ in found][-1] == "b.png"
  assert (f"{tmp_path}/a/c/y.png", "c") in found
  assert not any("out/" in name for name, _ in found)


def test_what_is_left_out_is_counted(tmp_path, caplog):
  empty_files(tmp_path, ["b.png", "a.svg", "a/x.PSD", "a/y.psd", "old/overlays/b.jpg"])
  empty_files(tmp_path / "old", ["predictions.jsonl", "predictions.csv", "report.html"])
  empty_files(tmp_path, ["overlays/mine.png"])  # no prediction wrote beside it
  with caplog.at_level("WARNING"):
    found = find_images(tmp_path, leave_out=tmp_path / "out")
  assert [file.name for file in found] == ["b.png", "overlays/mine.png"]
  assert "Left out 3 files of other kinds: 2 .psd, 1 .svg" in caplog.text


def test_a_name_like_a_pattern_is_a_file(tmp_path):
  empty_files(tmp_path, ["a[1].png", "a1.png"])
  (found,) = find_images(tmp_path / "a[1].png", leave_out=tmp_path / "out")
  assert found.path.name == "a[1].png"


@pytest.mark.parametrize("images", ["nothing", "nothing/*.png", "."])
def test_no_image_is_a_mistake(tmp_path, images):
  with pytest.raises(UserError, match="has no image: expected"):
    find_images(tmp_path / images, leave_out=tmp_path / "out")


def test_names_cannot_play_with_the_terminal():
  assert printable("a\x1b[31m\n\udcff é") == "a\\x1b[31m\\n\\udcff é"
