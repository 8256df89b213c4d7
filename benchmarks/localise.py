"""Which map finds the object best: the localisation of finished runs, side by side, over seeds.

  python main.py --config=configs/digits_saol.py --workdir=runs/a --config.data.validation=0.1
  python main.py ... --workdir=runs/b --config.seed=1
  python benchmarks/localise.py runs/a runs/b --output=benchmarks/results/localise_digits.json

Every run is scored by `--mode=localize` on the test split: GT-known localisation, the threshold of
each map chosen on another split, and MaxBoxAccV2, which by its definition takes the best threshold
of the test images. Runs whose configs differ in nothing but the seed are
one row: mean and standard deviation. The JSON holds each run's config, length and scores. Beside
the maps stands what a box around the whole image would score.
"""

import json
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import record
from benchmarks.command_line import make_parser
from saol_jax.config import differences
from saol_jax.data import Source
from saol_jax.data.loader import padded_batches
from saol_jax.experiment import Experiment
from saol_jax.localization import has_area
from saol_jax.localize import localize_workdir
from saol_jax.trained import restore_run
from saol_jax.wsol import BoxScores, overlaps

SCORES = {"GT-known": "gt_known", "MaxBoxAccV2": "max_box_acc_v2"}


def main() -> None:
  """Scores the runs, prints tables, writes JSON."""
  parser = make_parser(__doc__)
  parser.add_argument("runs", type=pathlib.Path, nargs="+", help="workdirs of finished runs")
  parser.add_argument("--maps", default="", help="with commas between; default: all of one pass")
  options = parser.parse_args()
  output, result = record.begin(options.output, "localise")
  result["runs"] = [score(workdir, options.maps) for workdir in options.runs]
  for run in result["runs"]:
    run["variant"] = variant(run["config"], result["runs"][0]["config"])
  print(table(result["runs"]))
  record.write(output, result)


def score(workdir: pathlib.Path, maps: str) -> dict[str, Any]:
  """What a run was, how well it classifies, and where it finds objects, for JSON."""
  config = restore_run(workdir).config
  config.localize.maps = maps
  localize_workdir(config, workdir)
  found = json.loads((workdir / "localization_test_latest.json").read_text())
  records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  last = {name: value for record in records for name, value in record.items()}
  whole = whole_image(Experiment(config).source("test"))
  described = config.to_dict()
  del described["data"]["data_dir"]  # where the data lies on this machine
  return {
    "workdir": workdir.name,
    "config": described,
    "top1": {name: last[name] for name in last if "top1" in name and not name.startswith("train/")},
    "whole_image": whole,
    **{name: found[name] for name in ("step", "num_images", "threshold_split", "maps")},
  }


def whole_image(source: Source) -> dict[str, float]:
  """The same scores with the whole image as the box, whatever the threshold."""
  scores = BoxScores()
  for batch in padded_batches(source, 250, source.boxed):
    everywhere = np.ones(batch["image"].shape[1:3], np.float32)
    for box in batch["box"][(batch["mask"] > 0) & has_area(batch["box"])]:
      scores.add_overlaps(overlaps(everywhere, box), top1=False, top5=False)
  found = scores.at(0.0) | scores.best()
  return {key: found[key] for key in SCORES.values()}


def variant(config: dict[str, Any], first: dict[str, Any]) -> str:
  """How a run's config differs from the first one's, in what is not its seed or its watching."""
  changed = differences(*(ml_collections.ConfigDict(part) for part in (first, config)))
  return ", ".join(f"{k}={new}" for k, (_, new) in changed.items() if k != "seed") or "as first"


def table(runs: Sequence[dict[str, Any]]) -> str:
  """A Markdown table: variants x maps, percent, over seeds."""
  rows = []
  for name in dict.fromkeys(run["variant"] for run in runs):
    same = [run for run in runs if run["variant"] == name]
    for map_name in [*same[0]["maps"], "whole image"]:
      found = [{**run["maps"], "whole image": run["whole_image"]}[map_name] for run in same]
      cells = [spread([100 * scores[key] for scores in found]) for key in SCORES.values()]
      rows.append([name, str(len(same)), map_name, *cells])
  header = ["variant", "seeds", "map", *(f"{score}, %" for score in SCORES)]
  return record.markdown(header, rows, text_columns=3)


def spread(values: Sequence[float]) -> str:
  """Mean and, of several, standard deviation."""
  mean = f"{statistics.mean(values):.1f}"
  return f"{mean} +- {statistics.stdev(values):.1f}" if len(values) > 1 else mean


if __name__ == "__main__":
  record.run(main)
