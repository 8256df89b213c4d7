"""Localisation scores against cases done by hand and against the definition spelled out."""

import cv2
import numpy as np
import pytest

from saol_jax import localization, wsol


def spelled_out(score_map, boxes_xyxy, every, plus=1):
  """IoU with the best of the true boxes at 0, 0.001, ...: the definition, one step at a time.

  Follows the text of clovaai/wsolevaluation (evaluation.py) without sharing any work between
  thresholds; with plus=0 boxes are max exclusive and their sides counted as they are.
  """
  height, width = score_map.shape
  image = (score_map * 255).astype(np.uint8)
  result = []
  for threshold in np.arange(0, 1, 0.001):
    _, mask = cv2.threshold(image, int(threshold * image.max()), 255, cv2.THRESH_BINARY)
    contours = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    if contours and not every:
      contours = [max(contours, key=cv2.contourArea)]
    estimated = []
    for contour in contours:
      x, y, w, h = cv2.boundingRect(contour)
      estimated.append([x, y, min(x + w, width - plus), min(y + h, height - plus)])
    ious = []
    for a in estimated or [[0, 0, 0, 0]]:
      for b in boxes_xyxy:
        w = max(0, min(a[2], b[2]) - max(a[0], b[0]) + plus)
        h = max(0, min(a[3], b[3]) - max(a[1], b[1]) + plus)
        areas = [(c[2] - c[0] + plus) * (c[3] - c[1] + plus) for c in (a, b)]
        ious.append(w * h / (sum(areas) - w * h))
    result.append(max(ious))
  return np.array(result)


@pytest.mark.parametrize("size", [(24, 24), (20, 33), (31, 12)])
@pytest.mark.parametrize("smooth", [True, False])
def test_overlaps_are_the_definition(size, smooth):
  rng = np.random.default_rng(size[1] + smooth)
  grid = rng.random((1, 5, 4)).astype(np.float32)
  score_map = localization.resize_maps(grid, size)[0] if smooth else rng.random(size)
  score_map = localization.normalise(score_map)
  levels = (np.arange(0, 1, 0.001) * 255).astype(int)
  gains = []
  for box in ([3, 2, 17, 11], [3, 2, *size]):  # inside, and up to the right and lower border
    true = [[box[1], box[0], box[3], box[2]]]
    exact, largest, best = wsol.overlaps(score_map, np.array(box))
    expected = spelled_out(score_map, true, every=False, plus=0)
    np.testing.assert_allclose(exact[levels], expected)
    for ours, every in ((largest, False), (best, True)):
      np.testing.assert_array_equal(ours[levels], spelled_out(score_map, true, every))
    gains.append((best - largest).max())
  assert max(gains) > 0


def blank(height=10, width=16):
  return np.zeros((height, width), np.float32)


def test_one_blob_by_hand():
  score_map = blank()
  score_map[2:5, 3:9] = 1
  # Estimated: x 3 to 9, y 2 to 5, sides 7 and 4 by the +1 convention; the true box likewise.
  for box, expected in {
    (2, 3, 5, 9): 1.0,
    (2, 3, 5, 7): 5 * 4 / (7 * 4),
    (0, 3, 5, 9): 7 * 4 / (7 * 6),
    (6, 0, 8, 2): 0.0,
    (5, 3, 8, 9): 7 * 1 / (2 * 7 * 4 - 7),  # touching boxes share a row
  }.items():
    _, largest, best = wsol.overlaps(score_map, np.array(box))
    assert largest.shape == (255,)
    np.testing.assert_array_equal(largest, best)
    np.testing.assert_allclose(largest, expected, err_msg=str(box))


def test_two_blobs_by_hand():
  score_map = blank()
  score_map[1:3, 1:3] = 1.0  # contour area 1
  score_map[4:9, 7:14] = 0.5  # 0.5 * 255 = 127.5, cut to 127: gone from level 127 on
  _, largest, best = wsol.overlaps(score_map, np.array([1, 1, 3, 3]))
  assert (best == 1).all()
  assert (largest[:127] == 0).all()
  assert (largest[127:] == 1).all()
  _, largest, best = wsol.overlaps(score_map, np.array([4, 7, 9, 14]))
  assert (best[:127] == 1).all()
  assert (best[127:] == 0).all()
  np.testing.assert_array_equal(largest, best)


def test_a_hole_has_a_box_of_its_own():
  score_map = blank(12, 12)
  score_map[1:11, 1:11] = 1
  score_map[4:7, 4:7] = 0
  _, largest, best = wsol.overlaps(score_map, np.array([3, 3, 8, 8]))
  # OpenCV draws the rim of a hole on the pixels around it: 3 to 7, so x, y 3 to 8.
  assert (best == 1).all()
  np.testing.assert_allclose(largest, 36 / 121)


@pytest.mark.parametrize("fill", [0.0, 7.0, np.nan])
def test_constant_and_nan_maps_have_the_corner_pixel_as_their_box(fill):
  score_map = localization.normalise(np.full((10, 16), fill))
  _, largest, best = wsol.overlaps(score_map, np.array([0, 0, 3, 2]))
  np.testing.assert_allclose(largest, 1 / (4 * 3))
  np.testing.assert_array_equal(largest, best)
  assert not wsol.overlaps(score_map, np.array([2, 3, 5, 9])).largest.any()


def test_only_the_box_of_the_map_is_cut_off_at_the_border():
  score_map = np.ones((10, 16), np.float32)
  # Its box ends at 15 and 9, which is 16 x 10 by the +1 convention.
  for box, expected in {
    (0, 0, 10, 16): 160 / (17 * 11),
    (0, 0, 9, 15): 1.0,
    (0, 0, 9, 16): 160 / (17 * 10),
    (0, 0, 10, 8): 9 * 10 / (160 + 9 * 11 - 9 * 10),
  }.items():
    exact, largest, _ = wsol.overlaps(score_map, np.array(box))
    np.testing.assert_allclose(largest, expected, err_msg=str(box))
    np.testing.assert_allclose(exact, box[2] * box[3] / 160)


def two_maps():
  """Map 0: right at low levels only; map 1: right at high levels only. Non-square images."""
  maps = np.zeros((2, 10, 16), np.float32)
  maps[0, 2:8, 2:12] = 0.4
  maps[0, 2, 2] = 1
  maps[1, :, :] = 0.6
  maps[1, 5:9, 6:15] = 1
  maps[1, 0, 0] = 0
  return maps, np.array([[2, 2, 8, 12], [5, 6, 9, 15]])


def test_box_scores_by_hand():
  maps, boxes = two_maps()
  scores = wsol.BoxScores()
  scores.add(maps, boxes, top1=np.array([True, False]), top5=np.array([True, True]))
  # 0.4 * 255 = 102, 0.6 * 255 = 153: map 0 is right below level 102, map 1 from 153 on.
  curve = scores.curve()
  assert curve.shape == wsol.THRESHOLDS.shape == (1000,)
  levels = (wsol.THRESHOLDS * 255).astype(int)
  np.testing.assert_array_equal(curve, ((levels < 102) | (levels >= 153)) / 2)
  assert scores.best_threshold() == 0
  assert scores.at(0.2) == {"gt_known": 0.5, "top1_loc": 0.5, "top5_loc": 0.5}
  assert scores.at(0.5) == {"gt_known": 0.0, "top1_loc": 0.0, "top5_loc": 0.0}
  assert scores.at(0.9) == {"gt_known": 0.5, "top1_loc": 0.0, "top5_loc": 0.5}
  best = scores.best()
  assert best["max_box_acc"] == 0.5
  # Map 1 at low levels: the image less a corner, IoU 5 * 10 / 160 = 0.31, is right at 0.3.
  assert best["box_acc_30"] == 1.0
  assert best["box_acc_50"] == best["box_acc_70"] == 0.5
  assert best["max_box_acc_v2"] == pytest.approx(2 / 3)


def test_iou_of_exactly_the_bound_counts():
  score_map = blank()
  score_map[0:3, 0:4] = 1  # 3 x 4; 4 x 5 by the +1 convention
  for box, plain, plus_one in (
    ([0, 0, 6, 4], True, True),  # 12 / 24
    ([0, 0, 7, 4], False, True),  # 12 / 28 and 20 / 40
    ([0, 0, 8, 4], False, False),  # 20 / 45
  ):
    scores = wsol.BoxScores()
    scores.add(score_map[None], np.array([box]), np.array([True]), np.array([True]))
    assert scores.at(0.5)["gt_known"] == plain
    assert scores.best()["max_box_acc"] == plus_one


def test_second_version_takes_the_best_of_all_boxes():
  score_map = blank()
  score_map[0:6, 0:7] = 1
  score_map[7:9, 10:14] = 1
  scores = wsol.BoxScores()
  scores.add(score_map[None], np.array([[7, 10, 9, 14]]), np.array([True]), np.array([True]))
  assert scores.best()["max_box_acc"] == 0
  assert scores.best()["max_box_acc_v2"] == 1


def test_each_iou_has_a_best_threshold_of_its_own():
  scores = wsol.BoxScores()
  for ious, levels in ((0.35, slice(0, 100)), (0.35, slice(0, 100)), (0.9, slice(100, None))):
    values = np.zeros(255)
    values[levels] = ious
    scores.add_overlaps(wsol.Overlaps(values, values, values), top1=True, top5=True)
  best = scores.best()
  assert best["box_acc_30"] == pytest.approx(2 / 3)
  assert best["box_acc_50"] == best["box_acc_70"] == pytest.approx(1 / 3)
  assert best["max_box_acc_v2"] == pytest.approx(4 / 9)


def test_overlaps_of_exactly_the_bounds_count():
  for bound in wsol.IOUS:
    scores, values = wsol.BoxScores(), np.full(255, bound)
    scores.add_overlaps(wsol.Overlaps(values, values, values), top1=True, top5=True)
    assert scores.best()[f"box_acc_{round(100 * bound)}"] == 1


def test_a_threshold_between_two_levels_is_the_lower_one():
  """255 * 0.5 = 127.5: a pixel of level 128 is above 127, as in the curve."""
  score_map = painted((128.5 / 255, WIDE), (1, (0, 15, 1, 16)))
  scores = wsol.BoxScores()
  scores.add(score_map[None], np.array([WIDE]), np.array([True]), np.array([True]))
  assert scores.at(0.5)["gt_known"] == scores.curve()[500] == 1
  assert scores.at(0.502)["gt_known"] == scores.curve()[502] == 0


def test_batches_add_up_and_range_does_not_matter():
  maps, boxes = two_maps()
  right = np.ones(2, bool)
  whole, parts = wsol.BoxScores(), wsol.BoxScores()
  whole.add(maps, boxes, right, right)
  for i in (0, 1):
    parts.add(300 * maps[i : i + 1] - 8, boxes[i : i + 1], right[:1], right[:1])
  np.testing.assert_array_equal(whole.curve(), parts.curve())
  assert whole.best() == parts.best()
  assert whole.count == parts.count == 2


def average_precision(score_maps, masks):
  """Threshold by threshold, from 1 down."""
  scores, truth = score_maps.ravel(), masks.ravel()
  scores, truth = scores[truth != 255], truth[truth != 255]
  total, last_recall = 0.0, 0.0
  for threshold in [1.0, *np.arange(0, 1, 0.001)[::-1]]:
    chosen = scores >= threshold
    if chosen.any():
      recall = (chosen & (truth == 1)).sum() / (truth == 1).sum()
      total += (truth[chosen] == 1).mean() * (recall - last_recall)
      last_recall = recall
  return total


def test_pixel_scores_agree_with_a_threshold_by_threshold_sum():
  rng = np.random.default_rng(0)
  maps = localization.normalise(rng.random((5, 9, 14)))
  masks = rng.choice([0, 1, 255], p=[0.6, 0.3, 0.1], size=maps.shape).astype(np.uint8)
  masks[maps > 0.8] = 1
  scores = wsol.PixelScores()
  scores.add(maps[:2], masks[:2])
  scores.add(maps[2:], masks[2:])
  assert scores.average_precision() == pytest.approx(average_precision(maps, masks), abs=1e-12)


def test_pixel_scores_by_hand():
  maps = np.array([[[1.0, 0.5, 0.25, 0.0]]])
  for mask, expected in (
    ([1, 1, 0, 0], 1.0),
    ([1, 0, 1, 0], 0.5 * 1 + 0.5 * 2 / 3),
    ([0, 0, 0, 1], 1 / 4),
    ([1, 255, 1, 0], 1.0),  # what is ignored neither helps nor harms
    ([1, 1, 1, 1], 1.0),
  ):
    scores = wsol.PixelScores()
    scores.add(maps, np.array([[mask]], np.uint8))
    assert scores.average_precision() == pytest.approx(expected), mask
  near = wsol.PixelScores()  # 1 is a threshold after 0.999
  near.add(np.array([[[1.0, 0.9997, 0.0]]]), np.array([[[1, 0, 0]]], np.uint8))
  assert near.average_precision() == 1
  constant = wsol.PixelScores()
  constant.add(np.full((1, 1, 4), 3.0), np.array([[[1, 0, 0, 0]]], np.uint8))
  assert constant.average_precision() == pytest.approx(0.25)  # all pixels tie


def test_pixel_scores_refuse_what_has_no_answer():
  scores = wsol.PixelScores()
  with pytest.raises(ValueError, match="undefined"):
    scores.average_precision()
  with pytest.raises(ValueError, match="value 7"):
    scores.add(np.zeros((1, 2, 2)), np.full((1, 2, 2), 7, np.uint8))
  with pytest.raises(ValueError, match="must have one shape"):
    scores.add(np.zeros((1, 2, 2)), np.zeros((1, 2, 3), np.uint8))


def painted(*blobs, size=(10, 16)):
  """A map with values in boxes y_min, x_min, y_max, x_max, later ones on top."""
  score_map = blank(*size)
  for value, (y_min, x_min, y_max, x_max) in blobs:
    score_map[y_min:y_max, x_min:x_max] = value
  return score_map


WIDE, TALL = (2, 4, 8, 12), (4, 2, 12, 8)  # 48 of 160 pixels; 9 x 7 and 7 x 9 by the +1 convention


@pytest.mark.parametrize(
  ("score_map", "truth", "gt_known", "max_box_acc", "v2", "px_ap"),
  [
    pytest.param(painted((1, WIDE)), WIDE, 1, 1, 1, 1, id="one blob"),
    # The larger blob: IoU 30 / 48, or 6 x 7 of 9 x 7. The brighter one holds 4 wrong pixels.
    pytest.param(
      painted((0.6, (2, 4, 8, 9)), (1, (0, 14, 2, 16))),
      WIDE,
      1,
      1,
      2 / 3,
      30 / 34 * 30 / 48 + 48 / 160 * 18 / 48,
      id="two blobs",
    ),
    pytest.param(np.full((10, 16), 7.0), WIDE, 0, 0, 0, 48 / 160, id="constant"),
    pytest.param(painted((1, WIDE), (np.nan, (0, 0, 1, 1))), WIDE, 0, 0, 0, 48 / 160, id="NaN"),
    pytest.param(blank(), WIDE, 0, 0, 0, 48 / 160, id="empty"),
    # IoU 48 / 160, or 63 / 160; one pixel is left out, or the map would be constant.
    pytest.param(
      painted((1, (0, 0, 10, 16)), (0, (9, 15, 10, 16))),
      WIDE,
      0,
      0,
      1 / 3,
      48 / 159,
      id="whole image",
    ),
    # Half of the box, IoU 24 / 48, or 4 x 9 of 7 x 9.
    pytest.param(
      painted((1, (4, 2, 12, 5)), size=(16, 10)),
      TALL,
      1,
      1,
      2 / 3,
      24 / 48 + 48 / 160 * 24 / 48,
      id="tall",
    ),
  ],
)
def test_every_metric_by_hand(score_map, truth, gt_known, max_box_acc, v2, px_ap):
  mask = painted((1, truth), size=score_map.shape).astype(np.uint8)
  by_box, by_pixel = wsol.BoxScores(), wsol.PixelScores()
  by_box.add(score_map[None], np.array([truth]), np.array([False]), np.array([True]))
  by_pixel.add(score_map[None], mask[None])
  assert by_box.at(0.5) == {"gt_known": gt_known, "top1_loc": 0, "top5_loc": gt_known}
  assert by_box.best()["max_box_acc"] == max_box_acc
  assert by_box.best()["max_box_acc_v2"] == pytest.approx(v2)
  assert by_pixel.average_precision() == pytest.approx(px_ap)


def test_scores_of_many_maps_are_as_small_as_those_of_one():
  """Streaming: 50,000 maps need the memory of one."""
  maps, boxes = two_maps()
  right, masks = np.ones(2, bool), (maps > 0.5).astype(np.uint8)
  sizes = []
  for _ in range(2):
    by_box, by_pixel = wsol.BoxScores(), wsol.PixelScores()
    for _ in range(1 + 20 * len(sizes)):
      by_box.add(maps, boxes, right, right)
      by_pixel.add(maps, masks)
    arrays = [*vars(by_box).values(), *vars(by_pixel).values()]
    sizes.append([np.asarray(value).nbytes for value in arrays])
  assert sizes[0] == sizes[1]
