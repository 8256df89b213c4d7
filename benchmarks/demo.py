"""The demo's numbers: SAOL and the GAP-FC baseline with the same recipe and seeds, from scratch.

Labels, and places: GT-known localisation of every map, its threshold chosen on training scenes.
Beside the JSON lies the picture of predictions that the first run of SAOL drew.

  python benchmarks/demo.py --seeds 0 1 2

Each run is a `main.py` of its own, timed as a whole, with compilation and pictures.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

if __package__ in (None, ""):  # started as a file
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import record
from benchmarks.command_line import make_parser, run_of

RECIPES = {"SAOL": "saol", "GAP-FC baseline": "gap"}


def main() -> None:
  """Trains, prints a table, writes JSON."""
  parser = make_parser(__doc__)
  parser.add_argument("--seeds", type=int, nargs="+", default=[0])
  parser.add_argument("--steps", type=int, help="other than the recipe's, for a quick look")
  parser.add_argument("--maps", default="", help="with commas between; default: all")
  options = parser.parse_args()
  output, described = record.begin(options.output, "demo", apart=True)

  runs = []
  for seed in options.seeds:
    for name, argument in RECIPES.items():
      fields = {"seed": seed, "localize.maps": options.maps}
      if options.steps:
        fields["num_train_steps"] = options.steps
      picture = None if runs else output.with_suffix(".png")
      runs.append({"name": name, "seed": seed, **train(argument, fields, picture)})
      print(f"{name}, seed {seed}: {runs[-1]['seconds']:.0f} s", flush=True)

  scores = ("saol_top1", "gap_top1")
  rows = [
    [run["name"], str(run["seed"])]
    + [f"{100 * run[score]:.2f} %" if score in run else "" for score in scores]
    + [f"{run['seconds']:.0f} s", f"{run['images_per_second']:.0f}"]
    for run in runs
  ]
  header = ["run", "seed", "SAOL top-1", "GAP-FC top-1", "whole run", "images/s"]
  print("\n" + record.markdown(header, rows, text_columns=1))
  rows = [
    [run["name"], str(run["seed"]), name, f"{scores['threshold']:.3f}"]
    + [f"{100 * scores[score]:.1f} %" for score in ("gt_known", "top1_loc", "max_box_acc_v2")]
    for run in runs
    for name, scores in run["localization"].items()
  ]
  header = ["run", "seed", "map", "threshold", "GT-known", "top-1 loc", "MaxBoxAccV2"]
  print("\n" + record.markdown(header, rows, text_columns=3))
  record.write(output, {"run": described, "runs": runs})


def train(
  argument: str, fields: Mapping[str, Any], picture: pathlib.Path | None
) -> dict[str, float]:
  """One run through main.py: scores after its last step, wall time, median speed, maps.

  Its picture of predictions is kept as `picture`.
  """
  with tempfile.TemporaryDirectory() as workdir:
    command = run_of(f"configs/digits_saol.py:{argument}", workdir, fields)
    fresh = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    start = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=fresh)
    seconds = time.monotonic() - start
    subprocess.run([*command, "--mode=localize"], check=True, stdout=subprocess.DEVNULL)
    found = json.loads((pathlib.Path(workdir) / "localization_test_latest.json").read_text())
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    if picture:
      shutil.copy(pathlib.Path(workdir) / "predictions.png", picture)
  records = [json.loads(line) for line in lines]
  rates = sorted(r["time/images_per_second"] for r in records if "time/images_per_second" in r)
  final = {k.removeprefix("eval/"): v for k, v in records[-1].items() if k.startswith("eval/")}
  speed = {"seconds": seconds, "images_per_second": rates[len(rates) // 2]}
  return {**final, **speed, "localization": found["maps"]}


if __name__ == "__main__":
  record.run(main)
