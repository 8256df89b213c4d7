"""Words in pictures: letters that a font lacks, and scripts that run from right to left."""

import numpy as np
import pytest

from saol_jax.drawing import FONT, draw_text, drawable, fonts, legible, page_axes

UNKNOWN = "\ue000"  # for private use: no font counts as having it
CAT, DOG = "\u05d7\u05ea\u05d5\u05dc", "\u05db\u05dc\u05d1"  # in Hebrew


def picture(text, **look):
  """Grey levels of 40 x 400 pixels with the text, and its width."""
  canvas, axes = page_axes(np.full((40, 400, 3), 255, np.uint8))
  width = draw_text(axes, 4, 30, text, 20, "black", **look)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., 0], int(width)


def test_another_font_lends_what_ours_lacks(recwarn):
  arc = "\u2312"  # in DejaVu Sans Mono, which comes with matplotlib too
  assert drawable(f"a{arc}{UNKNOWN}\n") == f"a{arc}□□"
  assert fonts("a") == [FONT]
  assert len(fonts(f"a{arc}{arc}{UNKNOWN}")) == 2
  assert not np.array_equal(picture(arc)[0], picture(UNKNOWN)[0])
  assert not recwarn.list  # such as of a missing glyph


def test_names_that_no_font_has_are_told_apart_by_their_labels(caplog):
  names = ["cat", UNKNOWN, f"{UNKNOWN} dog", 2 * UNKNOWN]
  for _ in range(2):
    assert legible(names) == ("cat", "#1", "#2 dog", "#3")
  (record,) = caplog.records
  assert r"3 class(es) whose names no font has: #1 \ue000, #2 \ue000 dog" in record.getMessage()


@pytest.mark.parametrize("beside", [" → cat", "  93.0 %", f" → {DOG} 2", " 50 % + cat"])
def test_what_stands_beside_a_name_from_right_to_left_stays_there(beside, recwarn):
  name, width = picture(CAT)
  both, _ = picture(CAT + beside)
  np.testing.assert_array_equal(both[:, : width + 4], name[:, : width + 4])
  assert (both[:, width + 8 :] < 255).any()
  np.testing.assert_array_equal(picture(CAT, end=beside)[0], both)
  assert not recwarn.list


def test_words_of_one_name_from_right_to_left_stay_together():
  assert drawable(f"{CAT} 2-{DOG} 3") == f"\u2068{CAT} 2-{DOG}\u2069 3"
  assert drawable(f"{CAT}…") == f"\u2068{CAT}…\u2069"
