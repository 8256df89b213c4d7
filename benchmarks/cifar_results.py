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
_CURVES = ("top1", "nll")  # that are kept of all evaluations


def load(path: pathlib.Path, expected: dict[str, Any]) -> dict[str, Any]:
  """The results so far; none where there is no file.

  Raises:
    UserError: it holds runs of other settings, or something else.
  """
  if not path.exists():
    return {**expected, "runs": [], "stopped": []}
  try:
    results = json.loads(path.read_text())
    found = {name: results[name] for name in (*expected, "runs")}
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"--output={path} is no results file of this script: {error!r}") from error
  other = [f"{name}={found[name]!r}" for name in expected if found[name] != expected[name]]
  if other:
    raise UserError(f"--output={path} holds runs with {', '.join(other)}; name another file")
  return {"stopped": [], **results}


def append(path: pathlib.Path, expected: dict[str, Any], run: dict[str, Any]) -> None:
  """Adds a finished run to the results file."""
  results = load(path, expected)
  results["runs"].append(run)
  results["stopped"] = [stopped for stopped in results["stopped"] if not _same(stopped, run)]
  record.write(path, results)


def append_stopped(path: pathlib.Path, expected: dict[str, Any], run: dict[str, Any]) -> None:
  """Adds what is known of a run that was stopped, in place of what was known of it before."""
  results = load(path, expected)
  others = [stopped for stopped in results["stopped"] if not _same(stopped, run)]
  results["stopped"] = [*others, run]
  record.write(path, results)


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
  return all(one[name] == other[name] for name in ("variant", "seed"))


def collect_stopped(variant: str, seed: int, workdir: pathlib.Path) -> dict[str, Any] | None:
  """What the workdir of a run says that is not finished; None before its first evaluation."""
  path = workdir / "metrics.jsonl"
  records = read_records(path) if path.exists() else []
  evaluations = _evaluations(records)
  if not evaluations:
    return None
  heads = _heads(evaluations)
  return {
    "variant": variant,
    "seed": seed,
    "steps": records[-1]["step"],
    "seconds": records[-1]["time/elapsed_seconds"],
    "heads": {head: {"curve": _curve(_of_head(head, evaluations))} for head in heads},
    "calls": _calls(workdir),
  }


def collect(variant: str, seed: int, workdir: pathlib.Path) -> dict[str, Any]:
  """What a finished run's workdir says of it, for JSON."""
  records = read_records(workdir / "metrics.jsonl")
  evaluations = _evaluations(records)
  config = ml_collections.ConfigDict(json.loads((workdir / "config.json").read_text()))
  changed = differences(default_config(), config)
  last = records[-1]["step"]
  epochs = [round(config.num_epochs * line["step"] / last, 2) for line in evaluations]
  return {
    "variant": variant,
    "seed": seed,
    "config": {name: new for name, (_, new) in changed.items()},
    "steps": last,
    "seconds": records[-1]["time/elapsed_seconds"],
    **{name: _median(records, f"time/{name}") for name in ("images_per_second", "data_wait_share")},
    "heads": {head: scores(head, epochs, evaluations) for head in _heads(evaluations)},
    "calls": _calls(workdir),
  }


def _median(records: Sequence[dict[str, Any]], name: str) -> float:
  return statistics.median(line[name] for line in records if name in line)


def scores(
  head: str, epochs: Sequence[float], evaluations: Sequence[dict[str, float]]
) -> dict[str, Any]:
  """Of one head: after the last epoch, at its own best evaluation (the first such), and all."""
  own = _of_head(head, evaluations)
  best = max(range(len(own)), key=lambda i: own[i]["top1"])
  return {
    "last": {"epoch": epochs[-1], **_scores(own[-1])},
    "best": {"epoch": epochs[best], **_scores(own[best])},
    "curve": {"epoch": list(epochs), **_curve(own)},
  }


def _evaluations(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  return [line for line in records if any(key.startswith("eval/") for key in line)]


def _heads(evaluations: Sequence[dict[str, Any]]) -> list[str]:
  return [head for head in ("saol", "gap") if f"eval/{head}_top1" in evaluations[-1]]


def _of_head(head: str, evaluations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """A head's scores at each evaluation, and the step."""
  prefix = f"eval/{head}_"
  return [
    {"step": line["step"]}
    | {key.removeprefix(prefix): v for key, v in line.items() if key.startswith(prefix)}
    for line in evaluations
  ]


def _scores(evaluation: dict[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in evaluation.items() if name != "step"}


def _curve(own: Sequence[dict[str, Any]]) -> dict[str, list]:
  scores = {name: [round(values[name], _CURVE_DIGITS) for values in own] for name in _CURVES}
  return {"step": [values["step"] for values in own], **scores}


def _calls(workdir: pathlib.Path) -> list[dict[str, Any]]:
  return [json.loads(line) for line in (workdir / "calls.jsonl").read_text().splitlines()]
