"""localise.py: which runs share a row, and the box around the whole image."""

import numpy as np
import pytest

from benchmarks import localise
from saol_jax.data import ArraySource
from saol_jax.data.source import DatasetInfo
from tests.support import table_rows


def localised(seed: int, gt_known: float, **changed) -> dict:
  config = {"seed": seed, "loss": {"mask_weight": 1.0, **changed}, "eval_batch_size": seed}
  scores = {"gt_known": gt_known, "max_box_acc_v2": 0.25}
  return {"config": config, "maps": {"cam": scores}, "whole_image": scores}


def test_runs_that_differ_in_the_seed_alone_share_a_row():
  runs = [localised(0, 0.5), localised(1, 0.6), localised(0, 0.9, mask_weight=0.0)]
  for own in runs:
    own["variant"] = localise.variant(own["config"], runs[0]["config"])
  first, whole, other, _ = table_rows(localise.table(runs))
  assert first == ["as first", "2", "cam", "55.0 +- 7.1", "25.0 +- 0.0"]  # sqrt(50)
  assert whole[2] == "whole image"
  assert other == ["loss.mask_weight=0.0", "1", "cam", "90.0", "25.0"]


def test_whole_image_is_right_where_the_object_fills_as_much():
  sides = np.array([32, 23, 22, 18, 17, 5])  # of 32: shares 1, 0.52, 0.47, 0.32, 0.28, 0.02
  boxes = np.stack([0 * sides, 0 * sides, sides, sides], 1).astype(np.int32)
  info = DatasetInfo(("a",), mean=(0.5,) * 3, std=(0.5,) * 3)
  images, labels = np.zeros((6, 32, 32, 3), np.uint8), np.zeros(6, np.int32)
  found = localise.whole_image(ArraySource(images, labels, info, boxes))
  assert found["gt_known"] == pytest.approx(2 / 6)
  # Sides one longer, but that of the whole image at its border: 0.94, 0.56, 0.52, 0.35, 0.32, 0.04.
  assert found["max_box_acc_v2"] == pytest.approx((5 + 3 + 1) / 6 / 3)
