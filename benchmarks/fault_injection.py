r"""Faults at random moments of real runs, which are started again and must lose nothing.

  python benchmarks/fault_injection.py --faults 45

A run through main.py is left alone. Others of the same config suffer faults, up to four in a row,
and are started again each time; then they must have the same checkpoints, bit for bit, and the same
log. All kinds of faults come up before one comes again. Ends with code 1 if anything was lost.

The runs use the accelerator where there is one, and there they are bitwise in one mode alone:

  python benchmarks/fault_injection.py --faults=6 --set deterministic=True \
      --kinds "SIGTERM at any moment" "kill -9 at any moment"
"""

import argparse
import collections
import pathlib
import random
import shutil
import sys
import tempfile

if __package__ in (None, ""):  # started as a file
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax

from benchmarks import record
from benchmarks.command_line import make_parser, parse_fields
from benchmarks.faults.bench import FIELDS, Bench, Drawn
from benchmarks.faults.disk import Disk
from benchmarks.faults.kinds import KINDS
from saol_jax import console

_MEGABYTES = 64  # of the small file system


def draw(count: int, seed: int, kinds: tuple[str, ...] = tuple(KINDS)) -> list[Drawn]:
  """Faults in random order, but each kind once before one comes again."""
  rng = random.Random(seed)
  names = []
  while len(names) < count:
    names += rng.sample(kinds, len(kinds))
  return [Drawn(name, rng.randrange(1 << 32)) for name in names[:count]]


def parse() -> argparse.Namespace:
  """The command line."""
  parser = make_parser(__doc__)
  parser.add_argument("--faults", type=int, default=45, help="how many")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
  parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="of the config")
  return parser.parse_args()


def main() -> None:
  """Strikes, prints a table, writes JSON."""
  options = parse()
  fields = FIELDS | parse_fields(options.set)
  output, described = record.begin(options.output, "fault_injection", apart=True)
  jax.config.update("jax_platforms", "cpu")  # here: the runs need the accelerator's memory
  console.set_up(speak=False)

  folder = pathlib.Path(tempfile.mkdtemp(prefix="fault_injection_"))
  disk = Disk(folder / "disk", _MEGABYTES)
  try:
    bench = Bench(folder, disk, fields)
    possible = tuple(name for name in options.kinds if bench.can[name])
    skipped = [name for name in options.kinds if name not in possible]
    print(f"the undisturbed run: {bench.undisturbed():.0f} s", flush=True)
    results, faults = [], draw(options.faults, options.seed, possible)
    for number, drawn in enumerate(faults, 1):
      results.append(bench.suffer(drawn))
      _say(number, len(faults), results[-1])
    results[-1]["problems"] += bench.finish()
  finally:
    disk.close()
    shutil.rmtree(folder, ignore_errors=True)

  print("\n" + table(results, skipped))
  print(f"{len(results)} faults in {bench.compared} runs, each compared with the undisturbed one")
  result = {"run": described, "fields": fields, "seed": options.seed}
  result |= {"runs_compared": bench.compared, "skipped": skipped, "faults": results}
  record.write(output, result)
  lost = [problem for result in results for problem in result["problems"]]
  if lost:
    sys.exit("\n".join(["", "LOST:", *lost]))


def _say(number: int, count: int, result: dict) -> None:
  problems = "; ".join(result["problems"]) or "good"
  print(
    f"fault {number} of {count}: {result['kind']}, {result['when']}: code {result['code']}, newest "
    f"checkpoint {result['newest_checkpoint']}, {result['seconds']:.0f} s: {problems}",
    flush=True,
  )

  if "output" in result:
    print("\n".join(f"    | {line}" for line in result["output"]), flush=True)


def table(results: list[dict], skipped: list[str]) -> str:
  """A row for each kind of fault."""
  by_kind = collections.defaultdict(list)
  for result in results:
    by_kind[result["kind"]].append(result)
  rows = []
  for kind in KINDS:
    found = by_kind[kind]
    if found:
      codes = collections.Counter(result["code"] for result in found)
      ended = ", ".join(f"{code} ({count})" for code, count in sorted(codes.items()))
      lost = sum(bool(result["problems"]) for result in found)
      restarts = len(found) - codes[0]
      numbers = [restarts, len(found) - lost, lost]
      rows.append([kind, str(len(found)), ended, *map(str, numbers)])
    elif kind in skipped:
      rows.append([kind, "0", "not possible on this machine", "", "", ""])
  header = ["fault", "times", "exit codes", "restarts", "bitwise as undisturbed", "something lost"]
  return record.markdown(header, rows, text_columns=1)


if __name__ == "__main__":
  record.run(main)
