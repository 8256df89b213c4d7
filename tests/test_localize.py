"""The localize mode on a small run, against a recomputation with other means."""

import json
import logging
import types

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from saol_jax import evaluate, localize, wsol
from saol_jax.data import ArraySource
from saol_jax.data.augment import normalise
from saol_jax.errors import UserError
from saol_jax.experiment import Experiment
from saol_jax.localization_plot import draw_box_accuracy
from saol_jax.localize import localize_workdir
from tests.support import tiny_config, write_run
from tests.test_wsol import average_precision, spelled_out

MAPS = ("class", "cam", "gap_gradcam_3")
SIZES = {"train": 50, "test": 27}


@pytest.fixture(scope="module", autouse=True)
def small_sources():
  """The first few examples of each split, with boxes that an untrained map hits now and then."""
  whole = Experiment.source
  rng = np.random.default_rng(4)
  boxes = np.concatenate([rng.integers(0, 12, (50, 2)), rng.integers(18, 33, (50, 2))], 1)

  def part(self, split):
    source, n = whole(self, split), SIZES[split]
    first = (source.images[:n], source.labels[:n], source.info, boxes[:n].astype("int32"))
    return ArraySource(*first, source.object_masks[:n])

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Experiment, "source", part)
    yield


FIELDS = {"num_train_steps": 4, "eval_every_steps": 4, "eval_batch_size": 12}
FIELDS |= {"loss__mask_weight": 0.0, "loss__consistency_weight": 0.0}  # quicker to compile
FIELDS |= {"localize__maps": ", ".join(MAPS), "localize__num_threshold_images": 10}


def config(**changes):
  return tiny_config(**FIELDS | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  write_run(workdir, steps=(4,), **FIELDS)
  results = localize_workdir(config(), workdir)
  return workdir, results


@nnx.jit
def forward(module, images):
  stages = module.backbone(images, train=False)
  return stages, module.classify(stages, train=False)


def recomputed(workdir, split, places):
  """Hits by box by map, whether each label is right, PxAP by map; all from the checkpoint."""
  experiment = Experiment(localize.resolve(config()))
  state = evaluate.restore_wanted(experiment, workdir)
  source = experiment.source(split)
  x = normalise(source.images[places], experiment.info.mean, experiment.info.std)
  module = experiment.model.merge(state.ema)
  stages, output = forward(module, x)
  labels, each = source.labels[places], np.arange(len(places))
  kernel = np.asarray(module.gap.linear.kernel[...])
  cam = np.einsum("bhwc,cb->bhw", np.asarray(stages[-1]), kernel[:, labels])
  maps = {
    "class": np.exp(np.asarray(output.spatial.spatial_log_probs)[each, :, :, labels]),
    "cam": cam,
    "gap_gradcam_3": np.maximum(cam, 0),
  }
  hits, px_ap = {}, {}
  for name, values in maps.items():
    large = np.asarray(jax.image.resize(values, (len(places), 32, 32), "bilinear"))
    hits[name], scaled = [], []
    for m, (y0, x0, y1, x1) in zip(large, source.boxes[places], strict=True):
      m = (m - m.min()) / (m.max() - m.min()) if np.ptp(m) > 0 else np.zeros_like(m)
      truth = [[x0, y0, x1, y1]]
      hits[name].append(spelled_out(m.astype(np.float32), truth, every=False, plus=0) >= 0.5)
      scaled.append(m)
    px_ap[name] = average_precision(np.array(scaled), source.object_masks[places])
  order = {
    "class": np.argsort(-np.asarray(output.spatial.log_probs), 1, kind="stable"),
    "cam": np.argsort(-np.asarray(output.gap_logits), 1, kind="stable"),
  }
  order["gap_gradcam_3"] = order["cam"]
  label_hits = {name: rows == labels[:, None] for name, rows in order.items()}
  return {name: np.array(rows) for name, rows in hits.items()}, label_hits, px_ap


def test_scores_are_those_of_a_recomputation(finished):
  workdir, results = finished
  chosen, _, _ = recomputed(workdir, "train", np.linspace(0, 49, 10).round().astype(int))
  found, labels, px_ap = recomputed(workdir, "test", np.arange(27))
  # A pixel whose byte is rounded the other way moves a box now and then: one image at most.
  slack = 1.01 / 27
  for name in MAPS:
    threshold = results[f"test/{name}_threshold"]
    reached = chosen[name].mean(0)[round(1000 * threshold)]
    assert reached >= chosen[name].mean(0).max() - 1.01 / 10, name
    hit = found[name][:, round(1000 * threshold)]
    assert results[f"test/{name}_gt_known"] == pytest.approx(hit.mean(), abs=slack), name
    top1 = (hit & labels[name][:, 0]).mean()
    assert results[f"test/{name}_top1_loc"] == pytest.approx(top1, abs=slack), name
    top5 = (hit & labels[name][:, :5].any(1)).mean()
    assert results[f"test/{name}_top5_loc"] == pytest.approx(top5, abs=slack), name
    assert results[f"test/{name}_px_ap"] == pytest.approx(px_ap[name], abs=1e-3), name
  known = [results[f"test/{name}_gt_known"] for name in MAPS]
  assert min(known) > 0.1  # an empty result would agree with anything
  top5 = [results[f"test/{name}_top5_loc"] for name in MAPS]
  assert top5 != known


def test_file_holds_the_results_and_the_curves(finished):
  workdir, results = finished
  saved = json.loads((workdir / "localization_test_latest.json").read_text())
  assert {k: saved[k] for k in ("step", "split", "num_images")} == {
    "step": 4,
    "split": "test",
    "num_images": 27,
  }
  assert (saved["threshold_split"], saved["num_threshold_images"]) == ("train", 10)
  flat = {f"test/{m}_{s}": v for m, scores in saved["maps"].items() for s, v in scores.items()}
  assert flat == results
  assert tuple(saved["maps"]) == MAPS
  for name in MAPS:
    curve = saved["box_accuracy"][name]
    assert len(curve) == len(saved["thresholds"]) == 1000
    at = saved["thresholds"].index(saved["maps"][name]["threshold"])
    assert curve[at] == pytest.approx(saved["maps"][name]["gt_known"], abs=1e-6)
    assert 0 < max(curve) <= saved["maps"][name]["box_acc_50"]


def test_plot_shows_every_curve(finished, tmp_path):
  workdir, _ = finished
  assert Image.open(workdir / "localization_test_latest.png").size == (1100, 600)

  def inked(curves):
    path = tmp_path / "plot.png"
    draw_box_accuracy(path, curves, dict.fromkeys(curves, 0.5), "$ title")
    pixels = np.asarray(Image.open(path)).astype(int)
    orange = np.abs(pixels - (0xE1, 0x6F, 0x24)).sum(-1) < 20
    return pixels, orange[:, :700]

  curve = 1 - wsol.THRESHOLDS
  pixels, orange = inked({"class": curve})
  assert not orange.any()
  both, orange = inked({"class": curve, "cam": curve / 2})
  assert orange.sum() > 500
  assert (both != pixels).any()


def test_thresholds_come_from_other_data_than_the_report(finished):
  workdir, _ = finished
  with pytest.raises(UserError, match="reported split, 'test'"):
    localize_workdir(config(localize__threshold_split="test"), workdir)
  with pytest.raises(UserError, match="reported split, 'train'"):
    localize_workdir(config(localize__split="train"), workdir)


def test_mistakes_are_one_message(finished, tmp_path, monkeypatch):
  workdir, _ = finished
  with pytest.raises(UserError, match="no map 'heatmap'; expected one of attention, "):
    localize_workdir(config(localize__maps="class,heatmap"), workdir)
  with pytest.raises(UserError, match="has no checkpoints"):
    localize_workdir(config(), tmp_path)
  with pytest.raises(UserError, match=r"model\.width: 8 there, 9 now"):
    localize_workdir(config(model__width=9), workdir)
  boxed = Experiment.source

  def without_boxes(self, split):
    source = boxed(self, split)
    return ArraySource(source.images, source.labels, source.info)

  monkeypatch.setattr(Experiment, "source", without_boxes)
  with pytest.raises(UserError, match="'digit_scenes' has no boxes"):
    localize_workdir(config(), workdir)


def test_a_folder_without_boxes_is_told_what_its_file_lacks(tmp_path):
  data = types.SimpleNamespace(name="folder", data_dir=str(tmp_path))
  experiment = types.SimpleNamespace(
    config=types.SimpleNamespace(data=data), source=lambda split: types.SimpleNamespace(boxed=[])
  )
  file = tmp_path / "boxes.csv"
  with pytest.raises(UserError, match=f"no boxes of split 'test', .*{file} does not exist"):
    localize._with_boxes(experiment, "test")
  file.write_text("path,x_min,y_min,x_max,y_max\n")
  with pytest.raises(UserError, match=f"{file} has no line of an image of that split; .*'path,x_m"):
    localize._with_boxes(experiment, "test")


def with_boxes_for(monkeypatch, most):
  """Only so many images of each split keep their box, which shows when they are read."""
  whole = ArraySource.__getitem__

  def partly(self, indices):
    batch = whole(self, indices)
    return batch | {"box": np.where(indices[:, None] < most, batch["box"], 0)}

  monkeypatch.setattr(ArraySource, "__getitem__", partly)


def test_images_without_a_box_are_left_out(finished, monkeypatch, caplog):
  workdir, _ = finished
  experiment = Experiment(localize.resolve(config()))
  variables = evaluate.restore_wanted(experiment, workdir).ema

  def scores(places):
    source = experiment.source("test")
    return localize.map_scores(experiment, variables, source, MAPS, places, "test")[0]["cam"]

  expected = scores(np.arange(20))
  with_boxes_for(monkeypatch, 20)
  with caplog.at_level("INFO"):
    found = scores(np.arange(27))
  assert "test: 7 of 27 images have no box: left out" in caplog.text
  assert found.count == 20
  assert found.best() == expected.best()
  with_boxes_for(monkeypatch, 0)
  with pytest.raises(UserError, match="None of the 27 test images has a box"):
    scores(np.arange(27))


def test_default_maps_are_all_of_one_pass_and_the_last_stages_gradients():
  def default(**changes):
    return localize._default_maps(Experiment(localize.resolve(config(**changes))))

  both = default()
  assert {"attention", "class", "product", "joint", "cam", "gap_gradcam++_3"} < set(both)
  assert not [name for name in both if name.endswith(("_1", "_2"))]
  assert default(model__head="gap") == ("cam", "gap_gradcam_3", "gap_gradcam++_3")
  alone = default(loss__distillation_weight=0.0)  # GAP-FC is untrained
  assert "cam" not in alone
  assert "joint" not in alone
  assert "saol_gradcam_3" in alone


def test_progress_names_the_split_and_the_share(finished, monkeypatch, caplog):
  workdir, _ = finished
  monkeypatch.setattr("saol_jax.progress._SECONDS_BETWEEN_LINES", 0.0)
  with caplog.at_level(logging.INFO, "saol_jax"):
    localize_workdir(config(localize__maps="class"), workdir)
  for line in ("  train, localised: 10 of 10 images (100 %)", "  test, localised: 27 of 27 images"):
    assert any(message.startswith(line) for message in caplog.messages)


def test_table_lines_up_and_stars_the_best():
  scores = dict.fromkeys(localize._COLUMNS.values(), 0.5)
  text = localize.table(
    {"a": {"threshold": 0.25, **scores}, "longer": {"threshold": 0.5, **scores, "gt_known": 0.871}}
  )
  header, first, second = text.splitlines()
  assert first.startswith("a           0.250")
  assert "87.10*" in second
  assert "50.00*" in first
  end = header.index("GT-known") + len("GT-known")
  assert first[:end].endswith("50.00")
  assert second[:end].endswith("87.10")
