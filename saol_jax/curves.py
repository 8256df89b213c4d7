"""The course of a run as a picture."""

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from scipy import ndimage

from saol_jax.drawing import GREY, HEADS, INK, plain_axes, plot_figure, save

# Each loss with its name in the paper. Colours go in this order, other losses take what is left.
_LOSSES = {
  "train/loss": "total",
  "train/loss_spatial": "spatial (SL)",
  "train/loss_mask": "pasted mask (SS1)",
  "train/loss_consistency": "consistency (SS2)",
  "train/loss_distillation": "distillation (SD)",
}
COLOURS = ("#1f2328", "#0969da", "#bf8700", "#8250df", "#1a7f37", "#cf222e", "#1b7c83", "#bf3989")
_SMOOTH_ABOVE = 200  # points in a curve


def draw_curves(path: str | os.PathLike, records: Sequence[Mapping[str, float]]) -> None:
  """Writes a PNG with the losses and the learning rate on the left, the top-1 shares on the right.

  Args:
    path: of the PNG; an existing file is replaced.
    records: the lines of metrics.jsonl, each with 'step' and any of 'train/loss*',
      'train/learning_rate' and 'eval/*_top1' (shares in [0, 1]); other keys, and values that are
      None or not finite, are passed over. May be empty.
  """
  figure, canvas = plot_figure(12, 5)
  grid = figure.add_gridspec(2, 2, height_ratios=(4, 1))
  losses, top1 = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[:, 1])
  rate = figure.add_subplot(grid[1, 0], sharex=losses)

  names = sorted({key for record in records for key in record})
  present = [key for key in _LOSSES if key in names]
  present += [key for key in names if key.startswith("train/loss") and key not in _LOSSES]
  for index, key in enumerate(present):
    name = _LOSSES.get(key) or key.removeprefix("train/").removeprefix("loss_")
    _curve(losses, records, key, name, COLOURS[index % len(COLOURS)])
  if any((line.get_ydata() > 0).any() for line in losses.lines):
    losses.set_yscale("log", nonpositive="mask")  # the parts differ by orders of magnitude
    losses.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    losses.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    losses.yaxis.set_minor_formatter(ticker.NullFormatter())
  _curve(rate, records, "train/learning_rate", "", GREY)

  shares = [key for key in names if key.startswith("eval/") and key.endswith("_top1")]
  for key in sorted(shares, key=lambda key: ("ema_" in key, "saol" not in key)):
    head = key.removeprefix("eval/").removesuffix("_top1")
    ema, head = head.startswith("ema_"), head.removeprefix("ema_")
    name, colour = HEADS.get(head, (head, COLOURS[3]))
    _curve(top1, records, key, f"{name}, EMA" if ema else name, colour, dashed=ema, factor=100)
  if top1.lines:
    top1.set_ylim(top=min(top1.get_ylim()[1], 100.5))

  for axes, name in ((losses, "training losses"), (rate, None), (top1, "evaluation top-1, %")):
    _finish(axes, name)
  losses.tick_params(labelbottom=False)
  rate.set_ylim(bottom=0)
  rate.set_ylabel("learning rate", color=GREY, fontsize=9)
  for axes in (rate, top1):
    axes.set_xlabel("steps", color=GREY, fontsize=9)
  save(canvas, path)


def _curve(
  axes: Axes,
  records: Sequence[Mapping[str, float]],
  key: str,
  name: str,
  colour: str,
  *,
  dashed: bool = False,
  factor: float = 1.0,
) -> None:
  """Draws one key over the steps, its last value in the label; long ones pale, with a mean."""
  values = {r["step"]: r[key] for r in records if r.get(key) is not None}
  points = np.array(sorted(p for p in values.items() if math.isfinite(p[1])), np.float64)
  if not len(points):
    return
  steps, values = points[:, 0], points[:, 1] * factor
  look = {"color": colour, "linestyle": "--" if dashed else "-"}
  label = f"{name} {values[-1]:.3g}" if factor == 1 else f"{name} {values[-1]:.2f} %"
  if len(values) > _SMOOTH_ABOVE:
    axes.plot(steps, values, linewidth=0.6, alpha=0.25, **look)
    values = ndimage.uniform_filter1d(values, len(values) // 50, mode="nearest")
  marker = "o" if len(values) <= 30 else ""
  axes.plot(steps, values, linewidth=1.6, marker=marker, markersize=3, label=label, **look)


def _finish(axes: Axes, name: str | None) -> None:
  """Title, ticks, grid and legend; a note where nothing was drawn."""
  plain_axes(axes, size=9)
  axes.set_xlim(left=0)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
  axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
  if not axes.lines:
    axes.set_yticks([])
    note = {"ha": "center", "va": "center", "color": GREY, "fontsize": 10}
    axes.text(0.5, 0.5, "nothing recorded yet", transform=axes.transAxes, **note)
  if name is None:  # the small panel below another
    return
  axes.set_title(name, loc="left", color=INK, fontsize=12, fontweight="bold", pad=42)
  if axes.lines:
    # Above the axes, where no curve runs, and without a say in how wide they are.
    place = {"loc": "lower left", "bbox_to_anchor": (-0.012, 1.0), "borderaxespad": 0.2}
    look = {"frameon": False, "fontsize": 9, "labelcolor": INK}
    legend = axes.legend(ncols=3, handlelength=1.5, columnspacing=1.2, **look, **place)
    legend.set_in_layout(False)
    for text in legend.get_texts():
      text.set_parse_math(False)
