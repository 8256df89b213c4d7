"""Where a benchmark's numbers come from, and the JSON file and tables that hold them."""

import datetime
import json
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata

import jax

from saol_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def run(main: Callable[[], None]) -> None:
  """Calls a script's main; a user's mistake ends it with one message and exit code 2."""
  try:
    main()
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.code)


def describe_run() -> dict[str, object]:
  """The command, commit, date, device and versions of this process, for JSON.

  Call it at the start: the commit is that of the code that has just been imported. Where git does
  not know it, as in a copy of the files, SAOL_COMMIT names it. `dirty` tells of changes to anything
  but the results themselves; None where nothing can be said.
  """
  given = os.environ.get("SAOL_COMMIT")
  changes = None if given else _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
  devices = jax.devices()
  return {
    "command": shlex.join(["python", *sys.orig_argv[1:]]),
    "commit": given or _git("rev-parse", "HEAD"),
    "dirty": None if changes is None else bool(changes),
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "device": {
      "platform": devices[0].platform,
      "kind": devices[0].device_kind,
      "count": len(devices),
      "cpu": _cpu_model(),
      "cpu_count": len(os.sched_getaffinity(0)),
      "load_average_at_start": round(os.getloadavg()[0], 2),
    },
    "versions": {"python": platform.python_version()}
    | {name: metadata.version(name) for name in _PACKAGES},
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
    "compilation_cache": bool(jax.config.jax_compilation_cache_dir),
  }


def describe_run_apart() -> dict[str, object]:
  """What `describe_run` says, by a process of its own, which asks for the device and lets it go.

  For scripts that start runs: they need all of the device's memory, or the device itself.
  """
  code = "import json; from benchmarks import record; print(json.dumps(record.describe_run()))"
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE
  )
  command = shlex.join(["python", *sys.orig_argv[1:]])
  return json.loads(done.stdout.splitlines()[-1]) | {"command": command}


def begin(
  output: pathlib.Path | None, name: str, *, apart: bool = False, anywhere: bool = False
) -> tuple[pathlib.Path, dict[str, object]]:
  """Where a run's numbers go, and where they come from.

  Args:
    output: as the user wants it; None for NAME_DEVICE.json among the results, such as
      step_resnet50_nvidia_h100_80gb_hbm3.json.
    name: of the benchmark and what it measures.
    apart: leave the device to others, see `describe_run_apart`.
    anywhere: the numbers are the same on all devices, and the file is NAME.json.

  Raises:
    UserError: nothing can be written there.
  """
  described = describe_run_apart() if apart else describe_run()
  kind = re.sub("[^a-z0-9]+", "_", described["device"]["kind"].lower()).strip("_")
  output = output or RESULTS / (f"{name}.json" if anywhere else f"{name}_{kind}.json")
  check_output(output)
  return output, described


def count_flops(lowered: jax.stages.Lowered) -> float:
  """FLOPs that XLA counts in a program before its own optimisations, for all devices together.

  JAX asks the device's compiler, and those of GPUs and TPUs do not say (jax issue 22713): there the
  CPU's counts the same program.
  """
  counted = lowered.cost_analysis()
  if counted is None:
    from jax._src.lib import _jax

    module = lowered.compiler_ir("hlo").as_hlo_module()
    counted = _jax.hlo_module_cost_analysis(jax.local_devices(backend="cpu")[0].client, module)
  return counted["flops"]


def check_output(path: pathlib.Path) -> None:
  """Makes the folder of a result file, before the minutes of measuring that fill it.

  Raises:
    UserError: nothing can be written there.
  """
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    writable = not path.is_dir() and os.access(path.parent, os.W_OK)
  except OSError as error:
    raise UserError(f"--output={path} cannot be written: {error}; name another file") from error
  if not writable:
    raise UserError(f"--output={path} cannot be written: expected a file in a folder of yours")


def write(path: pathlib.Path, result: dict[str, object]) -> None:
  """Writes a result as JSON, whole or not at all."""
  partial = path.with_name(path.name + ".partial")
  partial.write_text(json.dumps(result, indent=2) + "\n")
  partial.replace(path)
  print(f"\nwritten: {path}")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int) -> str:
  """A Markdown table, the first `text_columns` columns to the left and the others to the right."""
  widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]

  def line(cells: Sequence[str]) -> str:
    aligned = (
      cell.ljust(width) if i < text_columns else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return f"| {' | '.join(aligned)} |"

  rule = ["-" * w if i < text_columns else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
  return "\n".join([line(header), line(rule), *map(line, rows)])


def _git(*arguments: str) -> str | None:
  """What git prints; None where there is no git or no checkout."""
  try:
    done = subprocess.run(
      ["git", "--no-optional-locks", *arguments],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=True,
    )
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()


def _cpu_model() -> str:
  """The processor's name as Linux gives it, or the architecture."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = []
  names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
  return next(names, platform.machine())
