"""The folder of a run: who it belongs to."""

import json
import logging
import pathlib

import ml_collections

from saol_jax.config import differences
from saol_jax.distributed import is_main_process
from saol_jax.errors import UserError

logger = logging.getLogger(__name__)


def check_config(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
  """Raises UserError where the workdir belongs to a run with another config; changes nothing."""
  path = workdir / "config.json"
  if not path.exists():
    if (workdir / "checkpoints").exists():
      raise UserError(
        f"{workdir} has checkpoints but no config.json, so what they belong to is unknown; "
        "restore that file, or use another --workdir"
      )
    return
  try:
    saved = ml_collections.ConfigDict(json.loads(path.read_text()))
  except ValueError as error:
    raise UserError(
      f"{path} is not readable ({error}); restore it, or use another --workdir"
    ) from error
  changed = differences(saved, config)
  if changed:
    lines = "".join(
      f"\n  {name}: {old!r} there, {new!r} now" for name, (old, new) in changed.items()
    )
    raise UserError(
      f"{workdir} holds a run with another config:{lines}\n"
      "Use another --workdir, or the same values to go on with that run."
    )


def claim(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
  """Makes the folder and writes `config.json`, or checks that it is ours already.

  Raises:
    UserError: it belongs to a run with another config, or cannot be written.
  """
  check_config(config, workdir)
  if is_main_process():
    _write(config, workdir)


def put_back(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> bool:
  """Makes the folder of a run again where it has vanished while the run went on.

  Returns:
    Whether `config.json` was gone.

  Raises:
    UserError: it cannot be written.
  """
  if not is_main_process() or (workdir / "config.json").exists():
    return False
  logger.warning(
    "WORKDIR VANISHED: %s or its config.json is gone. It is made anew, and training goes on from "
    "memory; what was saved before is wherever the folder is now",
    workdir,
  )
  _write(config, workdir)
  return True


def _write(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(json.loads(config.to_json()), indent=2) + "\n"
    temporary = workdir / "config.json.tmp"
    temporary.write_text(text)
    temporary.replace(workdir / "config.json")
  except OSError as error:
    raise UserError(
      f"--workdir={workdir} cannot be written: {error.strerror}; choose a folder that you may "
      "write to, on a disk with free space"
    ) from error
