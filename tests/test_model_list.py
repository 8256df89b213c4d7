"""`--mode=list` says of each backbone what is true."""

import dataclasses
import json
import re
import sys

import pytest

from benchmarks import backbones, record
from saol_jax import list_backbones
from saol_jax.errors import UserError
from saol_jax.model_list import describe, list_command
from tests.support import ROOT, run


def test_resnet50():
  """torchvision's table of weights has 25,557,032 parameters and 4.09 G multiply-adds."""
  entry = describe("resnet50")
  assert (entry.image_size, entry.num_classes) == (224, 1000)
  assert entry.stages == ((4, 256), (8, 512), (16, 1024), (32, 2048))
  assert entry.gap.parameters == 25_557_032
  assert round(entry.gap.multiply_adds / 1e9, 2) == 4.09
  # By hand, 7 x 7 cells: hidden layer and score of the attention, laterals, classes; the resizes
  # with their weights.
  attention, laterals, classes = 9 * 128 * (2048 + 1), 128 * (512 + 1024 + 2048), 9 * 384 * 1000
  resizes = sum(7 * n * c * n + 7 * 7 * c * n + 2 * 7 * n * n for n, c in ((28, 512), (14, 1024)))
  head = 49 * (attention + laterals + classes) + resizes
  assert entry.saol.multiply_adds - entry.gap.multiply_adds == head - 2048 * 1000
  scales_and_biases = 2 * 128 + 1 + 2 * 384 + 1000
  parameters = attention + laterals + classes + scales_and_biases
  assert entry.saol.parameters - entry.gap.parameters == parameters - 2049 * 1000


def test_small_images_for_what_is_made_for_them():
  entry = describe("wrn_16_4")
  assert (entry.image_size, entry.num_classes) == (32, 100)
  assert entry.stages == ((1, 64), (2, 128), (4, 256))
  assert entry.gap.parameters == 2_772_020
  assert entry.light.parameters < entry.saol.parameters
  assert entry.gap.multiply_adds < entry.light.multiply_adds < entry.saol.multiply_adds


def test_the_command_prints_an_aligned_table_and_needs_no_other_flag():
  code, output = run([sys.executable, str(ROOT / "main.py"), "--mode=list", "--backbones=resnet?"])
  assert code == 0, output
  header, row = output.splitlines()[-2:]
  assert row.split()[:2] == ["resnet8", "32"]
  assert row.split()[-3:] == ["32/2", "64/4", "64/4"]
  entry = describe("resnet8")
  gap, saol = (f"{cost.parameters / 1e6:.3f}" for cost in (entry.gap, entry.saol))
  assert f" {gap} " in row
  over = 100 * (entry.saol.parameters / entry.gap.parameters - 1)
  assert re.search(rf" {saol} +\+{over:.1f}% ", row)
  for column, number in (("GAP-FC, M", gap), ("stages:", "32/2")):
    at = header.index(column)
    assert number in row[at : at + len(column)]


def test_no_backbone_of_that_name():
  with pytest.raises(UserError, match=r"--backbones='resnext\*\*x' matches none of .*resnet18"):
    list_command("resnext**x")


def test_the_document_is_of_all_backbones_as_they_are_now():
  entries = json.loads((record.RESULTS / "backbones.json").read_text())["backbones"]
  assert backbones.DOCUMENT.read_text() == backbones.document(entries)
  assert tuple(entry["name"] for entry in entries) == list_backbones()
  for entry in entries:
    if entry["name"] in ("resnet50", "wrn_16_4", "vit_small_16"):
      assert entry == json.loads(json.dumps(dataclasses.asdict(describe(entry["name"]))))


def test_the_document_says_what_is_added_in_per_cent():
  """ResNet-50 from the tests above: 4,228,225 parameters over 25,557,032, 16.5 %."""
  entry = describe("resnet50")
  row = backbones.document([dataclasses.asdict(entry)]).splitlines()[-1]
  cells = [cell.strip() for cell in row.split("|")[1:-1]]
  assert cells[:2] == ["resnet50", "256/4 512/8 1024/16 2048/32"]
  assert cells[2] == "torchvision and timm, mmdetection, Hugging Face transformers"
  assert cells[3:9] == ["224", "1000", "25.557", "4.089", "29.785", "+16.5"]
  assert float(cells[10]) < 8
  assert float(cells[14]) < 3
