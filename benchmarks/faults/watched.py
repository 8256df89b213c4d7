"""main.py in a process of its own, watched closely enough to strike at a chosen moment."""

import pathlib
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence

_SECONDS = 300  # no run is silent for so long


class MissedError(Exception):
  """The run ended before the moment came."""


class WatchedRun:
  """A run whose output and folder are looked at while it goes on."""

  def __init__(self, command: Sequence[str], environment: Mapping[str, str], workdir: pathlib.Path):
    self.workdir = workdir
    self.lines: list[str] = []
    self._process = subprocess.Popen(
      command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    self._reader = threading.Thread(target=self._read, daemon=True)
    self._reader.start()

  def _read(self) -> None:
    for line in self._process.stdout:
      self.lines.append(line.rstrip("\n"))

  @property
  def output(self) -> str:
    """All that was printed so far."""
    return "\n".join(self.lines)

  @property
  def running(self) -> bool:
    return self._process.poll() is None

  def find(self, pattern: str) -> list[str]:
    """The first group of a pattern, or all of it, wherever it was printed."""
    return re.findall(pattern, self.output, re.MULTILINE)

  def steps(self) -> list[int]:
    """Steps of the training lines that this process has printed."""
    return [int(step) for step in self.find(r"^step +(\d+)/")]

  def wait_for(self, condition: Callable[[], object], timeout: float = _SECONDS) -> None:
    """Returns within milliseconds once a condition holds.

    Raises:
      MissedError: the process ended first.
    """
    deadline = time.monotonic() + timeout
    while not condition():
      if not self.running:
        raise MissedError
      if time.monotonic() > deadline:
        raise TimeoutError(f"{condition} never held; the run said:\n{self.output[-3000:]}")
      time.sleep(0.002)

  def sleep(self, seconds: float) -> None:
    """Lets the run go on.

    Raises:
      MissedError: it ended meanwhile.
    """
    deadline = time.monotonic() + seconds
    self.wait_for(lambda: time.monotonic() >= deadline)

  def send(self, number: signal.Signals) -> None:
    """Sends a signal.

    Raises:
      MissedError: the process has ended.
    """
    if not self.running:
      raise MissedError
    self._process.send_signal(number)

  def kill(self) -> None:
    """Kill -9, and waits until the process is gone.

    Raises:
      MissedError: it had ended by itself.
    """
    self.send(signal.SIGKILL)
    if self.wait() != -signal.SIGKILL:
      raise MissedError

  def wait(self, timeout: float = _SECONDS) -> int:
    """Waits for the end; returns the exit code, negative for a signal."""
    try:
      code = self._process.wait(timeout)
    finally:
      if self.running:  # hangs
        self._process.kill()
    self._reader.join()
    return code

  def close(self) -> None:
    """Ends what is left of it."""
    if self.running:
      self._process.kill()
    self._process.wait()
    self._reader.join()


def committed(workdir: pathlib.Path) -> list[int]:
  """Steps of the finished checkpoints in a workdir, found without the code that is tested."""
  folder = workdir / "checkpoints"
  try:
    names = [entry.name for entry in folder.iterdir() if (entry / "_CHECKPOINT_METADATA").exists()]
  except FileNotFoundError:
    return []
  return sorted(int(name) for name in names if name.isdecimal())


def in_the_making(workdir: pathlib.Path) -> list[str]:
  """Names of the checkpoints that are being written."""
  return [path.name for path in (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")]
