import re

import cv2
import jax
import numpy as np
import pytest
from scipy import ndimage

from saol_jax import localization
from tests.support import ROOT


def test_normalise_by_hand():
  maps = np.array([[[-1.0, 1.0, 3.0]], [[10.0, 12.5, 20.0]]])
  np.testing.assert_allclose(
    localization.normalise(maps), [[[0, 0.5, 1]], [[0, 0.25, 1]]], atol=1e-7
  )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_constant_and_non_finite_maps_become_zeros_without_touching_their_neighbours(bad):
  maps = np.zeros((3, 2, 3), np.float32)
  maps[0] = 7.0
  maps[1, 1, 2] = bad
  maps[2, 0, 1] = 4.0
  expected = np.zeros((3, 2, 3), np.float32)
  expected[2, 0, 1] = 1.0
  with np.errstate(all="raise"):
    np.testing.assert_array_equal(localization.normalise(maps), expected)


@pytest.mark.parametrize("scale", [3e38, 1e-42])
def test_normalise_survives_the_whole_range_of_float32(scale):
  maps = np.array([[-scale, 0.0, scale]], np.float32)
  np.testing.assert_allclose(localization.normalise(maps), [[0, 0.5, 1]], atol=1e-6)


def test_resize_by_hand():
  # Output centres 0.5, 1.5, 2.5, 3.5 of 4 read at -0.25, 0.25, 0.75, 1.25 of [0, 8]; the ends clip.
  np.testing.assert_allclose(localization.resize_maps([[0.0, 8.0]], (1, 4)), [[0, 2, 6, 8]])
  # Down to a third: the centre of each triple.
  line = np.arange(9.0)[:, None]
  np.testing.assert_allclose(localization.resize_maps(line, (3, 1)), [[1], [4], [7]])
  # Halving in between: 4 -> 2 reads at 0.5 and 2.5, the mean of two.
  np.testing.assert_allclose(localization.resize_maps([[1.0, 3.0, 5.0, 9.0]], (1, 2)), [[2, 7]])


@pytest.mark.parametrize("size", [(33, 50), (8, 5), (3, 2), (64, 64), (1, 1)])
def test_resize_agrees_with_scipy_and_jax(size):
  maps = np.random.default_rng(0).normal(size=(2, 8, 5)).astype(np.float32)
  ours = localization.resize_maps(maps, size)
  assert ours.shape == (2, *size)
  assert ours.dtype == np.float32
  zoom = (1, size[0] / 8, size[1] / 5)
  scipy = ndimage.zoom(maps, zoom, order=1, mode="nearest", grid_mode=True)
  np.testing.assert_allclose(ours, scipy, atol=1e-5)
  theirs = jax.image.resize(maps, (2, *size), "bilinear", antialias=False)
  np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("size", [(33, 50), (16, 10), (8, 5), (64, 3)])
def test_bicubic_resize_agrees_with_opencv(size):
  maps = np.random.default_rng(4).normal(size=(2, 8, 5)).astype(np.float32)
  ours = localization.resize_maps(maps, size, "bicubic")
  assert ours.dtype == np.float32
  for score_map, result in zip(maps, ours, strict=True):
    theirs = cv2.resize(score_map, size[::-1], interpolation=cv2.INTER_CUBIC)
    np.testing.assert_allclose(result, theirs, atol=2e-5)


def test_resize_keeps_a_constant_and_the_identity():
  np.testing.assert_array_equal(localization.resize_maps(np.full((3, 7), 2.0), (50, 9)), 2.0)
  maps = np.random.default_rng(1).normal(size=(3, 7, 4)).astype(np.float32)
  np.testing.assert_array_equal(localization.resize_maps(maps, (7, 4)), maps)


def blank(height=6, width=9):
  return np.zeros((height, width), np.float32)


def test_box_of_one_blob():
  score_map = blank()
  score_map[1:4, 2:8] = 0.9
  box = localization.largest_box(score_map, 0.5)
  assert box.tolist() == [1, 2, 4, 8]
  assert box.dtype == np.int32


def test_box_of_the_larger_of_two_blobs_even_where_its_values_are_lower():
  score_map = blank()
  score_map[0:2, 0:2] = 1.0  # 4 pixels
  score_map[3:5, 6:9] = 0.6  # 6 pixels
  assert localization.largest_box(score_map, 0.5).tolist() == [3, 6, 5, 9]
  assert localization.largest_box(score_map, 0.7).tolist() == [0, 0, 2, 2]


def test_size_is_counted_in_pixels_not_in_the_area_of_the_box():
  score_map = blank()
  score_map[0, :5] = score_map[:5, 0] = 1.0  # 9 pixels in a 5 x 5 box
  score_map[2:6, 5:8] = 1.0  # 12 pixels in a 4 x 3 box
  assert localization.largest_box(score_map, 0.5).tolist() == [2, 5, 6, 8]


def test_diagonal_pixels_are_one_region_and_the_first_of_equals_wins():
  score_map = blank()
  score_map[[1, 2, 3], [4, 5, 6]] = 1.0
  score_map[5, 0:2] = 1.0
  assert localization.largest_box(score_map, 0.5).tolist() == [1, 4, 4, 7]
  score_map = blank()
  score_map[0, 7:9] = score_map[4, 0:2] = 1.0
  assert localization.largest_box(score_map, 0.5).tolist() == [0, 7, 1, 9]


def test_threshold_is_strict_and_whole_and_empty_and_nan_maps_are_defined():
  score_map = np.full((4, 7), 0.5, np.float32)
  assert localization.largest_box(score_map, 0.49).tolist() == [0, 0, 4, 7]
  assert localization.largest_box(score_map, 0.5).tolist() == [0, 0, 0, 0]
  assert localization.largest_box(np.full((4, 7), np.nan), 0.0).tolist() == [0, 0, 0, 0]


def test_all_boxes_largest_region_first():
  score_map = blank()
  score_map[0:2, 0:2] = 1.0  # 4 pixels
  score_map[3:5, 6:9] = 0.6  # 6 pixels
  score_map[5, 0:4] = 0.9  # 4 pixels, later in reading order
  boxes = localization.all_boxes(score_map, 0.5)
  assert boxes.tolist() == [[3, 6, 5, 9], [0, 0, 2, 2], [5, 0, 6, 4]]
  assert boxes.dtype == np.int32
  assert localization.all_boxes(score_map, 0.95).tolist() == [[0, 0, 2, 2]]
  assert localization.all_boxes(score_map, 1.0).shape == (0, 4)
  # So many equals that a sort which is not stable would change their order.
  dots = np.zeros((1, 60), np.float32)
  dots[0, ::2] = 1.0
  dots[0, 40:43] = 1.0
  starts = [40, *range(0, 40, 2), *range(44, 60, 2)]
  assert localization.all_boxes(dots, 0.5)[:, 1].tolist() == starts


def test_boxes_from_maps_by_hand():
  maps = np.zeros((5, 2, 3), np.float32)
  maps[0, 0, 2] = 0.02  # its peak is far below 1: the threshold is a share of it
  maps[1] = 3.0
  maps[2, 0, 0] = np.nan
  maps[3] = [[1, 0, 0], [1, 0, 0]]
  maps[4, 1, 1] = np.inf
  boxes = localization.boxes_from_maps(maps, (4, 9), 0.5)
  # Map 0, the weight of the peak. Columns read at (x + 0.5) / 3 - 0.5: 1/3 at x 5, 2/3 at 6, 1 at
  # 7 and 8. Rows at (y + 0.5) / 2 - 0.5: 1, 0.75, 0.25, 0. Above 0.5: y 0 from x 6, y 1 from x 7.
  assert boxes.tolist() == [[0, 6, 2, 9], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 4, 3], [0, 0, 0, 0]]
  assert boxes.dtype == np.int32


def test_maps_are_scaled_after_they_are_resized():
  """No pixel of the image reads the whole of a peak, 0.75 of it in each direction at most."""
  peak = np.zeros((1, 3, 3), np.float32)
  peak[0, 1, 1] = 1.0
  assert localization.boxes_from_maps(peak, (6, 6), 0.6).tolist() == [[2, 2, 4, 4]]


def test_thresholds_of_0_and_1_are_allowed():
  maps = np.array([[[0.0, 1.0, 2.0]]])
  assert localization.boxes_from_maps(maps, (1, 3), 0).tolist() == [[0, 1, 1, 3]]
  assert localization.boxes_from_maps(maps, (1, 3), 1).tolist() == [[0, 0, 0, 0]]


def test_boxes_are_drawn_from_the_map_that_the_readme_names():
  assert (localization.BOX_MAP, localization.BOX_THRESHOLD) == ("activated_evidence", 0.4)
  readme = (ROOT / "README.md").read_text()
  assert f"`{localization.BOX_MAP}`, from which boxes are drawn" in readme
  assert set(re.findall(r"^\| (\w+), for boxes \|", readme, re.MULTILINE)) == {localization.BOX_MAP}


def test_a_box_with_area_has_both_sides():
  boxes = np.array([[0, 0, 0, 0], [0, 0, 0, 5], [1, 1, 2, 1], [3, 3, 1, 1], [0, 0, 1, 1]])
  assert localization.has_area(boxes).tolist() == [False] * 4 + [True]


def test_iou_by_hand():
  a = np.array([0, 0, 4, 6])
  cases = {
    (0, 0, 4, 6): 1.0,
    (2, 3, 6, 9): 6 / (24 + 24 - 6),
    (0, 0, 2, 6): 0.5,
    (4, 0, 8, 6): 0.0,  # touches, shares no pixel
    (9, 9, 12, 12): 0.0,
    (1, 1, 3, 3): 4 / 24,
    (0, 0, 0, 0): 0.0,
  }
  for b, expected in cases.items():
    assert localization.box_iou(a, np.array(b)) == pytest.approx(expected), b
    assert localization.box_iou(np.array(b), a) == pytest.approx(expected), b
  assert localization.box_iou(np.zeros(4), np.zeros(4)) == 0.0


def test_iou_broadcasts_and_agrees_with_counting_pixels():
  rng = np.random.default_rng(2)
  corners = np.sort(rng.integers(0, 13, (2, 20, 2, 2)), axis=2)  # set, box, min/max, y/x
  a, b = corners.reshape(2, 20, 4)
  ours = localization.box_iou(a[:, None], b[None])
  assert ours.shape == (20, 20)

  def painted(box):
    canvas = np.zeros((13, 13), bool)
    canvas[box[0] : box[2], box[1] : box[3]] = True
    return canvas

  for i in range(20):
    for j in range(20):
      p, q = painted(a[i]), painted(b[j])
      assert ours[i, j] == pytest.approx((p & q).sum() / max((p | q).sum(), 1))


def test_iou_does_not_overflow_small_integer_types():
  box = np.array([0, 0, 200, 200], np.uint8)
  assert localization.box_iou(box, np.array([0, 0, 100, 200], np.uint8)) == 0.5
