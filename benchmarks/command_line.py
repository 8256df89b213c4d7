"""Command lines: those of the benchmarks, and those of the runs of main.py that they start."""

import argparse
import ast
import functools
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from benchmarks import record
from saol_jax.errors import UserError


def make_parser(doc: str, *, output: bool = True) -> argparse.ArgumentParser:
  """A parser that is described by a script's first line, and shows defaults.

  Args:
    doc: of the script.
    output: take `--output`, the file for its numbers, see `record.begin`.
  """
  parser = argparse.ArgumentParser(
    description=doc.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  if output:
    parser.add_argument("--output", type=pathlib.Path, help="default: a name in benchmarks/results")
  return parser


def add_sizes(parser: argparse.ArgumentParser, **defaults: Any) -> None:
  """Adds what a model and its images are made from, see `synthetic`.

  Args:
    parser: to add to.
    defaults: of `backbone`, `image_size`, `num_classes` and `dtype`.
  """
  parser.set_defaults(**defaults)
  parser.add_argument("--backbone", help="see saol_jax.list_backbones()")
  parser.add_argument("--image_size", type=positive(int), help="pixels a side")
  parser.add_argument("--num_classes", type=positive(int), help="classes")
  parser.add_argument("--width", type=positive(int), help="of SAOL; default: the recipe's")
  parser.add_argument("--dtype", help="float32, bfloat16; auto: by device")


def add_timing(parser: argparse.ArgumentParser, *, rounds: int) -> None:
  """Adds what is measured for how long, see `step.measure`."""
  parser.add_argument("--batch_size", type=positive(int), default=64, help="over all devices")
  parser.add_argument("--rounds", type=positive(int), default=rounds, help="turns of each")
  parser.add_argument("--seconds", type=positive(float), default=60.0, help="of measuring")


def positive(kind: type) -> Callable[[str], Any]:
  """A parser of command-line numbers above 0, of type `kind`."""

  def parse(text: str) -> Any:
    value = kind(text)
    if not value > 0:
      raise argparse.ArgumentTypeError(f"{text!r}; expected a positive number")
    return value

  return parse


def parse_fields(changes: Sequence[str]) -> dict[str, str]:
  """What `--set FIELD=VALUE ...` says, by name.

  Raises:
    UserError: one has no "=".
  """
  for change in changes:
    if "=" not in change:
      raise UserError(f"--set {change}; expected FIELD=VALUE, such as batch_size=64")
  return dict(change.split("=", 1) for change in changes)


def set_fields(config: ml_collections.ConfigDict, fields: Mapping[str, Any]) -> None:
  """Sets fields by their names, such as `model.name`, to values or to what `parse_fields` gives.

  Raises:
    UserError: there is no such field, or the value is none of its.
  """
  for name, value in fields.items():
    *folders, last = name.split(".")
    try:
      holder = functools.reduce(getattr, folders, config)
      if isinstance(value, str) and not isinstance(holder[last], str):
        value = ast.literal_eval({"true": "True", "false": "False"}.get(value, value))
      holder[last] = value
    except (AttributeError, KeyError) as error:
      raise UserError(f"--set {name}: no such field; all are in saol_jax/config.py") from error
    except (TypeError, ValueError, SyntaxError) as error:
      raise UserError(f"--set {name}={value}; expected a value like {holder[last]!r}") from error


def run_of(config: str, workdir: pathlib.Path | str, fields: Mapping[str, Any]) -> list[str]:
  """The command of a run of main.py.

  Args:
    config: below the repository, with its argument if it has one: `configs/digits_saol.py:gap`.
    workdir: of the run.
    fields: of the config that are set, by name.
  """
  return [
    sys.executable,
    str(record.ROOT / "main.py"),
    f"--config={record.ROOT / config}",
    f"--workdir={workdir}",
    *(f"--config.{name}={value}" for name, value in fields.items()),
  ]
