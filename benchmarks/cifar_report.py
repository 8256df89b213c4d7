"""Table and plot of the runs that benchmarks/cifar.py has recorded.

  python benchmarks/cifar_report.py benchmarks/results/cifar100_wrn_40_2_DEVICE.json --readme

prints the table, writes the plot beside the file, and with --readme puts both into README.md,
between the lines `<!-- NAME.json -->` and `<!-- end of NAME.json -->`, which must be there.
"""

import collections
import json
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from matplotlib.lines import Line2D

from benchmarks import record
from benchmarks.command_line import make_parser
from saol_jax.drawing import GREY, HEADS, INK, plain_axes, plot_figure, save
from saol_jax.errors import UserError

# What is reported: name, variant, head.
ROWS = (
  ("(a) GAP-FC", "gap", "gap"),
  ("(b) GAP-FC + CutMix", "gap_cutmix", "gap"),
  ("(c) SAOL + CutMix, L_SL", "saol_sl", "saol"),
  ("(d) + L_SS1", "saol_ss1", "saol"),
  ("(e) + L_SS2", "saol_ss2", "saol"),
  ("(f) + L_SD: SAOL", "saol", "saol"),
  ("(g) + L_SD: its GAP-FC", "saol", "gap"),
  ("(f), half of L_SS2: SAOL", "saol_half_ss2", "saol"),
  ("(g), half of L_SS2: its GAP-FC", "saol_half_ss2", "gap"),
)

_STYLES = {"saol": "-", "gap_cutmix": "--"}  # of lines
_TITLE = {"loc": "left", "color": INK, "fontsize": 11, "fontweight": "bold", "pad": 24}
_LEGEND = {"loc": "lower left", "bbox_to_anchor": (-0.01, 0.99), "borderaxespad": 0.2}
_LEGEND |= {"frameon": False, "fontsize": 9, "labelcolor": INK}


def main() -> None:
  """Prints the table, writes the plot, perhaps rewrites README.md."""
  parser = make_parser(__doc__, output=False)
  parser.add_argument("results", type=pathlib.Path)
  parser.add_argument("--readme", action="store_true")
  options = parser.parse_args()
  try:
    results = json.loads(options.results.read_text())
    text = table(results)
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(f"{options.results} is no file of benchmarks/cifar.py: {error!r}") from error
  print(text)
  picture = options.results.with_suffix(".png")
  draw(results, picture)
  print(f"\nwritten: {picture}")
  if options.readme:
    readme = record.ROOT / "README.md"
    place = picture.resolve().relative_to(record.ROOT)
    alt = f"CIFAR-100, {results['backbone']}: top-1 of each run"
    block = f"{text}\n\n![{alt}]({place})"
    readme.write_text(replaced(readme.read_text(), options.results.name, block))
    print(f"written: {readme}")


def replaced(text: str, name: str, block: str) -> str:
  """A text with the lines between its two marks of that name replaced.

  Raises:
    UserError: the marks are not there.
  """
  begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
  before, found, rest = text.partition(begin)
  _, closed, after = rest.partition(end)
  if not (found and closed):
    raise UserError(f"README.md lacks the lines {begin.strip()} and {end.strip()}; add them first")
  return before + begin + block + "\n" + end + after


def rows_of(runs: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
  """Those of ROWS that have runs."""
  trained = {run["variant"] for run in runs}
  return [row for row in ROWS if row[1] in trained]


def of_row(results: dict[str, Any], variant: str, head: str) -> list[dict[str, Any]]:
  """A head's scores in all runs of a variant, by seed."""
  runs = sorted(results["runs"], key=lambda run: run["seed"])
  return [run["heads"][head] for run in runs if run["variant"] == variant]


def table(results: dict[str, Any]) -> str:
  """Markdown: the finished runs; while a variant has none, also all at the step they reached."""
  parts = []
  if results["runs"]:
    parts.append(_finished(results))
  if _some_variant_is_unfinished(results):
    parts.append(_stopped(results))
  return "\n\n".join(parts)


def _some_variant_is_unfinished(results: dict[str, Any]) -> bool:
  """Whether a variant has stopped runs alone, so that these are what there is to show."""
  finished = {run["variant"] for run in results["runs"]}
  return any(run["variant"] not in finished for run in results.get("stopped", ()))


def _finished(results: dict[str, Any]) -> str:
  """A table of the rows that have finished runs: mean and standard deviation over seeds."""
  rows = []
  for name, variant, head in rows_of(results["runs"]):
    found = of_row(results, variant, head)
    runs = [run for run in results["runs"] if run["variant"] == variant]
    rows.append(
      [
        name,
        str(len(found)),
        spread([100 * own["last"]["top1"] for own in found], 2),
        spread([100 * own["best"]["top1"] for own in found], 2),
        spread([own["last"]["nll"] for own in found], 3),
        spread([100 * own["last"]["ece"] for own in found], 2),
        f"{statistics.mean(run['images_per_second'] for run in runs):,.0f}",
        f"{statistics.mean(run['seconds'] for run in runs) / 60:,.1f}",
      ]
    )
  header = ["run", "seeds", "top-1 %, last epoch", "best epoch", "NLL", "ECE %", "images/s", "min"]
  return record.markdown(header, rows, text_columns=1)


def _stopped(results: dict[str, Any]) -> str:
  """A table of the rows that have runs, finished or stopped, at one step and of the same seeds."""
  runs = [*results["runs"], *results["stopped"]]
  step, seeds = reached(runs)
  if step is None:
    return "Runs were stopped; no seed has been evaluated at the same step in all of them."
  rows = []
  for name, variant, head in rows_of(runs):
    curves = [run["heads"][head]["curve"] for run in runs if _is(run, variant, seeds)]
    at = [curve["step"].index(step) for curve in curves]
    top1, nll = (
      [curve[score][i] for curve, i in zip(curves, at, strict=True)] for score in ("top1", "nll")
    )
    percent = [100 * value for value in top1]
    rows.append((name, str(len(curves)), spread(percent, 2), spread(nll, 3)))
  header = ("run", "seeds", f"top-1 %, step {step:,}", "NLL")
  return record.markdown(header, rows, text_columns=1)


def reached(runs: Sequence[dict[str, Any]]) -> tuple[int | None, set[int]]:
  """The last step at which a seed is evaluated in every variant, and these seeds."""
  seeds_at = collections.defaultdict(lambda: collections.defaultdict(set))
  for run in runs:
    for step in next(iter(run["heads"].values()))["curve"]["step"]:
      seeds_at[step][run["variant"]].add(run["seed"])
  variants = {run["variant"] for run in runs}
  for step in sorted(seeds_at, reverse=True):
    seeds = set.intersection(*(seeds_at[step][variant] for variant in variants))
    if seeds:
      return step, seeds
  return None, set()


def _is(run: dict[str, Any], variant: str, seeds: set[int]) -> bool:
  return run["variant"] == variant and run["seed"] in seeds


def spread(values: Sequence[float], digits: int) -> str:
  """Mean and, of several, standard deviation."""
  mean = f"{statistics.mean(values):.{digits}f}"
  return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def draw(results: dict[str, Any], path: pathlib.Path) -> None:
  """Writes a PNG: of finished runs; while a variant has none, of all evaluations so far."""
  (draw_curves if _some_variant_is_unfinished(results) else draw_finished)(results, path)


def draw_curves(results: dict[str, Any], path: pathlib.Path) -> None:
  """Writes a PNG: top-1 by step, a line a seed."""
  figure, canvas = plot_figure(10, 4.5)
  axes = figure.add_subplot()
  runs = [*results["runs"], *results["stopped"]]
  handles = []
  for name, variant, head in rows_of(runs):
    line = {"color": HEADS[head][1], "linestyle": _STYLES.get(variant, ":"), "linewidth": 1.5}
    for run in runs:
      if run["variant"] == variant:
        curve = run["heads"][head]["curve"]
        axes.plot(curve["step"], [100 * value for value in curve["top1"]], marker=".", **line)
    handles.append(Line2D([], [], label=name, **line))
  plain_axes(axes, grid="y")
  axes.set_xlabel("step", color=GREY, fontsize=9)
  axes.set_ylabel("test top-1, %", color=GREY, fontsize=9)
  axes.set_title(f"{_title(results)}: a line a seed", **_TITLE)
  axes.legend(handles=handles, ncols=len(handles), **_LEGEND)
  save(canvas, path)


def draw_finished(results: dict[str, Any], path: pathlib.Path) -> None:
  """Writes a PNG: top-1 by run, a point a seed, the mean as a bar."""
  figure, canvas = plot_figure(10, 4.5)
  axes = figure.add_subplot()
  rows = rows_of(results["runs"])
  for x, (_, variant, head) in enumerate(rows):
    found, colour = of_row(results, variant, head), HEADS[head][1]
    for offset, kind, fill in ((-0.12, "last", colour), (0.12, "best", "white")):
      values = [100 * own[kind]["top1"] for own in found]
      places = [x + offset] * len(values)
      axes.scatter(places, values, s=36, facecolor=fill, edgecolor=colour, zorder=3)
      mean = statistics.mean(values)
      axes.hlines(mean, x + offset - 0.1, x + offset + 0.1, color=colour, linewidth=2)
  axes.set_xticks(range(len(rows)), [wrapped(name) for name, _, _ in rows], fontsize=8)
  axes.set_xlim(-0.5, len(rows) - 0.5)
  plain_axes(axes, grid="y")
  axes.set_ylabel("test top-1, %", color=GREY, fontsize=9)
  axes.set_title(f"{_title(results)}: a point a seed", **_TITLE)
  marks = [(f"{name} output", colour, colour) for name, colour in HEADS.values()]
  marks += [("last epoch", GREY, GREY), ("best epoch", GREY, "white")]
  handles = [
    Line2D([], [], marker="o", linestyle="", color=edge, markerfacecolor=fill, label=name)
    for name, edge, fill in marks
  ]
  axes.legend(handles=handles, ncols=4, **_LEGEND)
  save(canvas, path)


def _title(results: dict[str, Any]) -> str:
  return f"CIFAR-100, {results['backbone']}, {results['epochs']:g} epochs"


def wrapped(name: str) -> str:
  """A row's name in two lines."""
  return name.replace(": ", ":\n").replace(", half", ",\nhalf").replace(" + CutMix", "\n+ CutMix")


if __name__ == "__main__":
  record.run(main)
