"""Images that are decoded as they are read: where things end up in them, and in which order."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from saol_jax.data import Geometry, Reading, load_source
from saol_jax.data.decode import Decoder, crop_draws
from saol_jax.data.encoded import boxes_in_window
from saol_jax.data.loader import Loader
from tests.data.pictures import (
  ROTATED,
  boxed,
  encode,
  scene,
  white_region,
  with_orientation,
)

SIZE = 48


def decode(geometry, records, *, train=False, place=0, orientation=1):
  decoder = Decoder(geometry, lambda record: {"image": record}, train=train, threads=2)
  draws = crop_draws(5, place, len(records)) if train else None
  return decoder(records, np.full(len(records), orientation, np.int32), draws)


# Geometry


@pytest.mark.parametrize("eval_crop", [0, 0.875])
def test_boxes_follow_both_protocols_of_evaluation(eval_crop):
  """The box lies where the white is, in images of several shapes, kinds and reductions."""
  cases = []  # height, width, box
  for height, width in ((60, 90), (90, 60), (48, 48), (500, 420), (30, 41)):
    y, x = height / 10, width / 10
    cases.append((height, width, [round(v) for v in (2 * y, 3 * x, 6 * y, 7.5 * x)]))
    cases.append((height, width, [0, 0, height // 2, width // 3]))  # up to the border, or beyond
  for kind in ("PNG", "JPEG"):
    options = {"quality": 98, "subsampling": 0} if kind == "JPEG" else {}
    records = [encode(boxed(*case), kind, **options) for case in cases]
    decoded = decode(Geometry(SIZE, eval_crop=eval_crop), records)
    assert decoded.sizes.tolist() == [[h, w] for h, w, _ in cases]
    boxes = np.array([box for *_, box in cases], np.float32)
    for image, box in zip(
      decoded.images, boxes_in_window(boxes, decoded.windows, SIZE), strict=True
    ):
      assert np.abs(box - white_region(image)).max() <= 1


def test_the_centred_square_is_resize_then_crop():
  """eval_crop 0.875 of 90 x 120: a square of 79 pixels (78.75) that starts at row 6, column 21."""
  decoded = decode(Geometry(SIZE, eval_crop=0.875), [encode(scene(90, 120), "PNG")])
  assert decoded.windows.tolist() == [[6, 21, 79, 79]]
  expected = scene(90, 120).resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=(21, 6, 100, 85))
  assert np.abs(decoded.images[0].astype(int) - np.asarray(expected)).mean() < 1.5


@pytest.mark.parametrize("eval_crop", [0, 0.3, 0.875, 1.0])
def test_the_window_of_evaluation_is_known_without_decoding(eval_crop):
  """As prediction needs it, which does without TensorFlow."""
  sizes = np.random.default_rng(0).integers(1, 70, (60, 2))
  geometry = Geometry(SIZE, eval_crop=eval_crop)
  decoded = decode(geometry, [encode(Image.new("RGB", (w, h)), "PNG") for h, w in sizes.tolist()])
  y, x, h, w = decoded.windows.T
  expected = [geometry.eval_window(*size) for size in sizes.tolist()]
  np.testing.assert_array_equal(np.stack([y, x, y + h, x + w], 1), expected)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_boxes_follow_the_random_crop(kind):
  records = [encode(boxed(160, 240, (50, 60, 110, 180)), kind)] * 40
  decoded = decode(Geometry(SIZE, crop_area=(0.5, 1.0)), records, train=True)
  boxes = boxes_in_window(np.full((40, 4), [50, 60, 110, 180]), decoded.windows, SIZE)
  for image, box in zip(decoded.images, boxes, strict=True):
    assert np.abs(box - white_region(image)).max() <= 1
  assert len({tuple(box) for box in boxes.tolist()}) > 30


def test_boxes_of_turned_photographs_are_those_of_what_a_person_sees():
  # Upright 90 x 60 with the white at rows 20 to 50; stored lying on its side.
  upright = boxed(90, 60, (20, 10, 50, 55))
  stored = with_orientation(upright.transpose(Image.Transpose.ROTATE_90), ROTATED)
  decoded = decode(Geometry(SIZE, eval_crop=0), [stored], orientation=ROTATED)
  assert decoded.sizes.tolist() == [[90, 60]]
  (box,) = boxes_in_window(np.array([[20, 10, 50, 55]]), decoded.windows, SIZE)
  assert np.abs(box - white_region(decoded.images[0])).max() <= 1


def test_random_crops_have_the_stated_areas_and_aspects_and_reach_everywhere():
  side, count = 150, 1500  # in a square of this side, all these windows fit
  geometry = Geometry(SIZE, crop_area=(0.1, 0.45), crop_aspect=(0.5, 2.0))
  windows = decode(geometry, [encode(scene(side, side), "PNG")] * count, train=True).windows
  y, x, h, w = windows.T
  assert (windows[:, :2] >= 0).all()
  assert (y + h).max() == side
  assert (x + w).max() == side
  area, aspect = h * w / side**2, w / h
  assert 0.1 * 0.97 < area.min() < 0.12
  assert 0.43 < area.max() < 0.45 * 1.03
  assert 0.5 * 0.96 < aspect.min() < 0.52
  assert 1.92 < aspect.max() < 2.0 * 1.04
  assert abs(np.log(aspect).mean()) < 0.03  # as often wide as high
  assert abs(area.mean() - 0.275) < 0.01
  assert abs((y / (side - h)).mean() - 0.5) < 0.03
  # An aspect that never fits: ten tries, then the largest centred window in range.
  strip = decode(Geometry(SIZE), [encode(scene(20, 400), "PNG")] * 5, train=True).windows
  assert {tuple(window) for window in strip.tolist()} == {(0, 186, 20, 27)}


def test_each_place_draws_for_itself():
  whole = crop_draws(3, 1000, 20)
  np.testing.assert_array_equal(whole[7:], crop_draws(3, 1007, 13))
  far = 10**7 * 4096
  np.testing.assert_array_equal(crop_draws(3, far, 5)[2:], crop_draws(3, far + 2, 3))
  everything = np.concatenate([whole, crop_draws(3, far, 20), crop_draws(4, 1000, 20)])
  assert len(np.unique(everything)) > 0.999 * everything.size
  assert 0 <= everything.min() < 0.01
  assert 0.99 < everything.max() < 1


def test_no_draw_is_1_though_rounding_to_float32_would_make_it_so(monkeypatch):
  highest = np.nextafter(1.0, 0.0)
  monkeypatch.setattr(
    np.random, "Generator", lambda bits: SimpleNamespace(random=lambda n: np.full(n, highest))
  )
  draws = crop_draws(0, 0, 3)
  assert draws.dtype == np.float32
  assert 0.999 < draws.max() < 1


# Order


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """30 images, 20 of one class and 10 of the other, each of a brightness of its own."""
  root = tmp_path_factory.mktemp("ordered")
  for number in range(30):
    name = "a" if number < 20 else "b"
    for split in ("train", "val"):
      path = root / split / name / f"{number:02d}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(encode(scene(40 + number, 60), "PNG"))
  return root


def load(folder, split="train", *, threads=2, validation=0.0):
  reading = Reading(geometry=Geometry(16), threads=threads)
  return load_source("folder", split, data_dir=str(folder), validation=validation, reading=reading)


def same(batch, other):
  assert batch.keys() == other.keys()
  for name in batch:
    assert batch[name].tobytes() == other[name].tobytes(), name


def test_batches_are_the_same_for_any_number_of_hosts_and_threads_and_from_any_start(folder):
  steady = Loader(load(folder), 8, seed=2)
  batches = [steady[k] for k in range(9)]  # more than two epochs of 30
  for k in (8, 3):
    for threads in (1, 5):
      same(Loader(load(folder, threads=threads), 8, seed=2)[k], batches[k])
    parts = [Loader(load(folder), 8, seed=2, process_index=i, process_count=4)[k] for i in range(4)]
    same({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, batches[k])
  other = Loader(load(folder), 8, seed=3)[3]
  assert not np.array_equal(other["image"], batches[3]["image"])
  # The same example is cropped otherwise in each epoch.
  seen = {}
  for k, batch in enumerate(batches):
    for index, image in zip(steady.indices(k).tolist(), batch["image"], strict=True):
      seen.setdefault(index, set()).add(image.tobytes())
  assert sum(len(images) for images in seen.values()) == 72
  assert seen.keys() == set(range(30))


def test_evaluation_sees_the_same_bytes_whatever_the_threads(folder):
  rows = np.array([29, 3, 3, 11])
  same(load(folder, threads=1)[rows], load(folder, threads=4)[rows])
  np.testing.assert_array_equal(load(folder)[rows]["image"][1], load(folder)[rows]["image"][2])


def test_validation_shares_no_example_with_train_and_has_its_share_of_each_class(folder):
  train, validation = (load(folder, split, validation=0.2) for split in ("train", "validation"))
  names = [{source.name(i) for i in range(len(source))} for source in (train, validation)]
  assert not names[0] & names[1]
  assert len(names[0] | names[1]) == 30
  assert np.bincount(validation[np.arange(6)]["label"]).tolist() == [4, 2]
  assert len(load(folder, "test", validation=0.2)) == 30
