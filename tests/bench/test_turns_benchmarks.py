"""Benchmarks of training steps, but for step.py: what they print follows from the times."""

import json

import numpy as np
import pytest

from benchmarks import compiler, end_to_end, step_parts
from tests.support import mesh_of, table_rows

SIZES = ["--image_size=16", "--num_classes=3", "--width=4", "--batch_size=4"]
QUICK = [*SIZES, "--rounds=2", "--seconds=0.1"]


def result_of(main, monkeypatch, path, *options: str) -> dict:
  monkeypatch.setattr("sys.argv", ["benchmark", *options, f"--output={path}"])
  main()
  return json.loads(path.read_text())


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
  monkeypatch.setattr("saol_jax.experiment.data_mesh", lambda: mesh_of(1))


def test_parts_of_a_step_add_up(monkeypatch, tmp_path, capsys):
  result = result_of(step_parts.main, monkeypatch, tmp_path / "x.json", *QUICK, "--matrix_size=64")
  parts, programs = result["parts"], result["programs"]
  assert list(parts) == list(step_parts.PARTS)
  *others, whole = parts.values()
  for key in ("seconds", "share"):
    summed = np.sum([own[key]["rounds"] for own in others], 0)
    np.testing.assert_allclose(summed, whole[key]["rounds"])
  np.testing.assert_allclose(whole["share"]["rounds"], 1)
  assert sum(own["flops"] for own in others) == pytest.approx(whole["flops"])
  assert whole["flops"] == programs["step"]["flops"]
  forward, unmixed = parts["trunk, forward"], parts["unmixed forward pass, L_SS2"]
  assert parts["trunk, backward; GAP-FC's loss"]["flops"] == pytest.approx(
    2 * forward["flops"], rel=0.15
  )
  assert unmixed["flops"] > forward["flops"]  # with the head
  rate = whole["flops"] / whole["seconds"]["median"] / result["matrix_flops_per_second"]
  assert whole["utilisation"] == pytest.approx(rate)
  printed = table_rows(capsys.readouterr().out)
  assert [row[0] for row in printed] == list(parts)
  assert printed[-1][1:3] == [f"{1000 * whole['seconds']['median']:.2f}", "100.0 %"]


def test_compiler_options_are_compared_inside_rounds(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(compiler, "HEADS", ("gap",))  # the quicker one to compile
  result = result_of(compiler.main, monkeypatch, tmp_path / "x.json", *QUICK)
  assert list(result["timing"]) == ["gap training", "gap inference"]
  printed = table_rows(capsys.readouterr().out)
  for row, own in zip(printed, result["timing"].values(), strict=True):
    ratios = np.divide(own["with_seconds"]["rounds"], own["without_seconds"]["rounds"])
    np.testing.assert_allclose(own["ratio"]["rounds"], ratios)
    assert row[-1] == f"{np.median(ratios):.2f} ({ratios.min():.2f}-{ratios.max():.2f})"


def test_a_run_is_compared_with_its_bare_step(monkeypatch, tmp_path, capsys):
  fields = ["batch_size=16", "eval_batch_size=400", "model.norm_group=4", "figures=False"]
  options = ["--config=configs/digits_saol.py:gap", "--steps=12", "--set", *fields]
  result = result_of(end_to_end.main, monkeypatch, tmp_path / "x.json", *options)
  rates = result["images_per_second"]
  assert {name: len(found) for name, found in rates.items()} == {"before": 6, "run": 5, "after": 6}
  before, run, after = (np.median(rates[name]) for name in ("before", "run", "after"))
  assert result["run_over_bare"] == pytest.approx(2 * run / (before + after))
  printed = table_rows(capsys.readouterr().out)
  assert printed[1] == ["run", f"{run:.0f}", f"{result['run_over_bare']:.2f}"]


def test_a_recipe_is_read_as_main_py_reads_it():
  config = end_to_end.read_config("configs/cifar_saol.py:cifar10,gap", {"batch_size": "64"})
  assert (config.data.name, config.model.head, config.batch_size) == ("cifar10", "gap", 64)
