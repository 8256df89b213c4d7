"""The runner of the CIFAR study: trains what is missing, records it once, and reports it."""

import argparse
import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from benchmarks import cifar, cifar_report, cifar_results
from configs.cifar_saol import get_config
from saol_jax.config import resolve
from saol_jax.errors import UserError
from saol_jax.train_step import loss_weights
from tests.support import ROOT

SETTINGS = {"dataset": "cifar100", "backbone": "wrn_40_2", "epochs": 10.0, "set": []}
# A training that takes as many steps of a tenth of a second as its file says are missing, and that
# saves how far it came.
CHILD = """
import pathlib, signal, sys, time
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(0))
path = pathlib.Path(sys.argv[1])
left = int(path.read_text())
while left:
  if stop:
    sys.exit(75)
  time.sleep(0.1)
  left -= 1
  path.write_text(str(left))
"""


def train(tmp_path, todo, *, seconds=600.0, jobs=1, stop=None):
  """Runs with the child above; returns what finished, what failed, and the most at once."""
  finished, stopped, started, most = [], [], [], [0]

  def start(run):
    path = tmp_path / str(run)
    if not path.exists():
      path.write_text(str(3 if run.seed == 0 else 50))
    if run.seed == 9:
      path.write_text("not a number")
    process = subprocess.Popen([sys.executable, "-c", CHILD, path], stderr=subprocess.DEVNULL)
    started.append(process)
    most[0] = max(most[0], sum(p.poll() is None for p in started))
    return process

  trained, failed = cifar.train_all(
    todo,
    start=start,
    finish=finished.append,
    interrupt=stopped.append,
    deadline=time.monotonic() + seconds,
    jobs=jobs,
    stop=stop or argparse.Namespace(requested=False),
  )
  assert all(process.poll() is not None for process in started)
  assert finished == trained
  assert not set(stopped) & set(trained + failed)
  return trained, failed, most[0]


def test_runs_are_trained_one_after_the_other_and_a_failed_one_stops_no_other(tmp_path):
  todo = [cifar.Run("gap", 9), cifar.Run("gap", 0), cifar.Run("saol", 0)]
  trained, failed, most = train(tmp_path, todo)
  assert (trained, failed, most) == (todo[1:], todo[:1], 1)


def test_two_at_once(tmp_path):
  todo = [cifar.Run(variant, 0) for variant in ("gap", "saol", "saol_sl")]
  trained, _, most = train(tmp_path, todo, jobs=2)
  assert sorted(map(str, trained)) == sorted(map(str, todo))
  assert most == 2


def test_time_limit_stops_the_run_that_is_going_on_and_starts_no_other(tmp_path, monkeypatch):
  monkeypatch.setattr(cifar, "_LEAST_SECONDS", 0.1)
  todo = [cifar.Run("gap", 1), cifar.Run("saol", 0)]
  trained, failed, _ = train(tmp_path, todo, seconds=1.0)
  assert (trained, failed) == ([], [])
  assert 0 < int((tmp_path / "gap_seed1").read_text()) < 50  # it went on from somewhere, and saved
  assert not (tmp_path / "saol_seed0").exists()
  monkeypatch.setattr(cifar, "_LEAST_SECONDS", 45.0)
  assert train(tmp_path, todo, seconds=44.0) == ([], [], 0)


def test_a_signal_stops_as_the_time_limit_does(tmp_path):
  class Stop:
    begin = time.monotonic()

    @property
    def requested(self):
      return time.monotonic() - self.begin > 0.7

  trained, failed, _ = train(tmp_path, [cifar.Run("gap", 1), cifar.Run("saol", 0)], stop=Stop())
  assert (trained, failed) == ([], [])
  assert not (tmp_path / "saol_seed0").exists()


def test_signals_set_the_flag():
  before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
  try:
    stop = cifar.StopFlag()
    assert not stop.requested
    signal.raise_signal(signal.SIGTERM)
    assert stop.requested
  finally:
    signal.signal(signal.SIGTERM, before[0])
    signal.signal(signal.SIGINT, before[1])


@pytest.mark.parametrize("variant", list(cifar.VARIANTS))
def test_each_variant_is_a_config_that_trains_one_loss_more(variant):
  config = get_config("cifar100,wrn_40_2")
  config.update_from_flattened_dict(cifar.VARIANTS[variant])
  resolve(config)
  expected = {
    "gap": ["classification"],
    "gap_cutmix": ["classification"],
    "saol_sl": ["spatial"],
    "saol_ss1": ["spatial", "mask"],
    "saol_ss2": ["spatial", "mask", "consistency"],
    "saol": ["spatial", "mask", "consistency", "distillation"],
    "saol_half_ss2": ["spatial", "mask", "consistency", "distillation"],
  }
  assert list(loss_weights(config)) == expected[variant]
  assert (config.cutmix.prob == 0) == (variant == "gap")


def write_workdir(folder):
  """As a run of 10 epochs with three evaluations leaves it, in two calls."""
  folder.mkdir(parents=True)
  config = get_config("cifar100,wrn_40_2")
  config.num_epochs = 10.0
  config.seed = 3
  config.data.data_dir = "/somewhere"
  (folder / "config.json").write_text(resolve(config).to_json())
  lines = [
    {"step": step, "time/images_per_second": rate, "time/data_wait_share": 1 / rate}
    for step, rate in ((100, 8), (200, 4))
  ]
  for i, (saol, gap) in enumerate(((0.5, 0.3), (0.7, 0.4), (0.6, 0.45))):
    evaluation = {"step": 100 * (i + 2), "time/elapsed_seconds": 10.0 * (i + 1)}
    for head, top1 in (("saol", saol), ("gap", gap)):
      scores = {"top1": top1, "top5": 1.0, "nll": 1 - top1, "ece": top1 / 10}
      evaluation |= {f"eval/{head}_{name}": value for name, value in scores.items()}
    lines.append(evaluation)
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  (folder / "calls.jsonl").write_text('{"commit": "a"}\n{"commit": "b"}\n')


def test_a_finished_run_is_recorded_with_its_last_and_its_best_epoch(tmp_path):
  write_workdir(tmp_path / "run")
  found = cifar_results.collect("saol", 3, tmp_path / "run")
  assert found["steps"] == 400
  assert found["seconds"] == 30.0
  assert found["images_per_second"] == 6
  assert found["data_wait_share"] == 3 / 16
  assert found["config"]["seed"] == 3
  assert found["config"]["cutmix.prob"] == 0.5
  assert "data.data_dir" not in found["config"]
  assert [call["commit"] for call in found["calls"]] == ["a", "b"]
  saol, gap = found["heads"]["saol"], found["heads"]["gap"]
  assert saol["last"] == {"epoch": 10.0, "top1": 0.6, "top5": 1.0, "nll": 0.4, "ece": 0.06}
  assert (saol["best"]["epoch"], saol["best"]["top1"], saol["best"]["nll"]) == (7.5, 0.7, 1 - 0.7)
  assert (gap["best"]["epoch"], gap["best"]["top1"]) == (10.0, 0.45)
  assert gap["curve"] == {
    "epoch": [5.0, 7.5, 10.0],
    "step": [200, 300, 400],
    "top1": [0.3, 0.4, 0.45],
    "nll": [0.7, 0.6, 0.55],
  }


def one_run(variant, seed, saol, gap):
  def scores(top1):
    return {
      name: {"epoch": 10.0, "top1": top1, "nll": 1.0, "ece": 0.02} for name in ("last", "best")
    }

  heads = {"gap": scores(gap)} | ({"saol": scores(saol)} if saol else {})
  return {
    "variant": variant,
    "seed": seed,
    "heads": heads,
    "seconds": 60.0,
    "images_per_second": 1234.5,
  }


def test_results_are_added_to_one_file_and_other_settings_are_refused(tmp_path):
  path = tmp_path / "results.json"
  assert cifar_results.load(path, SETTINGS)["runs"] == []
  for seed in (0, 1):
    cifar_results.append(path, SETTINGS, one_run("gap", seed, None, 0.5))
  assert [run["seed"] for run in cifar_results.load(path, SETTINGS)["runs"]] == [0, 1]
  with pytest.raises(UserError, match=r"holds runs with epochs=10.0; name another file"):
    cifar_results.load(path, SETTINGS | {"epochs": 200.0})
  path.write_text("[1]")
  with pytest.raises(UserError, match="is no results file"):
    cifar_results.load(path, SETTINGS)


def test_of_a_stopped_run_its_evaluations_are_kept_until_it_is_finished(tmp_path):
  path, workdir = tmp_path / "results.json", tmp_path / "run"
  workdir.mkdir()
  (workdir / "calls.jsonl").write_text("{}\n")
  assert cifar_results.collect_stopped("gap", 0, workdir) is None
  lines = [{"step": 10 * i, "eval/gap_top1": i / 10, "eval/gap_nll": 1 / i} for i in (1, 2)]
  log = "".join(json.dumps(line | {"time/elapsed_seconds": 3.0}) + "\n" for line in lines)
  (workdir / "metrics.jsonl").write_text(log)
  found = cifar_results.collect_stopped("gap", 0, workdir)
  assert found["heads"] == {
    "gap": {"curve": {"step": [10, 20], "top1": [0.1, 0.2], "nll": [1, 0.5]}}
  }
  for run in (found, found | {"seed": 1}, found | {"steps": 21}):  # the last in place of the first
    cifar_results.append_stopped(path, SETTINGS, run)
  stopped = cifar_results.load(path, SETTINGS)["stopped"]
  assert [(run["seed"], run["steps"]) for run in stopped] == [(1, 20), (0, 21)]
  cifar_results.append(path, SETTINGS, one_run("gap", 0, None, 0.5))
  assert [run["seed"] for run in cifar_results.load(path, SETTINGS)["stopped"]] == [1]


def test_stopped_runs_are_compared_at_a_step_that_all_have_and_by_the_same_seeds(tmp_path):
  def run(variant, seed, top1):
    steps = [100 * (i + 1) for i in range(len(top1))]
    curve = {"step": steps, "top1": top1, "nll": [1.0] * len(top1)}
    heads = ("gap",) if variant == "gap_cutmix" else ("saol", "gap")
    return {"variant": variant, "seed": seed, "heads": {head: {"curve": curve} for head in heads}}

  runs = [run("gap_cutmix", 0, [0.1, 0.2, 0.3]), run("gap_cutmix", 1, [0.2, 0.4])]
  runs += [run("saol", 0, [0.5, 0.6]), run("saol", 1, [0.7])]
  assert cifar_report.reached(runs) == (200, {0})
  assert cifar_report.reached([*runs[:1], runs[3]]) == (None, set())
  results = SETTINGS | {"runs": [], "stopped": runs}
  header, _, first, second, third = cifar_report.table(results).splitlines()
  assert "top-1 %, step 200" in header
  assert first.split("|")[1:4] == [" (b) GAP-FC + CutMix    ", "     1 ", "             20.00 "]
  assert "60.00" in second
  assert "60.00" in third
  cifar_report.draw(results, tmp_path / "plot.png")
  assert (tmp_path / "plot.png").stat().st_size > 10_000
  # A variant with finished runs is shown by these alone.
  ended = [one_run("gap", 2, None, 0.7), one_run("saol", 2, 0.8, 0.75)]
  cut_off = [stopped | {"variant": "gap"} for stopped in runs[:2]]
  assert "step" not in cifar_report.table(SETTINGS | {"runs": ended, "stopped": cut_off})


def test_table_and_plot_show_each_output_over_seeds(tmp_path):
  runs = [
    one_run("gap", 0, None, 0.7),
    one_run("saol", 0, 0.8, 0.75),
    one_run("saol", 1, 0.82, 0.75),
  ]
  results = SETTINGS | {"runs": runs}
  lines = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in cifar_report.table(results).splitlines()[2:]
  ]
  assert lines[0] == ["(a) GAP-FC", "1", "70.00", "70.00", "1.000", "2.00", "1,234", "1.0"]
  assert lines[1][:3] == ["(f) + L_SD: SAOL", "2", "81.00 ± 1.41"]  # sqrt(2)
  assert lines[2][:3] == ["(g) + L_SD: its GAP-FC", "2", "75.00 ± 0.00"]
  assert len(lines) == 3
  cifar_report.draw(results, tmp_path / "plot.png")
  assert (tmp_path / "plot.png").stat().st_size < 300_000
  picture = np.asarray(Image.open(tmp_path / "plot.png").convert("RGB")).reshape(-1, 3)
  for colour in ((9, 105, 218), (225, 111, 36)):  # SAOL, GAP-FC
    assert (picture == colour).all(1).sum() > 100


def test_readme_block_is_replaced():
  text = "a\n<!-- x.json -->\nold\n<!-- end of x.json -->\nb\n"
  new = cifar_report.replaced(text, "x.json", "new\ntable")
  assert new == text.replace("old", "new\ntable")
  assert cifar_report.replaced(new, "x.json", "old") == text
  with pytest.raises(UserError, match="lacks the lines"):
    cifar_report.replaced(text, "y.json", "new")


def test_command_is_that_of_main_py(tmp_path):
  options = argparse.Namespace(
    backbone="resnet8", epochs=2.0, data_dir="/data dir", set=["batch_size=64"], jobs=1
  )
  found = cifar.command(cifar.Run("gap", 2), options, tmp_path / "run")
  assert found[1] == str(ROOT / "main.py")
  assert found[2].endswith("configs/cifar_saol.py:cifar100,resnet8")
  for flag in ("seed=2", "num_epochs=2.0", "cutmix.prob=0.0", "model.head=gap", "batch_size=64"):
    assert f"--config.{flag}" in found
  assert "--config.data.data_dir=/data dir" in found


def test_bad_options_are_named(monkeypatch):
  for flags, message in ((["--jobs=0"], "--jobs=0"), (["--set", "seed"], "--set seed")):
    monkeypatch.setattr(sys, "argv", ["cifar.py", "--data_dir=x", *flags])
    with pytest.raises(UserError, match=re.escape(message)):
      cifar.parse()
