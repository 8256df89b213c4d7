"""The kinds of faults: each waits for its moment in a real run, and strikes.

A function of a `Scene` that returns what it did and when, in a few words. When it returns, the
process has ended, and what a person would have to mend (a full disk) is mended.
"""

import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import time
from collections.abc import Callable

from benchmarks.faults.clock import Clock
from benchmarks.faults.disk import Disk
from benchmarks.faults.watched import MissedError, WatchedRun, committed, in_the_making

_DAY = 86_400


@dataclasses.dataclass
class Scene:
  """Where a fault takes place."""

  run: WatchedRun
  workdir: pathlib.Path
  disk: Disk
  clock: Clock
  rng: random.Random
  eval_every: int
  last_step: int
  code: int | None = None  # with which the process ended
  newest: int = -1  # checkpoint, as the fault strikes
  damaged: list[int] = dataclasses.field(default_factory=list)  # that one, and the one before it

  def training(self, checkpoints: int = 0) -> str:
    """Waits for a random moment of training; says which.

    Args:
      checkpoints: that must be there then.
    """
    lines, more = self.rng.randrange(1, 4), self.rng.uniform(0, 1)
    self.run.wait_for(
      lambda: len(self.run.steps()) >= lines and len(committed(self.workdir)) >= checkpoints
    )
    self.run.sleep(more)
    return self._now()

  def anywhere(self) -> str:
    """Waits for a random moment of training or of the seconds before it; says which."""
    if self.rng.random() < 0.3:
      seconds = self.rng.uniform(0, 12)
      self.run.sleep(seconds)
      return self._now() if self.run.steps() else f"starting, after {seconds:.1f} s"
    return self.training()

  def _now(self) -> str:
    self.newest = max(committed(self.workdir), default=-1)
    return f"after step {self.run.steps()[-1]}"

  def kill(self) -> None:
    """SIGKILL."""
    self.run.kill()
    self.code = -signal.SIGKILL


def kill_anywhere(scene: Scene) -> str:
  """At any moment, the start of the process included."""
  when = scene.anywhere()
  scene.kill()
  return when


def kill_in_compilation(scene: Scene) -> str:
  """Without a cache of compiled programs; the next start finds what was written until then."""
  scene.run.wait_for(lambda: "The best checkpoint is chosen on" in scene.run.output)
  seconds = scene.rng.uniform(0, 6)
  scene.run.sleep(seconds)
  compiled = scene.run.find("^Compiled in")
  scene.kill()
  return f"{seconds:.1f} s into it" + (", just done" if compiled else "")


def kill_in_evaluation(scene: Scene) -> str:
  """Between two lines of the log: the step's own, and that with the scores."""

  def begun() -> int | None:
    """The step that is being evaluated."""
    due = [step for step in scene.run.steps() if step % scene.eval_every == 0]
    done = [int(step) for step in scene.run.find(r"^  evaluation at step (\d+)")]
    if not due or due[-1] in done:
      return None
    # What is evaluated is saved first: on a slow machine that may wait for the save before it.
    saving = [int(name.split(".")[0]) for name in in_the_making(scene.workdir)]
    return due[-1] if due[-1] in saving + committed(scene.workdir) else None

  while True:
    scene.run.wait_for(begun)
    step, seconds = begun(), scene.rng.uniform(0, 2)
    scene.run.sleep(seconds)
    if step is not None and begun() == step:
      scene.kill()
      return f"at step {step}, after {seconds:.1f} s"


def kill_in_save(scene: Scene) -> str:
  """While Orbax still writes a checkpoint under a provisional name."""
  scene.run.wait_for(lambda: scene.run.find("^Compiled in"))  # what a killed save left is gone now
  while True:
    scene.run.wait_for(lambda: in_the_making(scene.workdir))
    names, seconds = in_the_making(scene.workdir), scene.rng.uniform(0, 0.9)
    scene.run.sleep(seconds)
    if names and names == in_the_making(scene.workdir):
      scene.kill()
      return f"of step {names[0].split('.')[0]}, after {seconds:.1f} s"


def kill_in_deletion(scene: Scene) -> str:
  """Orbax deletes an old checkpoint file by file, just after a newer one is whole."""
  known = len(committed(scene.workdir))
  scene.run.wait_for(lambda: len(committed(scene.workdir)) >= max(3, known + 1))
  before = committed(scene.workdir)
  scene.run.sleep(scene.rng.uniform(0, 0.02))
  scene.kill()
  folders = [path.name for path in (scene.workdir / "checkpoints").iterdir()]
  rest = [
    name for name in folders if name.isdecimal() and int(name) not in committed(scene.workdir)
  ]
  return f"as step {before[-1]} was whole" + (f", {rest[0]} half deleted" if rest else "")


def kill_at_the_end(scene: Scene) -> str:
  """The last evaluation, the tables of classes and the pictures."""
  scene.run.wait_for(lambda: scene.last_step in scene.run.steps())
  seconds = scene.rng.uniform(0, 7)
  scene.run.sleep(seconds)
  scene.kill()
  return f"{seconds:.1f} s after the last step"


def terminate(scene: Scene) -> str:
  """SIGTERM, as a cluster sends it; the run saves and leaves."""
  return _ask_to_stop(scene, signal.SIGTERM)


def interrupt(scene: Scene) -> str:
  """SIGINT, as Ctrl-C sends it; the run saves and leaves."""
  return _ask_to_stop(scene, signal.SIGINT)


def _ask_to_stop(scene: Scene, number: signal.Signals) -> str:
  when = scene.anywhere()
  scene.run.send(number)
  scene.code = scene.run.wait()
  if scene.code == 0:
    raise MissedError
  return when


def truncate(scene: Scene) -> str:
  """Kills, and cuts a file of the newest checkpoint off at any byte."""
  return _damage_newest(scene, _truncate)


def flip_a_bit(scene: Scene) -> str:
  """Kills, and flips any bit of a file of the newest checkpoint."""
  return _damage_newest(scene, _flip_a_bit)


def remove_a_file(scene: Scene) -> str:
  """Kills, and deletes a file of the newest checkpoint."""
  return _damage_newest(scene, lambda path, _: path.unlink())


def _truncate(path: pathlib.Path, rng: random.Random) -> None:
  os.truncate(path, rng.randrange(path.stat().st_size))


def _flip_a_bit(path: pathlib.Path, rng: random.Random) -> None:
  content = bytearray(path.read_bytes())
  content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  path.write_bytes(content)


def _damage_newest(scene: Scene, damage: Callable[[pathlib.Path, random.Random], None]) -> str:
  """Kills, and damages any file of the newest checkpoint; that with the arrays half of the time."""
  scene.training(checkpoints=2)
  scene.kill()
  scene.damaged = committed(scene.workdir)[:-3:-1]
  checkpoint = scene.workdir / "checkpoints" / str(scene.damaged[0])
  files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size)
  largest = max(files, key=lambda path: path.stat().st_size)
  path = largest if scene.rng.random() < 0.5 else scene.rng.choice(files)
  damage(path, scene.rng)
  return f"step {scene.damaged[0]}: {path.relative_to(checkpoint)}"


def fill_the_disk(scene: Scene) -> str:
  """Leaves no room, or little, until the run has ended."""
  when = scene.anywhere()
  left = scene.rng.choice([0, scene.rng.randrange(100_000), scene.rng.randrange(4_000_000)])
  with scene.disk.full(left):
    scene.code = scene.run.wait()
  return f"{when}, {left:,} bytes left"


def make_read_only(scene: Scene) -> str:
  """The workdir or its checkpoints, until the run has ended."""
  when = scene.training(checkpoints=1)
  folder = scene.rng.choice([scene.workdir, scene.workdir / "checkpoints"])
  with scene.disk.read_only(folder):
    scene.code = scene.run.wait()
  return f"{folder.name}/, {when}"


def remove_checkpoints(scene: Scene) -> str:
  """Takes all checkpoints away, moved first or deleted in place, while the run goes on."""
  when = scene.training(checkpoints=1)
  folder, gone = scene.workdir / "checkpoints", scene.workdir.with_name("gone")
  how = scene.rng.choice(["moved", "deleted"])
  if how == "moved":
    folder.rename(gone)
    shutil.rmtree(gone)
  else:
    shutil.rmtree(folder, ignore_errors=True)  # a save may be going on in it
  return f"{how} {when}, {_go_on_a_little(scene)}"


def move_the_workdir(scene: Scene) -> str:
  """Takes the workdir away while the run goes on."""
  when = scene.training(checkpoints=1)
  gone = scene.workdir.with_name("gone")
  scene.workdir.rename(gone)
  shutil.rmtree(gone)
  return f"{when}, {_go_on_a_little(scene)}"


def _go_on_a_little(scene: Scene) -> str:
  """Kills the run once it has saved again, or finds it ended."""
  try:
    scene.run.wait_for(lambda: committed(scene.workdir))
    scene.run.sleep(scene.rng.uniform(0, 2))
    scene.kill()
  except MissedError:
    scene.code = scene.run.wait()
    return "run to its end"
  return f"step {committed(scene.workdir)[-1]} saved anew"


def jump_the_clock(scene: Scene) -> str:
  """For the process alone; times of files stay true, and the next start has the true clock."""
  when = scene.anywhere()
  days = scene.rng.choice([-1, 1]) * 10 ** scene.rng.uniform(-5, 3.8)
  scene.clock.jump(days * _DAY)
  scene.run.sleep(scene.rng.uniform(2, 8))
  scene.kill()
  return f"by {days:+.3g} days {when}"


def change_file_times(scene: Scene) -> str:
  """Kills, and gives each file and folder of the run a time in the past or the future."""
  when = scene.training(checkpoints=1)
  scene.kill()
  for path in [scene.workdir, *scene.workdir.rglob("*")]:
    moment = time.time() + scene.rng.uniform(-5000, 5000) * _DAY
    os.utime(path, (moment, moment))
  return when


def tear_the_log(scene: Scene) -> str:
  """Kills, and leaves the log as a machine without power may: its end cut off, or zeros."""
  when = scene.training(checkpoints=1)
  scene.kill()
  log = scene.workdir / "metrics.jsonl"
  newest, text = committed(scene.workdir)[-1], log.read_text()
  whole, last = text[: text[:-1].rfind("\n") + 1], text[text[:-1].rfind("\n") + 1 :]
  if json.loads(last)["step"] <= newest:  # that line is on disk for sure, the next one is torn
    whole, last = text, json.dumps({"step": newest + 1, "train/loss": 1.0})
  cut = scene.rng.randrange(1, len(last) - 1)
  zeros = scene.rng.random() < 0.5
  log.write_text(whole + ("\0" * cut if zeros else last[:cut]))
  return f"{when}, {'zeros' if zeros else 'a part of a line'}"


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of fault.

  Attributes:
    strike: the function.
    codes: exit codes that are right; a negative one is the signal.
    small_disk: whether it needs to mount.
    clock: whether the process is started with a clock that can jump.
    cold: whether the process is started without a cache of compiled programs.
    takes_the_best: whether the checkpoint with the best score is taken away with the others.
  """

  strike: Callable[[Scene], str]
  codes: tuple[int, ...] = (-9,)
  small_disk: bool = False
  clock: bool = False
  cold: bool = False
  takes_the_best: bool = False


# 0 where the run was able to end; a signal that comes before Python runs our code is not ours.
KINDS = {
  "kill -9 at any moment": Kind(kill_anywhere),
  "kill -9 in compilation": Kind(kill_in_compilation, cold=True),
  "kill -9 in evaluation": Kind(kill_in_evaluation),
  "kill -9 in a save": Kind(kill_in_save),
  "kill -9 while an old checkpoint is deleted": Kind(kill_in_deletion),
  "kill -9 after the last step": Kind(kill_at_the_end),
  "SIGTERM at any moment": Kind(terminate, codes=(75, -15)),
  "SIGINT at any moment": Kind(interrupt, codes=(75, 1, -2)),
  "newest checkpoint truncated": Kind(truncate),
  "newest checkpoint, one bit flipped": Kind(flip_a_bit),
  "newest checkpoint, a file missing": Kind(remove_a_file),
  "disk full": Kind(fill_the_disk, codes=(2, 0), small_disk=True),
  "folder read-only": Kind(make_read_only, codes=(2,), small_disk=True),
  "checkpoints/ vanished": Kind(remove_checkpoints, codes=(-9, 0), takes_the_best=True),
  "workdir vanished": Kind(move_the_workdir, codes=(-9, 0), takes_the_best=True),
  "clock jumped": Kind(jump_the_clock, clock=True),
  "times of all files changed": Kind(change_file_times),
  "log torn": Kind(tear_the_log),
}
