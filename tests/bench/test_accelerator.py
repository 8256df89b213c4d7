"""accelerator.py: a session that goes on with what is missing."""

import importlib
import json
import pathlib
import shlex
import sys
import time

import pytest

from benchmarks import accelerator
from benchmarks.command_line import parse_fields, set_fields
from saol_jax.config import default_config, resolve
from tests.bench.calls import CLASSES, PIXELS
from tests.support import table_rows


def test_a_session_on_an_accelerator_goes_on_with_what_is_missing(tmp_path, capsys):
  """With real measurements of tiny sizes, one of which cannot be, and one that has no time left."""
  heads = f"heads.py --networks resnet8:{PIXELS}:{CLASSES}"
  measurements = {
    "heads": accelerator.Measurement(heads, 300),
    "wrong": accelerator.Measurement("heads.py --networks=none", 300),
    "slow": accelerator.Measurement(heads, 0.1),
    "long": accelerator.Measurement(heads, 1e6),
  }
  accelerator.measure(measurements, tmp_path, deadline=time.monotonic() + 1000)
  outcomes = {row[0]: row[1] for row in table_rows(capsys.readouterr().out)}
  assert outcomes["heads"] == "done"
  assert outcomes["wrong"].startswith("failed with code ")
  assert outcomes["wrong"].endswith("see wrong.txt")
  assert outcomes["slow"] == "killed after 0 s, see slow.txt"
  assert outcomes["long"].startswith("not begun: ")
  assert json.loads((tmp_path / "heads.json").read_text())["networks"]
  before = (tmp_path / "heads.json").read_bytes()
  accelerator.measure(measurements, tmp_path, deadline=time.monotonic() + 1000)
  assert "was there" in capsys.readouterr().out
  assert (tmp_path / "heads.json").read_bytes() == before


@pytest.mark.parametrize("name", accelerator.MEASUREMENTS)
def test_the_measurements_of_an_accelerator_are_command_lines_that_can_be(monkeypatch, name):
  script, *arguments = shlex.split(accelerator.MEASUREMENTS[name].command)
  module = importlib.import_module(f"benchmarks.{script.removesuffix('.py')}")
  monkeypatch.setattr(sys, "argv", [script, *arguments, "--output=x.json"])
  options = module.parse()
  assert options.output == pathlib.Path("x.json")
  fields = parse_fields(getattr(options, "set", []))
  config = default_config()
  set_fields(config, fields)
  assert ("--set" in arguments) == bool(fields)
  assert resolve(config) is not config  # what cannot be is refused
