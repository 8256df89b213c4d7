import csv
import dataclasses
import errno
import io
import json
import logging
import os
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from saol_jax import export_card, image_files, predict
from saol_jax import predictor as predictor_module
from saol_jax.data import Geometry
from saol_jax.data.decode import Decoder
from saol_jax.data.folder import FolderRecords
from saol_jax.errors import UserError
from saol_jax.image_files import (
  UnreadableImage,
  find_images,
  orientation,
  printable,
  read_image,
)
from saol_jax.localization import largest_box, normalise, resize_maps
from saol_jax.model_card import read_model_json
from saol_jax.predict import SOME_SKIPPED, _overlay_strip, predict_command
from saol_jax.predictor import Predictor, load
from tests.data.pictures import encode
from tests.support import write_run

# The digits' mean and standard deviation, as the data set says: values are checked against it.
_HOSTILE = "<script>alert(1)<_script>'\"&\u2028=1+1.png"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def predictor(run):
  return load(run.folder, top_k=3, batch_size=8)


@pytest.fixture(scope="module")
def images(run):
  return run.experiment.source("test").images[:11]


@pytest.fixture(scope="module")
def photo():
  """A smooth picture that is not square: 60 high, 100 wide."""
  y, x = np.mgrid[:60, :100]
  return np.stack([2 * x, 4 * y, (x + y) % 256], -1).astype(np.uint8)


def test_agrees_with_the_model_called_directly(run, predictor, images):
  """11 images in batches of 8, the last filled up, against one call of the averaged model."""
  found = predictor(images)
  info = run.experiment.info
  x = (images.astype(np.float32) / 255 - np.float32(info.mean)) / np.float32(info.std)
  output, _ = jax.jit(lambda v, x: run.experiment.model.apply(v, x, train=False))(
    run.state.ema, jnp.asarray(x)
  )
  spatial = jax.device_get(output.spatial)
  assert len(found) == 11
  for i, prediction in enumerate(found):
    order = np.argsort(-spatial.log_probs[i], kind="stable")[:3]
    np.testing.assert_array_equal(prediction.labels, order)
    assert prediction.names == tuple(info.class_names[k] for k in order)
    np.testing.assert_allclose(
      prediction.probabilities, np.exp(spatial.log_probs[i, order]), rtol=1e-4
    )
    np.testing.assert_allclose(
      prediction.grids["attention"][0], spatial.attention[i], rtol=1e-3, atol=1e-6
    )
    class_maps = np.exp(np.moveaxis(spatial.spatial_log_probs[i][..., order], -1, 0))
    np.testing.assert_allclose(prediction.grids["class"], class_maps, rtol=1e-3, atol=1e-6)
    assert (prediction.label, prediction.name) == (order[0], info.class_names[order[0]])
    assert prediction.confidence == prediction.probabilities[0]
  spread = [prediction.confidence for prediction in found]
  assert 0.1 < min(spread) < max(spread) < 0.9  # else the comparison would prove little


def test_one_program_serves_every_number_of_images(predictor, images):
  for count in (1, 8, 11):
    predictor(images[:count])
  assert predictor._forward._cache_size() == 1
  assert predictor.batch_size == 8
  assert predictor([]) == []


def test_one_image_is_a_list_of_one(predictor, images, tmp_path):
  path = tmp_path / "a.png"
  Image.fromarray(images[0]).save(path)
  expected = predictor(images)[0].probabilities
  opened, paths = Image.fromarray(images[0]), np.array([str(path)])
  for single in (
    images[0],
    path,
    str(path),
    path.read_bytes(),
    opened,
    [images[0]],
    (path,),
    paths,
  ):
    (prediction,) = predictor(single)
    np.testing.assert_array_equal(prediction.probabilities, expected)


def test_maps_and_boxes_have_the_size_of_the_image(predictor, photo):
  big = np.asarray(Image.fromarray(photo).resize((1000, 600)))
  found = predictor([photo, big, photo[:, :7]])
  for prediction, size in zip(found, [(60, 100), (600, 1000), (60, 7)], strict=True):
    assert prediction.size == size
    assert prediction.attention.shape == size
    assert prediction.class_maps.shape == (3, *size)
    y_min, x_min, y_max, x_max = prediction.boxes.T
    assert (y_min >= 0).all()
    assert (x_min >= 0).all()
    assert (y_max <= size[0]).all()
    assert (x_max <= size[1]).all()


def test_maps_are_bilinear_in_between(predictor, photo):
  prediction = predictor(photo)[0]
  grid, resized = prediction.grids["attention"][0], prediction.attention
  rows, columns = grid.shape
  # Pixel i reads the grid at (i + 0.5) * rows / 60 - 0.5: by hand at one place.
  y, x = (31 + 0.5) * rows / 60 - 0.5, (44 + 0.5) * columns / 100 - 0.5
  i, j = int(y), int(x)
  top = grid[i, j] * (1 - (x - j)) + grid[i, j + 1] * (x - j)
  bottom = grid[i + 1, j] * (1 - (x - j)) + grid[i + 1, j + 1] * (x - j)
  assert resized[31, 44] == pytest.approx(top * (1 - (y - i)) + bottom * (y - i), rel=1e-4)


@pytest.mark.parametrize("size", [(80, 40), (40, 80), (1600, 800)])
def test_box_of_a_known_map(predictor, monkeypatch, size):
  """A blob over rows 2 to 3 and columns 4 to 7 of 8 x 8 cells, in images of several shapes."""
  blob = np.zeros((8, 3, 8, 8), np.float32)
  blob[:, 0, 2:4, 4:8] = 1
  blob[:, 1, :, :] = 0.25  # constant: nothing stands out
  output = {
    "labels": np.tile(np.arange(3, dtype=np.int32), (8, 1)),
    "probabilities": np.tile(np.float32([0.5, 0.3, 0.2]), (8, 1)),
    "attention": blob[:, :1],
    "class": blob,
  }
  monkeypatch.setattr(predictor_module, "BOX_MAP", "class")
  monkeypatch.setattr(predictor_module, "BOX_THRESHOLD", 0.5)
  monkeypatch.setattr(predictor, "_forward", lambda variables, images: output)
  (prediction,) = predictor(np.zeros((*size, 3), np.uint8))
  # The interpolated edge passes 0.5 half-way between two cells, which is their common border.
  unit = np.array(size) / 8
  expected = [2 * unit[0], 4 * unit[1], 4 * unit[0], 8 * unit[1]]
  np.testing.assert_allclose(prediction.box, expected, atol=max(1, max(size) / 512))
  np.testing.assert_array_equal(prediction.boxes[1], np.zeros(4))
  if max(size) < 512:
    direct = largest_box(normalise(prediction.class_maps[0]), 0.5)
    np.testing.assert_array_equal(prediction.box, direct)


@pytest.fixture(scope="module")
def cropping(run):
  """The run's network as if trained on photographs: evaluation crops them."""
  config = run.experiment.config.copy_and_resolve_references()
  config.data.image_size, config.data.eval_crop = 32, 0.5
  card = read_model_json(run.folder)
  return Predictor(config, card, run.experiment.model, run.state.variables, top_k=3, batch_size=8)


def test_photographs_are_seen_as_evaluation_sees_them(cropping, photo):
  file = io.BytesIO()
  Image.fromarray(photo).resize((500, 300)).save(file, "JPEG", quality=95)
  decoder = Decoder(Geometry(32, eval_crop=0.5), FolderRecords.parse, train=False, threads=1)
  (expected,) = decoder([file.getvalue()], np.ones(1, np.int32)).images
  found = cropping.prepare(Image.open(file)).astype(int)
  assert np.abs(found - expected).mean() < 1.5
  straight = np.asarray(Image.open(file).resize((32, 32)))
  assert np.abs(straight.astype(int) - expected).mean() > 10  # what another geometry would give


def test_an_export_says_what_is_cut_out(run):
  data = run.experiment.config.data.copy_and_resolve_references()
  assert export_card._crop(data) == ""  # images of one size are read whole
  data.image_size, data.eval_crop = 224, 0.875
  assert "centred square with 0.875 of its shorter side" in export_card._crop(data)


def test_maps_and_boxes_lie_in_the_part_that_was_seen(cropping, monkeypatch):
  blob = np.zeros((8, 3, 8, 8), np.float32)
  blob[:, 0, 2:4, 4:8] = 1
  output = {
    "labels": np.tile(np.arange(3, dtype=np.int32), (8, 1)),
    "probabilities": np.tile(np.float32([0.5, 0.3, 0.2]), (8, 1)),
    "attention": blob[:, :1],
    "class": blob,
  }
  monkeypatch.setattr(predictor_module, "BOX_MAP", "class")
  monkeypatch.setattr(predictor_module, "BOX_THRESHOLD", 0.5)
  monkeypatch.setattr(cropping, "_forward", lambda variables, images: output)
  (prediction,) = cropping(np.zeros((64, 160, 3), np.uint8))
  assert prediction.window == (16, 64, 48, 96)  # 32 x 32 in the middle: a cell is 4 pixels
  np.testing.assert_array_equal(prediction.box, [16 + 8, 64 + 16, 16 + 16, 64 + 32])
  np.testing.assert_array_equal(prediction.boxes[1], np.zeros(4))
  attention = prediction.attention.copy()
  assert attention.shape == (64, 160)
  np.testing.assert_array_equal(attention[16:48, 64:96], resize_maps(blob[0, 0], (32, 32)))
  attention[16:48, 64:96] = 0
  assert not attention.any()
  assert prediction.class_maps.shape == (3, 64, 160)
  # In the pictures of --mode=predict likewise: bright where it looked, dark around.
  strip = _overlay_strip(Image.new("RGB", (160, 64), "white"), prediction)
  panel = np.asarray(strip)[:, 160 + 4 : 2 * 160 + 4]
  assert (panel[:, :63] == 85).all()
  assert (panel[24:32, 82:94] > 85).any(-1).all()


@pytest.mark.parametrize("size", [(512, 1), (1, 512)])
def test_a_thin_image_can_be_seen(predictor, size):
  (prediction,) = predictor(np.zeros((6 * size[1], 6 * size[0], 3), np.uint8))
  strip = _overlay_strip(Image.new("RGB", size, "white"), prediction)
  assert strip.size == (3 * max(size[0], 32) + 8, max(size[1], 32))


def test_preparation_averages_where_an_image_shrinks(predictor, images):
  size = predictor.card.image_size
  np.testing.assert_array_equal(predictor.prepare(Image.fromarray(images[0])), images[0])
  board = np.indices((8 * size[0], 8 * size[1])).sum(0) % 2 * 255
  board = Image.fromarray(np.repeat(board[..., None], 3, -1).astype(np.uint8))
  small = predictor.prepare(board)
  assert small.shape == (*size, 3)
  assert np.abs(small.astype(int) - 127).max() <= 3  # without averaging: 0 or 255


def test_bfloat16_by_config(run, images):
  """Of all classes, by label: the order of the untrained network's may be another."""
  probabilities = []
  for dtype in (None, "bfloat16"):
    prediction = load(run.folder, top_k=10, dtype=dtype)(images)[0]
    probabilities.append(prediction.probabilities[np.argsort(prediction.labels)])
  wide, narrow = probabilities
  assert not np.array_equal(wide, narrow)
  np.testing.assert_allclose(narrow, wide, rtol=0.03)


def test_top_k_is_at_most_all(run, images):
  (prediction,) = load(run.folder, top_k=99)(images[0])
  assert sorted(prediction.labels.tolist()) == list(range(10))
  assert prediction.probabilities.sum() == pytest.approx(1, abs=1e-5)
  assert (np.diff(prediction.probabilities) <= 0).all()


def test_gap_alone_gives_labels_only(tmp_path, photo):
  write_run(tmp_path / "run", model__head="gap")
  (prediction,) = load(tmp_path / "run", top_k=2)(photo)
  assert len(prediction.labels) == 2
  assert prediction.grids == {}
  assert (prediction.box, prediction.attention, prediction.class_maps) == (None, None, None)
  Image.fromarray(photo).save(tmp_path / "a.png")
  assert predict_command(tmp_path / "run", tmp_path / "a.png") == 0
  record = json.loads((tmp_path / "run" / "predictions" / "predictions.jsonl").read_text())
  assert (record["box"], record["map"], record["overlay"]) == (None, None, None)


# ---- what a workdir holds ----


def test_needs_no_data_set(run, images, monkeypatch):
  def refuse(*_, **__):
    raise AssertionError("the data set was loaded")

  monkeypatch.setattr("saol_jax.experiment.load_source", refuse)
  assert load(run.folder)(images[0])[0].confidence > 0


def test_model_json_comes_back(run):
  card = read_model_json(run.folder)
  info = run.experiment.info
  count = len(run.experiment.train)
  assert dataclasses.astuple(card) == (info.class_names, info.mean, info.std, (32, 32), count)


def test_a_damaged_checkpoint_is_passed_over(tmp_path, images):
  write_run(tmp_path, steps=(3, 5))
  assert load(tmp_path).step == 5
  for path in (tmp_path / "checkpoints" / "5").rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  assert load(tmp_path).step == 3
  assert (tmp_path / "checkpoints" / "5").exists()  # looking changes nothing


def test_the_best_checkpoint_can_be_asked_for(tmp_path):
  write_run(tmp_path, steps=(3, 5))
  with pytest.raises(UserError, match="no evaluated checkpoint"):
    load(tmp_path, checkpoint="best")
  scores = [{"step": step, "eval/ema_saol_top1": score} for step, score in ((3, 0.9), (5, 0.8))]
  (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in scores))
  assert load(tmp_path, checkpoint="best").step == 3


def test_the_program_does_not_grow_with_the_number_of_classes_that_are_named(run):
  """The network is in it twice, which the compiler merges; once per class, it took minutes."""

  def convolutions(top_k: int) -> int:
    predictor = load(run.folder, top_k=top_k)
    images = np.zeros((predictor.batch_size, 32, 32, 3), np.uint8)
    traced = predictor._forward.trace(predictor._variables, images)
    return str(traced.jaxpr).count("conv_general_dilated")

  assert convolutions(1) == convolutions(3) > 0


def test_looking_warns_of_nothing(run, caplog):
  load(run.folder)
  assert not [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def _without(name):
  return lambda folder: (folder / name).unlink()


def _damaged(name, text):
  return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
  ("harm", "message"),
  [
    (shutil.rmtree, "no config.json.*--mode=train"),
    (_without("config.json"), "no config.json"),
    (_damaged("config.json", "{"), "config.json is not readable"),
    (_damaged("config.json", "null"), "config.json is not readable"),
    (_damaged("config.json", '{"model": []}'), "config.json is not readable"),
    (_without("model.json"), "no model.json.*training command again"),
    (_damaged("model.json", '{"class_names": []}'), "model.json is damaged"),
    (_damaged("model.json", "[]"), "model.json is damaged"),
    (lambda folder: shutil.rmtree(folder / "checkpoints"), "has no checkpoints; train first"),
  ],
)
def test_what_is_missing_is_named(run, tmp_path, harm, message):
  folder = tmp_path / "copy"
  shutil.copytree(run.folder, folder)
  harm(folder)
  with pytest.raises(UserError, match=message):
    load(folder)


def test_a_file_is_no_run(run):
  with pytest.raises(UserError, match=r"model.json is a file; expected a folder"):
    load(run.folder / "model.json")


@pytest.mark.parametrize(
  ("options", "message"),
  [({"top_k": 0}, "top_k=0"), ({"batch_size": 0}, "batch_size=0"), ({"dtype": "int8"}, "int8")],
)
def test_bad_options_are_named(run, options, message):
  with pytest.raises(UserError, match=message):
    load(run.folder, **options)


# ---- image files ----


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


def _tree(root, names):
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).touch()


def test_what_is_found(tmp_path):
  _tree(tmp_path, ["b.png", "a/x.JPG", "a/c/y.png", "a/notes.txt", ".hidden/z.png", "out/o.png"])
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


def test_a_name_like_a_pattern_is_a_file(tmp_path):
  _tree(tmp_path, ["a[1].png", "a1.png"])
  (found,) = find_images(tmp_path / "a[1].png", leave_out=tmp_path / "out")
  assert found.path.name == "a[1].png"


@pytest.mark.parametrize("images", ["nothing", "nothing/*.png", "."])
def test_no_image_is_a_mistake(tmp_path, images):
  with pytest.raises(UserError, match="has no image: expected"):
    find_images(tmp_path / images, leave_out=tmp_path / "out")


def test_names_cannot_play_with_the_terminal():
  assert printable("a\x1b[31m\n\udcff é") == "a\\x1b[31m\\n\\udcff é"


# ---- the command ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run, photo):
  """12 labelled digits, one that is not, a hostile name, names of odd bytes, two broken files."""
  root = tmp_path_factory.mktemp("images")
  source = run.experiment.source("test")
  for i in range(12):
    path = root / str(source.labels[i]) / f"{i}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(source.images[i]).save(path)
  Image.fromarray(photo).save(root / "photo.jpg")
  Image.fromarray(photo).save(root / _HOSTILE)
  shutil.copy(root / "photo.jpg", os.fsencode(root) + b"/bytes\xff.jpg")
  (root / "cut.png").write_bytes((root / "photo.jpg").read_bytes()[:300])
  (root / "empty.jpg").touch()
  return root


@pytest.fixture(scope="module")
def predicted(run, folder, tmp_path_factory):
  output = tmp_path_factory.mktemp("output") / "new" / "folder"
  code = predict_command(run.folder, folder, output=output, top_k=3, batch_size=8)
  lines = (output / "predictions.jsonl").read_text().splitlines()
  return SimpleNamespace(code=code, output=output, records=[json.loads(line) for line in lines])


def test_command_writes_what_the_predictor_says(run, folder, predictor, predicted):
  assert predicted.code == SOME_SKIPPED == 4
  assert len(predicted.records) == 15
  paths = [record["file"] for record in predicted.records]
  assert str(folder / "photo.jpg") in paths
  for record, prediction in zip(predicted.records, predictor(paths), strict=True):
    assert [entry["name"] for entry in record["top"]] == list(prediction.names)
    found = [entry["probability"] for entry in record["top"]]
    np.testing.assert_allclose(found, prediction.probabilities, atol=1e-6)
    assert record["confidence"] == found[0]
    assert record["box"] == prediction.box.tolist()
    assert (record["height"], record["width"]) == prediction.size
    assert record["map"] == predictor_module.BOX_MAP


def test_labels_come_from_folders_named_like_classes(run, predicted):
  truth = {os.path.basename(r["file"]): r["true"] for r in predicted.records}
  labels = run.experiment.source("test").labels
  assert {name: truth[name] for name in (f"{i}.png" for i in range(12))} == {
    f"{i}.png": str(labels[i]) for i in range(12)
  }
  assert truth["photo.jpg"] is None


def test_labels_come_from_folders_in_whatever_unicode_form():
  names = ["\u00c4pfel", "A\u0308rger", "twice", "twice"]
  composed = ["\u00c4pfel", "\u00c4rger"]
  assert predict._unique_labels(tuple(names)) == dict(zip(composed, (0, 1), strict=True))


def test_csv_says_the_same(predicted):
  path = predicted.output / "predictions.csv"
  with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == len(predicted.records)
  for row, record in zip(rows, predicted.records, strict=True):
    assert row["file"] == record["file"]
    assert [row[f"label_{k}"] for k in (1, 2, 3)] == [entry["name"] for entry in record["top"]]
    assert float(row["probability_2"]) == record["top"][1]["probability"]
    box = [int(row[name]) for name in ("y_min", "x_min", "y_max", "x_max")]
    assert box == record["box"]
    assert row["true"] == (record["true"] or "")
    assert row["map"] == record["map"]


def test_overlays_stay_in_their_folder(predicted):
  pictures = [record["overlay"] for record in predicted.records]
  assert len(set(pictures)) == 15
  found = {str(p.relative_to(predicted.output)) for p in predicted.output.rglob("*.jpg")}
  assert found == set(pictures)
  everything = {p.name for p in predicted.output.iterdir()}
  assert everything == {"overlays", "predictions.csv", "predictions.jsonl", "report.html"}
  by_file = {r["file"]: r["overlay"] for r in predicted.records}
  photo = next(value for key, value in by_file.items() if key.endswith("photo.jpg"))
  with Image.open(predicted.output / photo) as strip:
    width, height = strip.size
  assert height == 2 * 60  # shown at twice its size: three panels of 200 pixels, two gaps
  assert width == 3 * 200 + 8


def test_a_second_call_replaces_the_first(run, folder, tmp_path, images):
  output = folder / "predictions"  # inside the searched folder
  try:
    predict_command(run.folder, folder, output=output, top_k=3, batch_size=8)
    (output / "overlays" / "mine.jpg").touch()
    code = predict_command(run.folder, folder / "*" / "1.png", output=output, batch_size=8)
    assert code == 0
    assert len(list((output / "overlays").glob("0*.jpg"))) == 1
    assert (output / "overlays" / "mine.jpg").exists()
    assert predict_command(run.folder, folder, output=output, batch_size=8) == SOME_SKIPPED
    assert len((output / "predictions.jsonl").read_text().splitlines()) == 15
  finally:
    shutil.rmtree(output)


def test_images_may_lie_below_the_output(run, folder, tmp_path):
  images = tmp_path / "photos"
  images.mkdir()
  shutil.copy(folder / "photo.jpg", images)
  for _ in range(2):  # the second time the first one's pictures are there
    assert predict_command(run.folder, tmp_path, output=tmp_path, batch_size=8) == 0
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 1


def _contents(folder):
  return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_call_that_fails_leaves_the_results_of_the_one_before(run, folder, tmp_path, monkeypatch):
  predict_command(run.folder, folder, output=tmp_path, top_k=3, batch_size=8)
  before = _contents(tmp_path)
  assert len(before) == 15 + 3
  with pytest.raises(UserError, match="none of the 1 files"):
    predict_command(run.folder, folder / "empty.jpg", output=tmp_path, batch_size=8)
  assert _contents(tmp_path) == before

  def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr("saol_jax.predict.Gallery.add", full)
  with pytest.raises(UserError, match=r"cannot be written: No space.*free space"):
    predict_command(run.folder, folder / "photo.jpg", output=tmp_path, batch_size=8)
  assert _contents(tmp_path) == before


def test_pictures_that_are_not_ours_stay(run, folder, tmp_path):
  mine = ["overlays/000000_photo.jpg", "overlays/000123_mine.jpg", "kept.jpg"]
  _tree(tmp_path, mine)
  hostile = {"overlay": "overlays/../kept.jpg"}
  (tmp_path / "predictions.jsonl").write_text(json.dumps(hostile) + "\n")
  for _ in range(2):
    predict_command(run.folder, folder / "photo.jpg", output=tmp_path, batch_size=8)
    record = json.loads((tmp_path / "predictions.jsonl").read_text())
    assert record["overlay"] == "overlays/000000_photo_.jpg"
    assert (tmp_path / record["overlay"]).stat().st_size
    assert not any((tmp_path / name).stat().st_size for name in mine)
    assert len(_contents(tmp_path / "overlays")) == 3


def test_the_user_is_told(run, folder, tmp_path, caplog, monkeypatch):
  monkeypatch.setattr("saol_jax.progress._SECONDS_BETWEEN_LINES", -1.0)
  monkeypatch.setattr(logging.getLogger("saol_jax"), "propagate", True)
  with caplog.at_level(logging.INFO, "saol_jax"):
    predict_command(run.folder, folder, output=tmp_path, batch_size=4)
  text = caplog.text
  assert f"{folder / 'cut.png'} cannot be read as an image" in text
  assert f"{folder / 'empty.jpg'} cannot be read as an image" in text
  assert "predicted: 8 of 17 images (47 %), " in text
  assert " images/s, 0:00:0" in text
  assert "Predicted 15 images." in text
  assert "of 12 with a known label" in text
  assert "skipped      2 files" in text
  assert str(tmp_path / "report.html") in text


def test_nothing_readable_is_a_mistake(run, folder, tmp_path):
  with pytest.raises(UserError, match=r"none of the 1 files.*empty.jpg cannot be read"):
    predict_command(run.folder, folder / "empty.jpg", output=tmp_path)


def test_an_output_that_is_a_file_is_a_mistake(run, folder, tmp_path):
  (tmp_path / "taken").touch()
  with pytest.raises(UserError, match=r"--output=.*taken cannot be written"):
    predict_command(run.folder, folder, output=tmp_path / "taken")


def test_many_bad_files_are_counted(run, photo, tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger("saol_jax"), "propagate", True)
  folder = tmp_path / "images"
  _tree(folder, [f"{i:02d}.png" for i in range(25)])
  Image.fromarray(photo).save(folder / "good.png")
  with caplog.at_level(logging.INFO, "saol_jax"):
    assert predict_command(run.folder, folder, output=tmp_path / "out", batch_size=8) == 4
  assert caplog.text.count("cannot be read as an image") == 20
  assert "skipped      25 files" in caplog.text
