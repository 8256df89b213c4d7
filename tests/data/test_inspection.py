"""--mode=inspect on a folder with every kind of bad file."""

import json

import numpy as np
import pytest
from PIL import Image

from configs.folder_saol import get_config
from saol_jax import inspect_data
from saol_jax.data import ArraySource, DatasetInfo, Geometry
from saol_jax.data.inspection import inspect_split
from saol_jax.data.loader import Loader
from saol_jax.errors import UserError
from saol_jax.inspect_data import describe
from saol_jax.training_picture import draw_training_images
from tests.data.bad_files import BROKEN, GOOD, ODD, SIZE, load


@pytest.fixture(scope="module")
def inspected(folder, tmp_path_factory):
  """--mode=inspect on the folder, a config of it, and what was drawn."""
  workdir = tmp_path_factory.mktemp("inspected")
  config = get_config(f"resnet8,{SIZE}")
  config.batch_size, config.data.data_dir, config.data.max_bad_fraction = 20, str(folder), 0.5
  config.loss.label_smoothing = 0.0
  drawn = []

  def draw(path, *arrays, **facts):
    drawn.append((arrays, facts))
    draw_training_images(path, *arrays, **facts)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(inspect_data, "draw_training_images", draw)
    results = inspect_data.inspect_workdir(config, workdir)
  return workdir, config, results, drawn[0]


def test_inspection_counts_everything_and_names_what_is_wrong(inspected):
  workdir, _, results, _ = inspected
  train = results["train"]
  assert json.loads((workdir / "inspection.json").read_text()) == results
  assert results.keys() == {"train", "test"}
  assert (train["images"], results["test"]["images"]) == (len(ODD) + len(BROKEN) + len(GOOD), 5)
  assert train["per_class"] == {"odd": len(ODD), "worse": len(GOOD)}
  assert train["broken"].keys() == {f"train/worse/{name}" for name in BROKEN}
  for name, (_, reason) in BROKEN.items():
    assert reason in train["broken"][f"train/worse/{name}"]
  assert train["mislabelled"] == {
    "train/odd/png_named.jpg": "PNG",
    "train/odd/gif_named.jpg": "GIF",
  }
  # The 90 x 60 photograph lies on its side in one file, upright 60 x 90; the others by hand.
  assert train["height"] == {"least": 1, "median": 60, "most": 20_000}
  assert train["width"] == {"least": 1, "median": 90, "most": 20_000}
  kinds = {"JPEG": 5 + 1 + len(GOOD), "PNG": 6, "GIF": 2, "BMP": 2, "WEBP": 2, "TIFF": 1}
  kinds |= {"AVIF": 2, "HEIF": 1}
  assert train["kinds"] == kinds
  assert train["modes"] == {"RGB": 12 + len(GOOD), "P": 4, "RGBA": 2, "I;16": 2, "L": 1, "CMYK": 1}
  assert results["test"]["broken"] == {}


def test_inspection_gives_the_mean_and_deviation_of_the_pixels(inspected, decoded):
  _, _, results, _ = inspected
  _, _, batch = decoded
  pixels = batch["image"][~batch["broken"]].reshape(-1, 3) / 255
  np.testing.assert_allclose(results["train"]["mean"], pixels.mean(0), atol=1e-4)
  np.testing.assert_allclose(results["train"]["std"], pixels.std(0), atol=1e-4)


def test_the_table_names_what_the_file_holds(inspected, caplog):
  _, _, results, _ = inspected
  text = describe("train", results["train"])
  assert "per class   3 (worse) to 22 (odd)" in text
  assert "wrong extension: 2\n    train/odd/gif_named.jpg is GIF" in text
  assert f"broken: {len(BROKEN)}\n" in text
  many = results["train"] | {"broken": {f"{n}.jpg": "empty" for n in range(12)}}
  assert "broken: 12\n" in describe("train", many)
  assert "and 2 more, see inspection.json" in describe("train", many)
  assert "per class   5 each" in describe("test", {**results["test"], "per_class": {"worse": 5}})


def test_the_picture_shows_what_the_first_step_gets(inspected, folder):
  workdir, config, _, ((images, mixed), facts) = inspected
  source = load(folder, geometry=Geometry(SIZE))
  loader = Loader(source, 20, config.seed)
  labels = loader[0]["label"]
  boxes, targets = facts["boxes"], facts["targets"]
  assert (boxes[:, 2] > boxes[:, 0]).sum() > 10
  for i, (box, target) in enumerate(zip(boxes, targets, strict=True)):
    inside = np.zeros((SIZE, SIZE), bool)
    inside[box[0] : box[2], box[1] : box[3]] = True
    np.testing.assert_array_equal(mixed[i][~inside], images[i][~inside])
    np.testing.assert_array_equal(mixed[i][inside], images[i ^ 1][inside])
    expected = np.zeros(2)
    expected[labels[i]] += 1 - inside.mean()
    expected[labels[i ^ 1]] += inside.mean()
    np.testing.assert_allclose(target, expected, atol=1e-5)
  # Each is its example, mirrored or not; this recipe changes no colours.
  for image, original in zip(images, loader[0]["image"], strict=True):
    same = [np.abs(image.astype(int) - turned).max() for turned in (original, original[:, ::-1])]
    assert min(same) <= 1
  with Image.open(workdir / "inspection.png") as picture:
    pixels = np.asarray(picture)
  for shade in (40, 245):  # of the masks
    assert (pixels == shade).all(-1).sum() > 1000


def test_a_label_that_is_no_class_is_named(folder, monkeypatch):
  source = load(folder)
  monkeypatch.setattr(source.records, "labels", np.full(len(source.records), -1, np.int32))
  with pytest.raises(
    UserError, match=r"has the label -1, expected 0 to .*--config.data.test_split"
  ):
    inspect_split(source, lambda count: None)


def test_data_sets_in_memory_are_inspected_too():
  images = np.random.default_rng(0).integers(0, 256, (300, 4, 6, 3), dtype=np.uint8)
  info = DatasetInfo(("a", "b"), (0.5,) * 3, (0.5,) * 3)
  source = ArraySource(images, (np.arange(300) % 3 == 0).astype(np.int32), info)
  counts = []
  result = inspect_split(source, counts.append)
  assert sum(counts) == 300
  assert result["per_class"] == {"a": 200, "b": 100}
  assert result["height"] == {"least": 4, "median": 4, "most": 4}
  np.testing.assert_allclose(result["std"], (images.reshape(-1, 3) / 255).std(0), atol=1e-4)
  assert "width       6\n" in describe("train", result)
