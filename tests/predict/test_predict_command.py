"""--mode=predict: what it writes, and what it leaves alone."""

import csv
import errno
import json
import logging
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from saol_jax import prediction_files
from saol_jax import predictor as predictor_module
from saol_jax.errors import UserError
from saol_jax.predict import SOME_SKIPPED, predict_command
from tests.support import empty_files

_HOSTILE = "<script>alert(1)<_script>'\"&\u2028=1+1.png"


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
  assert prediction_files._unique_labels(tuple(names)) == dict(zip(composed, (0, 1), strict=True))


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


def test_pictures_keep_the_letters_of_their_names_and_are_replaced_with_a_word(
  run, photo, tmp_path, caplog, monkeypatch
):
  monkeypatch.setattr(logging.getLogger("saol_jax"), "propagate", True)
  (tmp_path / "images").mkdir()
  Image.fromarray(photo).save(tmp_path / "images" / "例 é<b>.png")
  for said in (False, True):
    caplog.clear()
    with caplog.at_level(logging.INFO, "saol_jax"):
      predict_command(run.folder, tmp_path / "images", output=tmp_path / "out", batch_size=8)
    assert ("replaced     the predictions that were there" in caplog.text) == said
    assert "Predicted 1 image." in caplog.text
    assert [path.name for path in (tmp_path / "out" / "overlays").iterdir()] == [
      "000000_例_é_b_.jpg"
    ]
  assert "<title>Predictions of images</title>" in (tmp_path / "out" / "report.html").read_text()


def _contents(folder):
  return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_call_that_fails_leaves_the_results_of_the_one_before(run, folder, tmp_path, monkeypatch):
  predict_command(run.folder, folder, output=tmp_path, top_k=3, batch_size=8)
  before = _contents(tmp_path)
  assert len(before) == 15 + 3
  with pytest.raises(UserError, match="none of 1 file is an image"):
    predict_command(run.folder, folder / "empty.jpg", output=tmp_path, batch_size=8)
  assert _contents(tmp_path) == before

  def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr("saol_jax.prediction_files.Gallery.add", full)
  with pytest.raises(UserError, match=r"cannot be written: No space.*free space"):
    predict_command(run.folder, folder / "photo.jpg", output=tmp_path, batch_size=8)
  assert _contents(tmp_path) == before


def test_pictures_that_are_not_ours_stay(run, folder, tmp_path):
  mine = ["overlays/000000_photo.jpg", "overlays/000123_mine.jpg", "kept.jpg"]
  empty_files(tmp_path, mine)
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
  with pytest.raises(UserError, match=r"none of 1 file is an image.*empty.jpg cannot be read"):
    predict_command(run.folder, folder / "empty.jpg", output=tmp_path)


def test_an_output_that_is_a_file_is_a_mistake(run, folder, tmp_path):
  (tmp_path / "taken").touch()
  with pytest.raises(UserError, match=r"--output=.*taken cannot be written"):
    predict_command(run.folder, folder, output=tmp_path / "taken")


def test_many_bad_files_are_counted(run, photo, tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger("saol_jax"), "propagate", True)
  folder = tmp_path / "images"
  empty_files(folder, [f"{i:02d}.png" for i in range(25)])
  Image.fromarray(photo).save(folder / "good.png")
  with caplog.at_level(logging.INFO, "saol_jax"):
    assert predict_command(run.folder, folder, output=tmp_path / "out", batch_size=8) == 4
  assert caplog.text.count("cannot be read as an image") == 20
  assert "skipped      25 files" in caplog.text
