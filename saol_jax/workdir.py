"""The folder of a run: who it belongs to, and who trains in it."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import pathlib
import socket
import tempfile
import time
from collections.abc import Iterator
from typing import IO

import jax
import ml_collections

from saol_jax.config import differences
from saol_jax.distributed import is_main_process
from saol_jax.durable import is_at, write_text
from saol_jax.errors import UserError

logger = logging.getLogger(__name__)

_LOCK_SECONDS = 5.0  # the run before may just be ending
_LEAST_BYTES = 2**16  # that must fit on the disk
_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS)


class Lock:
  """The right to train in a workdir, which the main process of a run has until its end.

  It is the kernel's lock (flock) on `workdir/train.lock`, which frees it however the process ends.
  The file stays, with the name of who had it last.
  """

  def __init__(self, workdir: pathlib.Path):
    """Makes the folder and takes the lock.

    Raises:
      UserError: another process has it, or the folder cannot be written.
    """
    self._path = workdir / "train.lock"
    self._file: IO | None = None
    self.put_back()

  def put_back(self) -> None:
    """Takes the lock anew where its file has vanished or is another.

    Raises:
      UserError: another process has it, or the folder cannot be written.
    """
    if not is_main_process():
      return
    if self._file is not None and is_at(os.fstat(self._file.fileno()), self._path):
      return
    self.close()
    with contextlib.ExitStack() as stack, writing(self._path.parent):
      self._path.parent.mkdir(parents=True, exist_ok=True)
      file = stack.enter_context(self._path.open("a+"))
      self._take(file)
      file.truncate(0)
      file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
      file.flush()
      stack.pop_all()
      self._file = file

  def close(self) -> None:
    """Lets go of it."""
    if self._file is not None:
      self._file.close()
      self._file = None

  def _take(self, file: IO) -> None:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
      try:
        return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        if time.monotonic() > deadline:
          raise self._held(file) from error
        time.sleep(0.1)
      except OSError as error:
        if error.errno not in _NO_LOCKS:
          raise
        return logger.warning(
          "NO LOCK: the file system of %s has none (%s), so that nothing would stop a second run "
          "in this workdir; do not start one",
          self._path,
          error.strerror,
        )

  def _held(self, file: IO) -> UserError:
    file.seek(0)
    return UserError(
      f"--workdir={self._path.parent} is in use: {file.read().strip() or 'another process'} trains "
      "in it. Wait for its end or stop it, and run the same command again, or use another "
      f"--workdir. If that machine is gone for good, delete {self._path}"
    )


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
    saved = json.loads(path.read_text())
    if not isinstance(saved, dict):
      raise ValueError(f"{saved!r:.40} where the fields of a config were")
  except (ValueError, OSError) as error:
    raise UserError(
      f"{path} is not readable ({error}); restore it, or use another --workdir"
    ) from error
  changed = differences(ml_collections.ConfigDict(saved), config)
  if changed:
    lines = "".join(
      f"\n  {name}: {old!r} there, {new!r} now" for name, (old, new) in changed.items()
    )
    raise UserError(
      f"{workdir} holds a run with another config:{lines}\n"
      "Use another --workdir, or the same values; without --config the run's own are used. A new "
      f"run can begin with its weights: --config.model.pretrained={workdir}"
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
  with writing(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(json.loads(config.to_json()), indent=2) + "\n"
    write_text(workdir / "config.json", text)


def check_writable(workdir: pathlib.Path) -> None:
  """Raises UserError where nothing can be written, before minutes are spent on it.

  One of several processes does not ask: the others would wait for it.
  """
  if jax.process_count() == 1:
    with writing(workdir), tempfile.TemporaryFile(dir=workdir) as file:
      file.write(bytes(_LEAST_BYTES))
      file.flush()


@contextlib.contextmanager
def writing(workdir: pathlib.Path) -> Iterator[None]:
  """Inside `with`, an OSError becomes a UserError that says what to do about the workdir."""
  try:
    yield
  except OSError as error:
    raise UserError(
      f"--workdir={workdir} cannot be written: {error.strerror}; expected a folder that you may "
      "write to, on a disk with free space"
    ) from error
