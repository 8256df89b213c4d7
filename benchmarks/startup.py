"""How long a run takes to its first step, without and with compiled programs from an earlier start.

  python benchmarks/startup.py                         # the demo's recipe
  python benchmarks/startup.py --config=configs/cifar_saol.py:cifar100 --set data.data_dir=DIR

Each start is a `main.py` of its own, in a new workdir, that is ended after its first step. The
first one of each round finds an empty compilation cache, the second one what the first one left.
Seconds count from the start of the process: importing, reading data and compiling, all of it.
"""

import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import record
from benchmarks.command_line import make_parser, parse_fields, positive, run_of

_COMPILED, _FIRST_STEP = "Compiled in", re.compile(r"step +1/")


def main() -> None:
  """Starts runs, prints a table, writes JSON."""
  options = _parse()
  output, result = record.begin(options.output, "startup", apart=True)
  starts = {"cold": [], "warm": []}
  for _ in range(options.rounds):
    with tempfile.TemporaryDirectory() as cache:
      for name, found in starts.items():
        found.append(start(options, cache))
        print(f"{name}: {found[-1]['first_step']:.1f} s to the first step", flush=True)
  result["config"], result["set"], result["starts"] = options.config, options.set, starts
  rows = []
  for name, found in starts.items():
    medians = {key: statistics.median(part[key] for part in found) for key in found[0]}
    first = statistics.median(part["first_step"] for part in starts["cold"])
    cells = (f"{medians['compiling']:.1f}", f"{medians['first_step']:.1f}")
    rows.append((name, *cells, f"{medians['first_step'] / first:.2f}"))
  header = ("compilation cache", "compiling, s", "first step after, s", "ratio")
  print("\n" + record.markdown(header, rows, text_columns=1))
  record.write(output, result)


def start(options: argparse.Namespace, cache: str) -> dict[str, float]:
  """Seconds of a run: `compiling` as its log says, and until its `first_step` was done."""
  with tempfile.TemporaryDirectory() as workdir:
    fields = {"log_every_steps": 1, **parse_fields(options.set)}
    command = run_of(options.config, workdir, fields)
    environment = os.environ | {
      "JAX_COMPILATION_CACHE_DIR": cache,
      "PYTHONUNBUFFERED": "1",
    }
    began = time.monotonic()
    with subprocess.Popen(
      command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
      found = {}
      for line in process.stdout:
        if line.startswith(_COMPILED):
          found["compiling"] = float(line.split()[2])
        if _FIRST_STEP.match(line):
          found["first_step"] = time.monotonic() - began
          break
      process.kill()
    if len(found) < 2:
      raise RuntimeError(f"the run ended before its first step: {' '.join(command)}")
    return found


def _parse() -> argparse.Namespace:
  parser = make_parser(__doc__)
  parser.add_argument("--config", default="configs/digits_saol.py", help="of main.py")
  parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="config fields")
  parser.add_argument("--rounds", type=positive(int), default=2, help="pairs of starts")
  return parser.parse_args()


if __name__ == "__main__":
  record.run(main)
