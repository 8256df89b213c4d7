"""The picture of how well each kind of map finds the object."""

import os
from collections.abc import Mapping

import numpy as np
from matplotlib import ticker

from saol_jax.drawing import GREY, INK, plain_axes, plot_figure, save
from saol_jax.explain import CAM
from saol_jax.wsol import THRESHOLDS

_COLOURS = ("#0969da", "#1a7f37", "#8250df", "#bf8700", "#1b7c83", "#bf3989", "#57606a", "#0a3069")
_CAM_COLOUR = "#e16f24"


def draw_box_accuracy(
  path: str | os.PathLike,
  curves: Mapping[str, np.ndarray],
  chosen: Mapping[str, float],
  title: str,
) -> None:
  """Writes a PNG with the box accuracy of each map against the threshold.

  Args:
    path: of the PNG; an existing file is replaced.
    curves: (1000,) share in [0, 1] at each of `wsol.THRESHOLDS`, by the map's name.
    chosen: threshold of each map, drawn as a dot.
    title: of the picture.
  """
  figure, canvas = plot_figure(11, 6)
  axes = figure.add_subplot()
  at = {name: float(np.interp(chosen[name], THRESHOLDS, curve)) for name, curve in curves.items()}
  others = 0
  for name in sorted(curves, key=lambda name: -at[name]):
    look = {"color": _CAM_COLOUR, "linewidth": 2.4}
    if name != CAM:
      line = ("-", "--", ":")[others // len(_COLOURS) % 3]
      look = {"color": _COLOURS[others % len(_COLOURS)], "linewidth": 1.5, "linestyle": line}
      others += 1
    axes.plot(THRESHOLDS, 100 * curves[name], label=f"{name} {100 * at[name]:.1f} %", **look)
    axes.plot(chosen[name], 100 * at[name], "o", color=look["color"], markersize=5)
  plain_axes(axes, size=9)
  axes.set_xlim(0, 1)
  axes.set_ylim(bottom=0)
  axes.xaxis.set_major_locator(ticker.MultipleLocator(0.1))
  axes.set_xlabel("threshold on the map, scaled to [0, 1]; dots: chosen on other data", color=GREY)
  axes.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold", parse_math=False)
  axes.set_ylabel("GT-known localisation: largest box right at IoU 0.5, %", color=GREY)
  axes.legend(
    loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9, labelcolor=INK
  )
  save(canvas, path)
