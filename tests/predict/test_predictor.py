"""The predictor: what it says of images, against the model called directly."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from saol_jax import export_card
from saol_jax import predictor as predictor_module
from saol_jax.data import Geometry
from saol_jax.data.decode import Decoder
from saol_jax.data.folder import FolderRecords
from saol_jax.localization import largest_box, normalise, resize_maps
from saol_jax.model_card import read_model_json
from saol_jax.predict import predict_command
from saol_jax.prediction_files import overlay_strip
from saol_jax.predictor import Predictor, load
from tests.support import write_run


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


def see_a_blob(predictor, monkeypatch) -> np.ndarray:
  """Lets it find the first class in rows 2 to 3 and columns 4 to 7 of 8 x 8 cells: that map."""
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
  return blob[0, 0]


@pytest.mark.parametrize("size", [(80, 40), (40, 80), (1600, 800)])
def test_box_of_a_known_map(predictor, monkeypatch, size):
  see_a_blob(predictor, monkeypatch)
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
  blob = see_a_blob(cropping, monkeypatch)
  (prediction,) = cropping(np.zeros((64, 160, 3), np.uint8))
  assert prediction.window == (16, 64, 48, 96)  # 32 x 32 in the middle: a cell is 4 pixels
  np.testing.assert_array_equal(prediction.box, [16 + 8, 64 + 16, 16 + 16, 64 + 32])
  np.testing.assert_array_equal(prediction.boxes[1], np.zeros(4))
  attention = prediction.attention.copy()
  assert attention.shape == (64, 160)
  np.testing.assert_array_equal(attention[16:48, 64:96], resize_maps(blob, (32, 32)))
  attention[16:48, 64:96] = 0
  assert not attention.any()
  assert prediction.class_maps.shape == (3, 64, 160)
  # In the pictures of --mode=predict likewise: bright where it looked, dark around.
  strip = overlay_strip(Image.new("RGB", (160, 64), "white"), prediction)
  panel = np.asarray(strip)[:, 160 + 4 : 2 * 160 + 4]
  assert (panel[:, :63] == 85).all()
  assert (panel[24:32, 82:94] > 85).any(-1).all()


@pytest.mark.parametrize("size", [(512, 1), (1, 512)])
def test_a_thin_image_can_be_seen(predictor, size):
  (prediction,) = predictor(np.zeros((6 * size[1], 6 * size[0], 3), np.uint8))
  strip = overlay_strip(Image.new("RGB", size, "white"), prediction)
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
