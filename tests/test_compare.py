"""Runs side by side: which belong together, and what is said of them."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from saol_jax.compare import draw, read_groups, table
from saol_jax.config import resolve
from saol_jax.errors import UserError
from tests.support import run, tiny_config


def write(folder, top1, **changes):
  """What `compare` reads of a run: two evaluations, the second with these scores of the heads."""
  folder.mkdir()
  config = resolve(tiny_config(**changes))
  (folder / "config.json").write_text(json.dumps(config.to_dict()))
  scores = {f"eval/{head}_top1": value for head, value in top1.items()}
  lines = [
    {"step": 5, "train/loss": 3.0},
    {"step": 10, **{name: value / 2 for name, value in scores.items()}},
    {"step": 20, "train/loss": 2.0},
    {"step": 20, **scores},
  ]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return folder


@pytest.fixture
def study(tmp_path):
  """Two seeds of SAOL, one of them looked at otherwise, and one run of the baseline."""
  write(tmp_path / "a", {"saol": 0.80, "gap": 0.70})
  write(tmp_path / "b", {"saol": 0.84, "gap": 0.72}, seed=1, log_every_steps=2)
  write(tmp_path / "c", {"gap": 0.60}, model__head="gap")
  return tmp_path


def test_seeds_are_one_row_and_what_differs_is_its_name(study, caplog):
  (study / "d").mkdir()
  unfinished = write(study / "e", {"gap": 0.1}, seed=7)
  (unfinished / "metrics.jsonl").write_text('{"step": 4, "train/loss": 1.0}\n')
  groups = read_groups(sorted(study.iterdir()))
  assert {name: [r.workdir.name for r in runs] for name, runs in groups.items()} == {
    "model.head=saol": ["a", "b"],
    "model.head=gap": ["c"],
  }
  assert "d: no run is there" in caplog.text
  assert "e: it has not been evaluated yet" in caplog.text
  assert list(read_groups([study / "a", study / "b"])) == ["all alike"]
  with pytest.raises(UserError, match="nothing to compare"):
    read_groups([study / "d", study / "e"])


def test_the_table_has_means_and_deviations_of_the_last_evaluation(study):
  lines = table(read_groups(sorted(study.iterdir()))).splitlines()
  assert [line.split() for line in lines] == [
    ["runs", "steps", "eval/saol_top1", "eval/gap_top1"],
    ["model.head=saol", "2", "20", "82.00", "±", "2.83", "71.00", "±", "1.41"],
    ["model.head=gap", "1", "20", "60.00"],
  ]
  assert len({len(line) for line in lines}) == 1


def test_test_scores_and_scores_that_are_no_numbers_are_shown(study):
  scores = {"step": 20, "eval/gap_top1": 0.5, "eval/gap_nll": float("nan"), "test/gap_top1": 0.4}
  with (write(study / "d", {}, model__head="gap", seed=1) / "metrics.jsonl").open("a") as log:
    log.write(json.dumps(scores) + "\n")
  with (study / "c" / "metrics.jsonl").open("a") as log:
    log.write(json.dumps(scores | {"eval/gap_nll": 2.0, "test/gap_top1": 0.6}) + "\n")
  header, row = (
    line.split() for line in table(read_groups([study / "c", study / "d"])).split("\n")
  )
  assert header[2:] == ["eval/gap_top1", "eval/gap_nll", "test/gap_top1"]
  assert row[2:] == ["2", "20", "50.00", "±", "0.00", "nan", "±", "nan", "50.00", "±", "14.14"]


def test_an_infinite_likelihood_is_no_warning(study, recwarn):
  for name in "ab":
    with (study / name / "metrics.jsonl").open("a") as log:
      log.write(json.dumps({"step": 20, "eval/saol_nll": float("inf")}) + "\n")
  assert table(read_groups([study / "a", study / "b"])).split()[-3:] == ["inf", "±", "nan"]
  assert not recwarn.list


def test_a_run_counts_once(study, caplog):
  (study / "link").symlink_to(study / "a")
  (runs,) = read_groups([study / "a", study / "b" / ".." / "a", study / "link"]).values()
  assert len(runs) == 1
  assert caplog.text.count("it is there already") == 2
  write(study / "copy", {"saol": 0.80, "gap": 0.70})
  (runs,) = read_groups([study / "a", study / "copy"]).values()
  assert len(runs) == 2
  assert f"{study / 'copy'} has the seed of another run of its row" in caplog.text


@pytest.mark.parametrize(
  ("output", "reason"),
  [
    ("new", "expected the name of a file that ends in .png"),
    ("x.pdf", "expected the name of a file that ends in .png"),
    ("a/config.json/x.png", "a/config.json); name a file in a folder that you may write to"),
  ],
)
def test_an_output_that_cannot_be_is_named(study, output, reason):
  code, said = run(
    [sys.executable, "-m", "saol_jax.compare", str(study / "a"), f"--output={study / output}"]
  )
  assert code == 2, said
  assert f"error: --output={study / output}" in said.splitlines()[-1]
  assert said.splitlines()[-1].endswith(reason)


def test_the_picture_has_a_line_a_run_in_the_colour_of_its_group(study):
  def colours(folders):
    draw(study / "a.png", read_groups([study / name for name in folders]))
    pixels = np.asarray(Image.open(study / "a.png").convert("RGB")).reshape(-1, 3)
    return {
      name: int((pixels == colour).all(-1).sum())
      for name, colour in (("first", (31, 35, 40)), ("second", (9, 105, 218)))
    }

  one, three = colours("a"), colours("abc")
  assert one["second"] == 0 < three["second"]
  assert three["first"] > one["first"]


def test_the_command_line(study):
  arguments = [sys.executable, "-m", "saol_jax.compare", *map(str, sorted(study.iterdir()))]
  code, output = run([*arguments, f"--output={study}/new/comparison.png"])
  assert code == 0, output
  assert output.splitlines()[1].startswith("model.head=saol")
  assert (study / "new" / "comparison.png").exists()


def test_folders_of_images_are_told_apart_wherever_they_lie(tmp_path):
  for name, folder, top1 in (("a", "/x/birds", 0.9), ("b", "/x/cars", 0.3), ("c", "/y/cars", 0.5)):
    write(tmp_path / name, {"saol": top1}, data__name="folder", data__data_dir=folder)
  groups = read_groups([tmp_path / name for name in "abc"])
  assert {name: len(runs) for name, runs in groups.items()} == {
    "data.data_dir=birds": 1,
    "data.data_dir=cars": 2,
  }


@pytest.mark.parametrize("order", ["ac", "ca"])
def test_a_field_that_only_one_has_sets_it_apart(study, order):
  path = study / "a" / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"note": "x"}))
  found = read_groups([study / name for name in order])
  assert {name.rpartition(" ")[2] for name in found} == {"note=x", "note=(absent)"}


def test_a_field_that_an_older_version_did_not_know_has_its_default(study):
  path = study / "a" / "config.json"
  config = json.loads(path.read_text())
  del config["mixup"]
  path.write_text(json.dumps(config))
  assert list(read_groups([study / "a", study / "b"])) == ["all alike"]
