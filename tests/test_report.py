import csv
import sys
import threading

import jax
import numpy as np
import pytest
from PIL import Image

from saol_jax import curves, localization, report

# The layout of predictions.png, written down a second time.
LEFT, TOP, HEADING, GAP, COLUMN_GAP, ROW_GAP = 24, 76, 40, 4, 32, 16


def read(path):
  with Image.open(path) as image:
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def examples(count=3, size=(32, 32), grid=(8, 8), seed=0):
  """Noise images; attention and class map peak in the cell (2, 5); everything predicted right."""
  rng = np.random.default_rng(seed)
  maps = np.full((count, *grid), 0.001, np.float32)
  maps[:, 2, 5] = 0.9
  labels = rng.integers(0, 4, count)
  return {
    "images": rng.integers(0, 256, (count, *size, 3)).astype(np.uint8),
    "labels": labels,
    "predicted": labels.copy(),
    "probabilities": rng.random(count),
    "class_names": ("cat", "dog", "pay-phone", "black and gold garden spider"),
    "attention": maps,
    "class_maps": maps,
    "boxes": np.zeros((count, 4), np.int32),
  }


def panels(page, size, index=0, columns=1):
  """The image, attention and class-map panels of one example."""
  row, column = divmod(index, columns)
  y = TOP + HEADING + row * (HEADING + size[0] + ROW_GAP)
  x = LEFT + column * (3 * size[1] + 2 * GAP + COLUMN_GAP)
  steps = [x + place * (size[1] + GAP) for place in range(3)]
  return [page[y : y + size[0], left : left + size[1]].astype(int) for left in steps]


def heading(page, width=300):
  return page[TOP : TOP + HEADING - 2, LEFT : LEFT + width].astype(int)


@pytest.mark.parametrize(
  ("count", "size", "panel", "columns"),
  [
    (12, (64, 64), (128, 128), 3),
    (16, (32, 32), (128, 128), 4),
    (1, (28, 28), (140, 140), 1),
    (4, (96, 160), (112, 186), 1),
    (2, (224, 224), (144, 144), 1),
  ],
)
def test_predictions_have_the_expected_size_and_no_blank_panel(
  tmp_path, count, size, panel, columns
):
  path = tmp_path / "predictions.png"
  report.draw_predictions(path, **examples(count, size))
  page = read(path)
  rows = -(-count // columns)
  width = 2 * LEFT + columns * (3 * panel[1] + 2 * GAP) + (columns - 1) * COLUMN_GAP
  height = TOP + rows * (HEADING + panel[0] + ROW_GAP) - ROW_GAP + 24
  assert page.shape == (height, max(width, 640), 3)
  for index in range(count):
    for shown in panels(page, panel, index, columns):
      assert shown.std() > 10, index


def test_small_images_are_enlarged_pixel_by_pixel(tmp_path):
  data = examples(1)
  report.draw_predictions(tmp_path / "p.png", **data)
  shown = panels(read(tmp_path / "p.png"), (128, 128))[0]
  # Six of eight bits are kept.
  expected = data["images"][0].repeat(4, 0).repeat(4, 1).astype(int)
  assert np.abs(shown - expected).max() <= 3


def test_heat_lies_where_the_map_peaks_also_on_grids_that_are_not_square(tmp_path):
  data = examples(1, (48, 96), (3, 6))
  data["images"][:] = 100
  data["class_maps"] = np.zeros((1, 3, 6), np.float32)
  data["class_maps"][0, 0, 1] = 1.0
  report.draw_predictions(tmp_path / "p.png", **data)
  image, attention, class_map = panels(read(tmp_path / "p.png"), (96, 192))
  assert image.std() < 1
  # Cells are 32 pixels: (2, 5) has its centre at (80, 176), (0, 1) at (16, 48). The heat is yellow.
  for panel, (y, x) in ((attention, (80, 176)), (class_map, (16, 48))):
    heat = panel[..., 0] - image[..., 0]
    heat[80:, :80] = 0  # the panel's name
    top = np.argwhere(heat >= heat.max() - 3).mean(0)
    assert np.abs(top - (y, x)).max() < 12
    assert heat.max() > 90
    far = panel[90 - y, 190 - x]
    assert np.ptp(far) < 12  # still grey


def test_constant_and_non_finite_maps_are_drawn_cold(tmp_path):
  data = examples(1)
  data["images"][:] = 200
  data["attention"] = np.full((1, 8, 8), 1 / 64, np.float32)
  data["class_maps"] = np.full((1, 8, 8), np.nan, np.float32)
  report.draw_predictions(tmp_path / "p.png", **data)
  _, attention, class_map = panels(read(tmp_path / "p.png"), (128, 128))
  for panel in (attention[:100], class_map[:100]):
    assert panel.std() < 2
    assert panel.mean() < 150


def test_boxes_are_drawn_at_their_place_and_empty_ones_are_not(tmp_path):
  data = examples(1)
  data["images"][:] = 60
  data["boxes"] = np.array([[4, 8, 20, 30]])
  report.draw_predictions(tmp_path / "p.png", **data)
  shown = panels(read(tmp_path / "p.png"), (128, 128))[0]
  yellow = np.argwhere((shown[..., 0] > 200) & (shown[..., 1] > 170) & (shown[..., 2] < 60))
  # Four pixels a pixel, a dark rim of one, max exclusive.
  assert yellow.min(0).tolist() == [17, 33]
  assert yellow.max(0).tolist() == [78, 118]
  white = (shown > 220).all(-1)
  assert not white.any()  # no true box

  report.draw_predictions(tmp_path / "q.png", **data, true_boxes=np.array([[10, 2, 32, 12]]))
  shown = panels(read(tmp_path / "q.png"), (128, 128))[0]
  white = np.argwhere((shown > 220).all(-1))
  assert np.abs(white.min(0) - [40, 8]).max() <= 4
  assert np.abs(white.max(0) - [127, 47]).max() <= 4


def test_whole_image_box_stays_inside_its_panel(tmp_path):
  data = examples(1)
  data["images"][:] = 60
  report.draw_predictions(tmp_path / "without.png", **data)
  data["boxes"] = np.array([[0, 0, 32, 32]])
  report.draw_predictions(tmp_path / "with.png", **data, true_boxes=np.array([[-5, -5, 90, 90]]))
  changed = read(tmp_path / "with.png") != read(tmp_path / "without.png")
  image = changed[TOP + HEADING : TOP + HEADING + 128, LEFT : LEFT + 128]
  assert image[:5].any(-1).mean() > 0.9
  changed[TOP + HEADING : TOP + HEADING + 128, LEFT : LEFT + 128] = False
  assert not changed[TOP + HEADING :].any()


def test_colour_tells_right_from_wrong(tmp_path):
  data = examples(1)
  report.draw_predictions(tmp_path / "right.png", **data)
  data["predicted"] = (data["labels"] + 1) % 4
  report.draw_predictions(tmp_path / "wrong.png", **data)
  right, wrong = (heading(read(tmp_path / name)) for name in ("right.png", "wrong.png"))
  for shown, more, less in ((right, 1, 0), (wrong, 0, 1)):
    assert (shown[..., more] - shown[..., less] > 60).sum() > 50
    assert not (shown[..., less] - shown[..., more] > 60).any()


@pytest.mark.parametrize(
  "name",
  [
    "$\\frac{",
    "$\\frac{$",
    "$x^2$ $",
    "<b>_^",
    "%s {} \\n",
    "two\nlines\t",
    "犬 🐕 \x00\ufffe\udcff",
    "",
    "W" * 500,
  ],
)
@pytest.mark.filterwarnings("error")
def test_class_names_are_never_markup_and_never_leave_their_room(tmp_path, name):
  data = examples(1)
  data["class_names"] = (name,) * 4
  boxes = np.array([[1, 1, 9, 9]])
  report.draw_predictions(tmp_path / "p.png", **data, true_boxes=boxes, title=name)
  page = read(tmp_path / "p.png")
  assert heading(page).std() > 5
  room = LEFT + 3 * 128 + 2 * GAP
  assert (page[TOP:, room + 1 :] == 255).all()


def test_classes_whose_names_no_font_has_are_told_apart(tmp_path):
  pages = []
  for label in (0, 1):
    drawn = examples(1) | {"labels": [label], "predicted": [label], "probabilities": [0.5]}
    drawn["class_names"] = ("\U0001f9ff\ue000", "\U0001f9ff\ue001")
    report.draw_predictions(tmp_path / f"{label}.png", **drawn)
    pages.append(heading(read(tmp_path / f"{label}.png")))
  assert (pages[0] != pages[1]).any()


def test_long_names_keep_their_probability_and_iou(tmp_path):
  data = examples(1) | {"class_names": ("W" * 500,) * 4}
  boxes = {"boxes": np.array([[0, 0, 8, 8]]), "true_boxes": np.array([[0, 0, 8, 8]])}
  pages = []
  for probability, box in ((0.111, 8), (0.999, 8), (0.999, 4)):
    data["probabilities"] = np.array([probability])
    boxes["boxes"][0, 3] = box
    report.draw_predictions(tmp_path / "p.png", **(data | boxes))
    pages.append(heading(read(tmp_path / "p.png"), 392))
  assert (pages[0][:24] != pages[1][:24]).any()
  assert (pages[1][24:] != pages[2][24:]).any()


def test_predictions_take_device_arrays(tmp_path):
  data = examples(2)
  on_device = {key: value if key == "class_names" else jax.numpy.asarray(value)
               for key, value in data.items()}  # fmt: skip
  report.draw_predictions(tmp_path / "host.png", **data)
  report.draw_predictions(tmp_path / "device.png", **on_device)
  np.testing.assert_array_equal(read(tmp_path / "host.png"), read(tmp_path / "device.png"))


def test_predictions_refuse_nothing_and_unequal_counts(tmp_path):
  data = examples(2)
  with pytest.raises(ValueError, match=r"\[2, 2, 2, 2, 2, 1, 2, 2\]"):
    report.draw_predictions(tmp_path / "p.png", **(data | {"boxes": np.zeros((1, 4))}))
  with pytest.raises(ValueError, match="N > 0"):
    report.draw_predictions(tmp_path / "p.png", **examples(0))
  assert not list(tmp_path.iterdir())


def test_drawing_is_the_same_in_threads_and_leaves_pyplot_alone(tmp_path):
  data, log = examples(2), records()
  paths = [tmp_path / f"{index}.png" for index in range(3)]

  def draw(path):
    report.draw_predictions(path, **data)
    curves.draw_curves(path.with_suffix(".curves.png"), log)

  threads = [threading.Thread(target=draw, args=(path,)) for path in paths]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  for suffix in (".png", ".curves.png"):
    pages = [read(path.with_suffix(suffix)) for path in paths]
    assert all((page == pages[0]).all() for page in pages)
  if "matplotlib.pyplot" in sys.modules:  # some other package may have imported it
    assert not sys.modules["matplotlib.pyplot"].get_fignums()


def test_photographs_make_a_file_of_reasonable_size(tmp_path, data_dir):
  folder = data_dir / "tiny_imagenet_25"
  with (folder / "boxes.csv").open() as file:
    rows = list(csv.DictReader(file))[::700][:16]
  images, boxes = [], []
  for row in rows:
    with Image.open(folder / row["path"]) as image:
      images.append(np.asarray(image.convert("RGB").resize((224, 224))))
    boxes.append([3.5 * float(row[key]) for key in ("y_min", "x_min", "y_max", "x_max")])
  maps = np.random.default_rng(0).random((16, 14, 14))
  data = examples(16) | {"images": np.stack(images), "attention": maps, "class_maps": maps}
  data["boxes"] = localization.boxes_from_maps(maps, (224, 224), 0.5)
  report.draw_predictions(tmp_path / "p.png", **data, true_boxes=np.array(boxes))
  assert 100_000 < (tmp_path / "p.png").stat().st_size < 1_000_000


def records(count=40):
  log = []
  for step in range(100, 100 * count + 1, 100):
    log.append(
      {
        "step": step,
        "train/loss": 300.0 / step + 1,
        "train/loss_spatial": 200.0 / step,
        "train/loss_mask": 0.5,
        "train/learning_rate": 0.1,
      }
    )
    log.append({"step": step, "eval/saol_top1": 0.9, "eval/gap_top1": 0.5, "eval/saol_nll": 0.3})
  return log


# Halves of curves.png, below their titles and legends.
LOSSES, TOP1 = np.s_[80:385, 70:605], np.s_[80:470, 660:1190]
BLUE, ORANGE, BLACK = (9, 105, 218), (225, 111, 36), (31, 35, 40)


def inked(page, region, colour):
  """Pixels of one colour, (n, 2) y and x in the region."""
  return np.argwhere(np.abs(page[region].astype(int) - colour).max(-1) < 30)


def test_curves_show_each_quantity_in_its_panel(tmp_path):
  curves.draw_curves(tmp_path / "curves.png", records())
  page = read(tmp_path / "curves.png")
  assert page.shape == (500, 1200, 3)
  total, spatial = inked(page, LOSSES, BLACK), inked(page, LOSSES, BLUE)
  saol, gap = inked(page, TOP1, BLUE), inked(page, TOP1, ORANGE)
  for ink in (total, spatial, saol, gap):
    assert np.ptp(ink[:, 1]) > 400  # from the first step to the last
  # Up is more: the total above its part and falling, SAOL's 90 % above GAP-FC's 50 %.
  assert total[:, 0].mean() < spatial[:, 0].mean()
  assert total[total[:, 1].argmin(), 0] < total[total[:, 1].argmax(), 0]
  assert saol[:, 0].max() < gap[:, 0].min()


def test_curves_give_the_last_values(tmp_path, monkeypatch):
  figures = []
  monkeypatch.setattr(curves, "save", lambda canvas, path: figures.append(canvas.figure))
  curves.draw_curves(tmp_path / "curves.png", records()[::-1])  # whatever the order
  losses, top1, _ = figures[0].axes
  # 300 / 4000 + 1, 200 / 4000, 0.5; shares as percent.
  assert [text.get_text() for text in losses.get_legend().get_texts()] == [
    "total 1.07",
    "spatial (SL) 0.05",
    "pasted mask (SS1) 0.5",
  ]
  assert [text.get_text() for text in top1.get_legend().get_texts()] == [
    "SAOL 90.00 %",
    "GAP-FC 50.00 %",
  ]
  assert 50 < top1.get_ylim()[1] <= 100.5


def test_a_missing_or_unusable_value_is_passed_over(tmp_path):
  log = records()
  curves.draw_curves(tmp_path / "clean.png", log)
  extra = [
    {"step": 150, "train/loss": None, "eval/saol_top1": float("nan")},
    {"step": 160, "train/loss": float("inf"), "note": 3.0},
  ]
  curves.draw_curves(tmp_path / "dirty.png", log[:5] + extra + log[5:])
  np.testing.assert_array_equal(read(tmp_path / "clean.png"), read(tmp_path / "dirty.png"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
  "log",
  [
    [],
    [{"step": 0, "train/loss": 0.0}],
    [{"step": 1, "train/loss": -1.0, "train/loss_$\\frac{$": 2.0}],
    [{"step": 10, "eval/gap_top1": 0.5}],
    [{"step": 10, "train/loss_new": 0.5, "eval/other_top1": 1.0, "eval/ema_other_top1": 0.0}],
  ],
)
def test_curves_of_next_to_nothing(tmp_path, log):
  curves.draw_curves(tmp_path / "curves.png", log)
  assert read(tmp_path / "curves.png").std() > 5


@pytest.mark.parametrize("step", [0, 7])
def test_ema_is_drawn_dashed(tmp_path, step):
  # Thin markers only where there are few points, so 60 of them.
  log = [{"step": s, "eval/saol_top1": 0.9, "eval/ema_saol_top1": 0.2} for s in range(step, 60)]
  curves.draw_curves(tmp_path / "curves.png", log)
  ink = inked(read(tmp_path / "curves.png"), TOP1, BLUE)
  middle = ink[:, 0].mean()
  columns = [len(np.unique(half[:, 1])) for half in (ink[ink[:, 0] < middle],
                                                     ink[ink[:, 0] > middle])]  # fmt: skip
  assert columns[1] < 0.85 * columns[0]


def test_long_curves_are_smoothed(tmp_path):
  rng = np.random.default_rng(0)
  log = [{"step": s, "train/loss": 2 + rng.normal() * 0.3} for s in range(2000)]
  curves.draw_curves(tmp_path / "curves.png", log)
  ink = inked(read(tmp_path / "curves.png"), LOSSES, BLACK)
  # The raw values reach from 1 to 3, the whole height; the mean over 40 stays within 0.25 of 2.
  assert 4 < np.ptp(ink[:, 0]) < 110
