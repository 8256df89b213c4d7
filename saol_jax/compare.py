"""Several runs side by side, as a table and a picture.

  python -m saol_jax.compare runs/* --output=comparison.png

Runs whose configs differ in nothing but the seed are one row, with the mean of their last
evaluations and the standard deviation over seeds, and have one colour in the picture. A row is
called by the fields that it does not share with all others.
"""

import argparse
import itertools
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from saol_jax import command_line
from saol_jax.config import WATCHING, flat
from saol_jax.console import say
from saol_jax.curves import COLOURS
from saol_jax.drawing import GREY, HEADS, INK, plain_axes, plot_figure, save
from saol_jax.errors import UserError
from saol_jax.experiment import data_title
from saol_jax.image_files import printable
from saol_jax.runlog import read_records
from saol_jax.trained import read_config

logger = logging.getLogger("saol_jax.compare")  # also where this is the main module

_SCORES = ("saol_top1", "gap_top1", "saol_nll", "gap_nll")
_NOT_COMPUTED = (*WATCHING, "seed")


class Run(NamedTuple):
  """A run: its workdir and seed, and the lines of its log that hold an evaluation."""

  workdir: pathlib.Path
  seed: int
  evaluations: list[dict[str, float]]


def read_groups(workdirs: Sequence[str | os.PathLike]) -> dict[str, list[Run]]:
  """Reads runs, finished or going on, and puts those together that differ in the seed alone.

  What is no run, was not evaluated yet, or was named before is left out with a warning.

  Returns:
    The runs of each group, by the fields that it does not share with all groups.

  Raises:
    UserError: no run is left, or one cannot be read.
  """
  found: list[tuple[dict[str, object], list[Run]]] = []
  seen: set[pathlib.Path] = set()
  for workdir in map(pathlib.Path, workdirs):
    if workdir.resolve() in seen:
      logger.warning("Left out %s: it is there already", printable(workdir))
      continue
    seen.add(workdir.resolve())
    if not (workdir / "config.json").exists():
      logger.warning("Left out %s: no run is there", printable(workdir))
      continue
    config = read_config(workdir / "config.json")
    fields = {name: value for name, value in flat(config).items() if name not in _NOT_COMPUTED}
    if config.data.name == "folder":
      fields["data.data_dir"] = data_title(config)
    records = read_records(workdir / "metrics.jsonl")
    evaluations = [line for line in records if any(name.startswith("eval/") for name in line)]
    if not evaluations:
      logger.warning("Left out %s: it has not been evaluated yet", printable(workdir))
      continue
    runs = next((runs for others, runs in found if others == fields), None)
    if runs is None:
      found.append((fields, runs := []))
    if any(config.seed == run.seed for run in runs):
      logger.warning(
        "%s has the seed of another run of its row, and counts beside it", printable(workdir)
      )
    runs.append(Run(workdir, config.seed, evaluations))
  if not found:
    raise UserError("there is nothing to compare; expected workdirs of runs, such as runs/*")
  (first, _), absent = found[0], "(absent)"
  names = dict.fromkeys(name for fields, _ in found for name in fields)
  differing = [
    name
    for name in names
    if any(fields.get(name, absent) != first.get(name, absent) for fields, _ in found)
  ]
  return {
    " ".join(f"{name}={fields.get(name, absent)}" for name in differing) or "all alike": runs
    for fields, runs in found
  }


def table(groups: Mapping[str, Sequence[Run]]) -> str:
  """Aligned columns: fields, number of runs, steps, and the scores of the last evaluations.

  With `data.validation` those are `eval/` of held-out images, and `test/` once a run has ended.
  """
  last = {name: [run.evaluations[-1] for run in runs] for name, runs in groups.items()}
  found = set().union(*(line for lines in last.values() for line in lines))
  columns = itertools.product(("eval/", "test/"), _SCORES, ("", "ema_"))
  keys = [f"{split}{average}{score}" for split, score, average in columns]
  keys = [key for key in keys if key in found]
  rows = [["", "runs", "steps", *keys]]
  for name, lines in last.items():
    steps = sorted({line["step"] for line in lines})
    scores = [_mean([line[key] for line in lines if key in line], key) for key in keys]
    rows.append([name, str(len(lines)), "-".join(map(str, {steps[0]: 0, steps[-1]: 0})), *scores])
  first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
  return "\n".join(
    "  ".join([name.ljust(first), *(map(str.rjust, cells, others))]) for name, *cells in rows
  )


def draw(path: str | os.PathLike, groups: Mapping[str, Sequence[Run]]) -> None:
  """Writes a PNG: top-1 of each head over the steps, a colour a group, a line a run."""
  heads = [head for head in HEADS if any(_curves(runs, head) for runs in groups.values())]
  figure, canvas = plot_figure(6.5 * len(heads), 5)
  for place, head in enumerate(heads, start=1):
    axes = figure.add_subplot(1, len(heads), place)
    for (name, runs), colour in zip(groups.items(), itertools.cycle(COLOURS), strict=False):
      look = {"color": colour, "linewidth": 1.4, "marker": "o", "markersize": 3}
      for curve in _curves(runs, head):
        axes.plot(*curve, label=name, **look)
        name = "_"  # a group has one entry in the legend
    plain_axes(axes, size=9)
    axes.set_xlim(left=0)
    axes.set_title(f"{HEADS[head][0]}, evaluation top-1, %", loc="left", color=INK, fontsize=12)
    axes.set_xlabel("steps", color=GREY, fontsize=9)
    for text in axes.legend(frameon=False, fontsize=8, labelcolor=INK).get_texts():
      text.set_parse_math(False)
  save(canvas, path)


def _curves(runs: Sequence[Run], head: str) -> list[tuple[list[float], list[float]]]:
  """Steps and top-1 in percent of each run that has this head; of the moving average if kept."""
  curves = []
  for run in runs:
    averaged = f"eval/ema_{head}_top1"
    key = averaged if averaged in run.evaluations[-1] else f"eval/{head}_top1"
    points = [(line["step"], 100 * line[key]) for line in run.evaluations if key in line]
    if points:
      curves.append(tuple(map(list, zip(*points, strict=True))))
  return curves


def _mean(values: Sequence[float], key: str) -> str:
  """Mean and standard deviation; of shares in percent."""
  if not values:
    return ""
  scale, digits = (100, 2) if key.endswith("_top1") else (1, 3)
  with np.errstate(invalid="ignore"):  # a likelihood may be infinite
    numbers = [np.mean(values), *([np.std(values, ddof=1)] if len(values) > 1 else [])]
  return " ± ".join(f"{scale * number:.{digits}f}" for number in numbers)


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m saol_jax.compare", description=__doc__.partition("\n")[0]
  )
  parser.add_argument("workdirs", nargs="+", help="folders of runs, finished or going on")
  parser.add_argument("--output", help="a PNG for the curves (default: none)")
  options = parser.parse_args()

  def compare() -> None:
    output = pathlib.Path(options.output).expanduser() if options.output else None
    if output and (output.suffix.lower() != ".png" or output.is_dir()):
      raise UserError(f"--output={output}; expected the name of a file that ends in .png")
    groups = read_groups(options.workdirs)
    say(table(groups))
    if output:
      try:
        output.parent.mkdir(parents=True, exist_ok=True)
        draw(output, groups)
      except OSError as error:
        raise UserError(
          f"--output={output} cannot be written ({error.strerror}: {error.filename}); name a file "
          "in a folder that you may write to"
        ) from error
      say(f"written to {output}")

  command_line.run(compare)


if __name__ == "__main__":
  main()
