"""The results file of benchmarks/cifar.py, and what a finished run adds to it."""

import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

import ml_collections

from benchmarks import record
from saol_jax.config import default_config, differences
from saol_jax.errors import UserError
from saol_jax.runlog import read_records

_CURVE_DIGITS = 5


def load(path: pathlib.Path, expected: dict[str, Any]) -> dict[str, Any]:
  """The results so far; none where there is no file.

  Raises:
    UserError: it holds runs of other settings, or something else.
  """
  if not path.exists():
    return {**expected, "runs": []}
  try:
    results = json.loads(path.read_text())
    found = {name: results[name] for name in (*expected, "runs")}
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"--output={path} is no results file of this script: {error!r}") from error
  other = [f"{name}={found[name]!r}" for name in expected if found[name] != expected[name]]
  if other:
    raise UserError(f"--output={path} holds runs with {', '.join(other)}; name another file")
  return results


def append(path: pathlib.Path, expected: dict[str, Any], run: dict[str, Any]) -> None:
  """Adds a finished run to the results file."""
  results = load(path, expected)
  results["runs"].append(run)
  record.write(path, results)


def collect(variant: str, seed: int, workdir: pathlib.Path) -> dict[str, Any]:
  """What a finished run's workdir says of it, for JSON."""
  records = read_records(workdir / "metrics.jsonl")
  evaluations = [line for line in records if any(key.startswith("eval/") for key in line)]
  config = ml_collections.ConfigDict(json.loads((workdir / "config.json").read_text()))
  changed = differences(default_config(), config)
  last = records[-1]["step"]
  epochs = [round(config.num_epochs * line["step"] / last, 2) for line in evaluations]
  heads = [head for head in ("saol", "gap") if f"eval/{head}_top1" in evaluations[-1]]
  return {
    "variant": variant,
    "seed": seed,
    "config": {name: new for name, (_, new) in changed.items()},
    "steps": last,
    "seconds": records[-1]["time/elapsed_seconds"],
    "images_per_second": statistics.median(
      line["time/images_per_second"] for line in records if "time/images_per_second" in line
    ),
    "heads": {head: scores(head, epochs, evaluations) for head in heads},
    "calls": [json.loads(line) for line in (workdir / "calls.jsonl").read_text().splitlines()],
  }


def scores(
  head: str, epochs: Sequence[float], evaluations: Sequence[dict[str, float]]
) -> dict[str, Any]:
  """Of one head: after the last epoch, at its own best evaluation (the first such), and all."""
  own = [
    {key.removeprefix(f"eval/{head}_"): v for key, v in e.items() if key.startswith(f"eval/{head}")}
    for e in evaluations
  ]
  best = max(range(len(own)), key=lambda i: own[i]["top1"])
  curves = {
    name: [round(values[name], _CURVE_DIGITS) for values in own] for name in ("top1", "nll")
  }
  return {
    "last": {"epoch": epochs[-1], **own[-1]},
    "best": {"epoch": epochs[best], **own[best]},
    "curve": {"epoch": list(epochs), **curves},
  }
