"""Accuracy on CIFAR-100: GAP-FC, and SAOL with one loss after the other, over seeds.

  python benchmarks/cifar.py --data_dir=DIR --seeds 0 1 2
  python benchmarks/cifar.py --data_dir=DIR --backbone=wrn_28_10 --time_limit=540
  python benchmarks/cifar_report.py benchmarks/results/cifar100_wrn_40_2_DEVICE.json

All runs have the recipe of configs/cifar_saol.py but for what VARIANTS says, and 200 epochs. Each
is a `main.py` of its own with a workdir of its own. They are trained back to back, all variants of
one seed before the next seed. After --time_limit seconds, or when asked to stop, the run that is
going on saves its state; the same command goes on from there, and on another machine too if the
workdir is taken along. A finished run is recorded once, with its scores after the last epoch and at
the best of its evaluations; from then on its workdir is needed no more. Of a stopped one the
evaluations so far are recorded.

"Best" is chosen on the test split, as the literature does: it flatters every run a little.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import cifar_report, cifar_results, record
from benchmarks.command_line import make_parser, parse_fields, run_of
from saol_jax.errors import Stopped, UserError

# Each has what the one before has, and one thing more, up to "saol", which gives both (f) and (g).
VARIANTS = {
  "gap": {"model.head": "gap", "cutmix.prob": 0.0},
  "gap_cutmix": {"model.head": "gap"},
  "saol_sl": {
    "loss.mask_weight": 0.0,
    "loss.consistency_weight": 0.0,
    "loss.distillation_weight": 0.0,
  },
  "saol_ss1": {"loss.consistency_weight": 0.0, "loss.distillation_weight": 0.0},
  "saol_ss2": {"loss.distillation_weight": 0.0},
  "saol": {},
  "saol_half_ss2": {"loss.consistency_every": 2},
}

_LEAST_SECONDS = 45.0  # a run is not started with less time left
_POLL_SECONDS = 0.2
_GPU_SHARE = 0.9  # of its memory, for all jobs together


@dataclasses.dataclass(frozen=True)
class Run:
  """One training: a variant with a seed."""

  variant: str
  seed: int

  def __str__(self) -> str:
    return f"{self.variant}_seed{self.seed}"


def main() -> None:
  """Trains what is not in the results file yet, as far as time allows."""
  begin = time.monotonic()
  options = parse()
  output, device = record.begin(options.output, f"cifar100_{options.backbone}", apart=True)
  results = cifar_results.load(output, settings(options))
  runs = [Run(variant, seed) for seed in options.seeds for variant in options.variants]
  finished = {(run["variant"], run["seed"]) for run in results["runs"]}
  todo = [run for run in runs if (run.variant, run.seed) not in finished]
  print(f"{len(runs) - len(todo)} of {len(runs)} runs are in {output}", flush=True)

  stop = StopFlag()
  trained, failed = train_all(
    todo,
    start=lambda run: start(run, options, device),
    finish=lambda run: cifar_results.append(
      output,
      settings(options),
      cifar_results.collect(run.variant, run.seed, options.workdirs / str(run)),
    ),
    interrupt=lambda run: keep_curve(run, output, options),
    deadline=begin + options.time_limit,
    jobs=options.jobs,
    stop=stop,
  )
  left = [str(run) for run in todo if run not in trained + failed]
  results = cifar_results.load(output, settings(options))
  if results["runs"] or results["stopped"]:
    print(f"\n{cifar_report.table(results)}\n")
  if failed:
    logs = ", ".join(str(options.workdirs / str(run) / "log.txt") for run in failed)
    raise UserError(f"{len(failed)} runs failed; the reasons are at the end of {logs}")
  if left:
    print(f"{len(left)} runs are left: {', '.join(left)}. The same command goes on with them.")
  if stop.requested and left:
    sys.exit(Stopped.code)


def parse() -> argparse.Namespace:
  """The command line."""
  parser = make_parser(__doc__)
  parser.add_argument("--data_dir", required=True, help="see configs/cifar_saol.py")
  parser.add_argument("--backbone", default="wrn_40_2")
  parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("--epochs", type=float, default=200.0)
  parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="for all runs")
  parser.add_argument("--workdirs", type=pathlib.Path, help="default: runs/cifar100_BACKBONE")
  parser.add_argument("--time_limit", type=float, default=float("inf"), help="seconds")
  parser.add_argument("--jobs", type=int, default=1, help="runs that are trained at once")
  options = parser.parse_args()
  options.workdirs = options.workdirs or record.ROOT / "runs" / f"cifar100_{options.backbone}"
  if options.jobs < 1:
    raise UserError(f"--jobs={options.jobs}; expected 1 or more")
  parse_fields(options.set)  # before anything is trained
  return options


def settings(options: argparse.Namespace) -> dict[str, Any]:
  """What all runs of one results file share."""
  return {
    "dataset": "cifar100",
    "backbone": options.backbone,
    "epochs": options.epochs,
    "set": sorted(options.set),
  }


class StopFlag:
  """Set by SIGTERM and SIGINT."""

  def __init__(self):
    self.requested = False
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._set)

  def _set(self, *_) -> None:
    self.requested = True


def train_all(
  todo: Sequence[Run],
  *,
  start: Callable[[Run], subprocess.Popen],
  finish: Callable[[Run], None],
  interrupt: Callable[[Run], None],
  deadline: float,
  jobs: int,
  stop: StopFlag,
) -> tuple[list[Run], list[Run]]:
  """Trains runs in their order, `jobs` at once, until the time is over or a stop is asked for.

  Args:
    todo: the runs.
    start: starts one.
    finish: called after its end.
    interrupt: called after it was stopped.
    deadline: by time.monotonic(); then runs that are going on get SIGTERM, and are waited for.
    jobs: how many at once.
    stop: ends everything in the same way.

  Returns:
    The runs that are finished, and those that failed. A stopped run is neither.
  """
  waiting, active = collections.deque(todo), {}
  trained, failed = [], []
  told = False
  while waiting or active:
    left = deadline - time.monotonic()
    while waiting and len(active) < jobs and left > _LEAST_SECONDS and not stop.requested:
      run = waiting.popleft()
      active[run] = start(run)
      print(f"{run}: started", flush=True)
    if not active:
      break
    if (left <= 0 or stop.requested) and not told:
      told = True
      for process in active.values():
        process.send_signal(signal.SIGTERM)
    for run, process in list(active.items()):
      code = process.poll()
      if code is None:
        continue
      del active[run]
      if code == 0:
        finish(run)
        trained.append(run)
      elif code == Stopped.code:
        interrupt(run)
      else:
        failed.append(run)
      outcome = {0: "finished", Stopped.code: "stopped, its state is saved"}
      print(f"{run}: {outcome.get(code, f'failed with exit code {code}')}", flush=True)
    time.sleep(_POLL_SECONDS)
  return trained, failed


def keep_curve(run: Run, output: pathlib.Path, options: argparse.Namespace) -> None:
  """Records how far a stopped run came."""
  found = cifar_results.collect_stopped(run.variant, run.seed, options.workdirs / str(run))
  if found:
    cifar_results.append_stopped(output, settings(options), found)


def start(run: Run, options: argparse.Namespace, described: dict[str, Any]) -> subprocess.Popen:
  """Starts a run, or goes on with it; its output goes to log.txt in its workdir."""
  workdir = options.workdirs / str(run)
  workdir.mkdir(parents=True, exist_ok=True)
  with (workdir / "calls.jsonl").open("a") as file:
    file.write(json.dumps(described) + "\n")
  environment = dict(os.environ)
  cache = str((options.workdirs / "compiled").absolute())
  environment.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
  if options.jobs > 1:
    environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{_GPU_SHARE / options.jobs:.3f}")
  with (workdir / "log.txt").open("a") as log:
    return subprocess.Popen(
      command(run, options, workdir), stdout=log, stderr=subprocess.STDOUT, env=environment
    )


def command(run: Run, options: argparse.Namespace, workdir: pathlib.Path) -> list[str]:
  """The call of main.py."""
  fields = {
    "seed": run.seed,
    "num_epochs": options.epochs,
    "figures": False,
    "data.data_dir": options.data_dir,
    **VARIANTS[run.variant],
    **parse_fields(options.set),
  }
  return run_of(f"configs/cifar_saol.py:cifar100,{options.backbone}", workdir, fields)


if __name__ == "__main__":
  record.run(main)
