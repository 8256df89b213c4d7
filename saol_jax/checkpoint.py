"""Checkpoints: asynchronous, atomic, verified; the latest 2 and the best 1 are kept."""

import errno
import logging
import os
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from saol_jax.checksums import checksums, wrong_checksum
from saol_jax.distributed import as_main_process_says, is_main_process, wait_for_all
from saol_jax.errors import UserError
from saol_jax.orbax_hooks import (
  KeepBest,
  best_step,
  meet,
  stored_otherwise,
  without_read_only_warning,
)
from saol_jax.train_step import TrainState

logger = logging.getLogger(__name__)

_PAUSES = (1.0, 4.0, 15.0)  # seconds before a save that was given up is tried once more
_LATE_SECONDS = 120.0  # after which a network file system shows what others have written
_DELETION_SECONDS = 1.0  # what is being deleted vanishes one after the other


def has_checkpoints(workdir: pathlib.Path) -> bool:
  """Whether a run has saved a state; asks without making the folder, as `Checkpoints` would."""
  directory = workdir / "checkpoints"
  return directory.is_dir() and any(entry.name.isdecimal() for entry in directory.iterdir())


class Checkpoints:
  """The checkpoints of one run, in `workdir/checkpoints/STEP`.

  A checkpoint is the TrainState and a checksum of each of its arrays, which restoring verifies.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    scores: Mapping[int, float],
    *,
    before_commit: Callable[[], None] | None = None,
    read_only: bool = False,
  ):
    """Opens the folder.

    Args:
      workdir: of the run.
      scores: evaluation score by step, higher is better; may grow while the run goes on. The
        checkpoint with the best score is kept.
      before_commit: called in another thread when all of a checkpoint is written, before it gets
        its name. Orbax makes a folder that has vanished in a save anew, but not what else it held.
      read_only: for looking at a run that may still be going on. Otherwise what killed saves left
        is deleted.
    """
    self._directory = workdir.absolute() / "checkpoints"
    self._set_aside = workdir.absolute() / "damaged_checkpoints"
    self._scores = scores
    self._read_only = read_only
    policies = [preservation_policy.LatestN(2), KeepBest(scores)]
    with without_read_only_warning():
      self._manager = ocp.CheckpointManager(
        self._directory,
        options=ocp.CheckpointManagerOptions(
          preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
          async_options=ocp.AsyncOptions(
            barrier_sync_fn=meet, post_finalization_callback=before_commit
          ),
          read_only=read_only,
          # What a killed save left, as large as a checkpoint; safe under the `workdir.Lock`.
          cleanup_tmp_directories=not read_only,
          create=not read_only,  # Orbax changes these two itself, with a warning each
          save_interval_steps=0 if read_only else 1,
        ),
      )
    self._wait_for_the_newest()
    self._last_good = self.latest

  @property
  def steps(self) -> list[int]:
    """Steps with a checkpoint, in order."""
    return sorted(self._manager.all_steps())

  @property
  def latest(self) -> int | None:
    """Step of the newest checkpoint; None without any."""
    return max(self.steps, default=None)

  @property
  def best(self) -> int | None:
    """Step of the checkpoint with the best score; None where none was evaluated."""
    return best_step(self.steps, self._scores)

  def save(self, state: TrainState) -> None:
    """Starts to save a state, unless its step is saved already. Waits for the one before.

    If the folder has vanished, or what was in it, it is recreated with a loud warning. A previous
    save that took too long is abandoned, also with a warning. Of several processes all save the
    same step; there a save during which the folder vanished, or that took too long, ends the run.

    Raises:
      UserError: this save or the one before could not be written.
    """
    try:
      # A shared folder may be seen late: the main process, which made what is in it, decides.
      if as_main_process_says(self._vanished):
        self._put_back()
      try:
        self._begin(state)
      except Exception:
        if not self._vanishes():
          raise
        self._put_back()
        self._begin(state)
    except Exception as error:
      raise self._save_failed(error) from error

  def wait(self) -> None:
    """Waits until the last save is on disk.

    Raises:
      UserError: it could not be written.
    """
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      raise self._save_failed(error) from error
    self._last_good = self.latest

  def save_for_good(self, state: TrainState) -> None:
    """Saves a state, unless its step is saved already, and waits until it is on disk.

    Raises:
      UserError: it could not be written.
    """
    self.save(state)
    try:
      self._manager.wait_until_finished()
    except TimeoutError as error:
      self._give_up(error)
      self._save_anew(state)
    except Exception as error:
      if not self._vanishes():
        raise self._save_failed(error) from error
      self.save(state)
    self.wait()

  def restore(self, like: TrainState, step: int | None = None) -> TrainState:
    """Restores a checkpoint.

    Args:
      like: a state of the wanted structure, arrays or `jax.ShapeDtypeStruct`s with shardings.
      step: which one; None for the newest that is intact, with a loud warning if others had to be
        passed over. These are moved to `workdir/damaged_checkpoints`, unless read-only.

    Raises:
      UserError: the checkpoint is damaged or of another network, or all are; or some of several
        processes cannot read what others can.
    """
    steps = self.steps[::-1] if step is None else [step]
    damaged: dict[int, Exception] = {}
    others: dict[int, str] = {}
    for candidate in steps:
      try:
        state = self._read(candidate, like)
      except Exception as error:
        damaged[candidate] = error
        other = stored_otherwise(self._directory / str(candidate) / "state", like.variables.params)
        if other:
          others[candidate] = f"step {candidate} holds another network: {other}"
          logger.warning("%s", others[candidate])
        else:
          logger.warning("DAMAGED CHECKPOINT: step %d cannot be restored: %s", candidate, error)
        continue
      self._check_agreed(candidate)
      self._pass_over(damaged, candidate)
      return state
    if others and others.keys() == damaged.keys():
      raise UserError(
        f"{self._directory}: {others[steps[0]]}. The code of the network or of the recipe was "
        "changed, or these are the checkpoints of another run: undo that, or use another --workdir"
      )
    reasons = "; ".join(others.get(s) or f"step {s}: {_first_line(e)}" for s, e in damaged.items())
    raise UserError(
      f"No checkpoint under {self._directory} could be restored ({reasons}). "
      "Restore the folder from a backup, or train anew with another --workdir."
    )

  def close(self) -> None:
    """Waits for the last save and lets go of the folder.

    Raises:
      UserError: the last save could not be written.
    """
    try:
      self.wait()
    finally:
      self._manager.close()

  def _begin(self, state: TrainState) -> None:
    """Starts to save a state, unless its step is saved already, once the one before is done."""
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    try:
      self._manager.wait_until_finished()
    except TimeoutError as error:
      self._give_up(error)
    self._last_good = self.latest
    self._check_space(state)
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(state), checksums=ocp.args.JsonSave(checksums(state))
    )
    self._manager.save(step, args=items)

  def _read(self, step: int, like: TrainState) -> TrainState:
    items = ocp.args.Composite(
      state=ocp.args.StandardRestore(like), checksums=ocp.args.JsonRestore()
    )
    restored = self._manager.restore(step, args=items)
    wrong = wrong_checksum(restored["state"], restored["checksums"])
    if wrong:
      raise ValueError(f"the content of {wrong} is not what was saved (checksums differ)")
    return restored["state"]

  def _wait_for_the_newest(self) -> None:
    """Until this process sees the newest checkpoint of the main one: a shared folder may be late.

    Raises:
      UserError: it never does.
    """
    newest, deadline = as_main_process_says(self._newest), time.monotonic() + _LATE_SECONDS
    while self._newest != newest:
      if time.monotonic() > deadline:
        raise self._disagreement(self._newest, newest)
      time.sleep(1.0)
      self._manager.reload()

  def _check_agreed(self, step: int) -> None:
    """Raises UserError unless all processes restored the same step; before any is moved away."""
    wait_for_all("a checkpoint is read")
    of_main = as_main_process_says(step)
    if step != of_main:
      raise self._disagreement(step, of_main)

  @property
  def _newest(self) -> int:
    return -1 if self.latest is None else self.latest

  def _disagreement(self, mine: int, of_main: int) -> UserError:
    mine, of_main = (f"step {step}" if step >= 0 else "nothing" for step in (mine, of_main))
    return UserError(
      f"Of the checkpoints under {self._directory} this process can read {mine} at best, and the "
      f"main process {of_main}. See that all processes have the same folder and can read all of "
      "it, then run the same command again."
    )

  def _pass_over(self, damaged: Mapping[int, Exception], used: int) -> None:
    if not damaged:
      return
    logger.warning("DAMAGED CHECKPOINT: going on from the one before, step %d", used)
    if self._read_only:
      return
    if is_main_process():
      self._move_away(damaged)
    wait_for_all("damaged checkpoints are moved")
    self._manager.reload()
    self._last_good = self.latest

  def _move_away(self, damaged: Iterable[int]) -> None:
    self._set_aside.mkdir(exist_ok=True)
    for step in damaged:
      target = self._set_aside / str(step)
      number = 1
      while target.exists():
        number += 1
        target = self._set_aside / f"{step}-{number}"
      shutil.move(self._directory / str(step), target)
      logger.warning("DAMAGED CHECKPOINT: moved step %d to %s", step, target)

  def _check_space(self, state: TrainState) -> None:
    """Raises OSError where the disk cannot take the state: better now than half-way."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(self._directory).free
    if free < needed:
      raise OSError(
        errno.ENOSPC, f"the disk is full: {needed:,} bytes are needed, {free:,} are free"
      )

  @property
  def _vanished(self) -> bool:
    """Whether the newest checkpoint that was on disk is there no more."""
    last = self._directory if self._last_good is None else self._directory / str(self._last_good)
    return not last.is_dir()

  def _vanishes(self) -> bool:
    """Whether a save failed because its folder was deleted, or just is."""
    if jax.process_count() > 1:  # all would have to agree
      return False
    if not self._vanished:
      time.sleep(_DELETION_SECONDS)
    return self._vanished

  def _put_back(self) -> None:
    """Makes the folder anew: the state in memory is good."""
    try:
      self._manager.wait_until_finished()
    except Exception as error:  # the folder vanished while this one was written to it
      if jax.process_count() > 1:  # others may still wait for it
        raise
      logger.debug("in the vanished folder: %s", error)
    logger.warning(
      "CHECKPOINTS VANISHED: what was saved under %s is gone. The state in memory is good: it is "
      "saved anew, and training goes on",
      self._directory,
    )
    if is_main_process():
      self._directory.mkdir(parents=True, exist_ok=True)
    wait_for_all("the folder is made anew")
    self._manager.reload()
    self._last_good = self.latest

  def _give_up(self, error: TimeoutError) -> None:
    """Forgets a save that took Orbax's 20 minutes, or seemed to: the time of day may be set."""
    if jax.process_count() > 1:  # all would have to agree
      raise error
    logger.warning("CHECKPOINT NOT SAVED IN TIME: %s; saving anew", _first_line(error))
    self._manager.reload()

  def _save_anew(self, state: TrainState) -> None:
    """Saves the step whose save was given up, whose threads may still write to the same place."""
    for pause in _PAUSES:
      try:
        self.save(state)
        return self.wait()
      except UserError as error:
        reason = _first_line(error.__cause__ or error)
        logger.warning("CHECKPOINT NOT SAVED YET: %s; trying again in %g s", reason, pause)
        time.sleep(pause)
        self._manager.reload()
    self.save(state)

  def _save_failed(self, error: Exception) -> UserError:
    kept = "there was none before"
    if self._last_good is not None:
      last = self._directory / str(self._last_good)
      kept = f"{last} has vanished too" if self._vanished else f"the one before is intact: {last}"
    return UserError(
      f"A checkpoint could not be saved under {self._directory}: {_first_line(error)}; {kept}. "
      "Free some space or mend the folder, then run the same command again to go on from there."
    )


def _first_line(error: BaseException) -> str:
  """What went wrong, in one line; where TensorStore quotes the system's number, in its words."""
  number = re.search(r"os_error_code='(\d+)'", str(error))
  if number:
    return os.strerror(int(number[1]))
  return (str(error).strip().splitlines() or [type(error).__name__])[0]
