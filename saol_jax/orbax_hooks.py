"""What Orbax is told and asked: what to keep, whom to wait for, what not to say, what is stored."""

import contextlib
import logging
import pathlib
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import multihost
from orbax.checkpoint.checkpoint_managers import preservation_policy

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def without_read_only_warning() -> Iterator[None]:
  """Leaves out one line: Orbax warns that a folder is read-only where it was told to leave it."""

  def differs(record: logging.LogRecord) -> bool:
    return record.msg != "Given directory is read only=%s"

  absl_logger = logging.getLogger("absl")
  absl_logger.addFilter(differs)
  try:
    yield
  finally:
    absl_logger.removeFilter(differs)


def meet(*, key: str, timeout_ms: int) -> None:
  """Orbax's barrier of all processes, but where a save has failed its process waits for nobody.

  The others never come: they wait for their part of that save. Orbax would leave all waiting for 20
  minutes; so the failure ends this process at its next save, and its end ends the others.
  """
  in_background = threading.current_thread() is not threading.main_thread()
  if not (in_background and sys.exception()):
    multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


class KeepBest(preservation_policy.PreservationPolicy):
  """Keeps the checkpoint with the best score.

  Orbax's own BestN wants the score when a checkpoint is saved; ours is known only afterwards, since
  a state is saved before it is evaluated, so that a stop during the evaluation loses nothing.
  """

  def __init__(self, scores: Mapping[int, float]):
    """Args: scores: by step, higher is better; may grow."""
    self._scores = scores

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    """Which of the checkpoints stay, as far as this policy is concerned."""
    best = best_step([checkpoint.step for checkpoint in checkpoints], self._scores)
    return [checkpoint.step == best for checkpoint in checkpoints]


def best_step(steps: Sequence[int], scores: Mapping[int, float]) -> int | None:
  """The step with the highest score, the first of equals."""
  scored = [step for step in sorted(steps) if step in scores]
  return max(scored, key=lambda step: scores[step], default=None)


def stored_otherwise(folder: pathlib.Path, like: Any) -> str:
  """How the network of a saved state differs from another one, by names and shapes; or "".

  Args:
    folder: of the state.
    like: parameters of the other one, perhaps without values.
  """
  try:
    with ocp.StandardCheckpointer() as reader:
      stored = reader.metadata(folder).item_metadata["variables"]["params"]
  except Exception as error:  # whoever reads the state says what is wrong with it
    logger.debug("no metadata in %s: %s", folder, error)
    return ""
  there, here = _shapes(stored), _shapes(like)
  names = [name for name in there | here if there.get(name) != here.get(name)]
  if not names:
    return ""
  first = names[0]
  more = f", and {len(names) - 1} more" if len(names) > 1 else ""
  return f"{first} is {there.get(first, 'not')} there and {here.get(first, 'not')} here{more}"


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape)
    for path, leaf in jax.tree.leaves_with_path(tree)
  }
