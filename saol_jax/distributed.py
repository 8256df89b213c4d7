"""Processes and devices: one mesh axis, `data`; the batch is split over it, the rest replicated."""

import importlib.util
import itertools
import os
from collections.abc import Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from saol_jax.errors import UserError

Answer = TypeVar("Answer", bool, int)

# Launchers that tell each process how many there are, see `join_processes`.
_LAUNCHERS = {"SLURM": "SLURM_STEP_NUM_TASKS", "Open MPI": "OMPI_COMM_WORLD_SIZE"}
_BARRIER_SECONDS = 3600
_places = itertools.count()  # barriers have names of their own
_HEARTBEAT_SECONDS = 60  # a process that was silent for so long is taken for dead


def join_processes(
  coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
  """Makes one run of the processes that were started with the same command.

  Without arguments the other processes are found where JAX can find them: on TPU pods, and under
  SLURM (srun) and Open MPI (mpirun) with more than one task. Elsewhere each process is told.
  Nothing may have used a device before.

  Args:
    coordinator: `HOST:PORT` of process 0, which all others must be able to reach.
    num_processes: how many there are.
    process_id: which one this is, from 0.

  Raises:
    UserError: some of the three are missing or out of range, or the others cannot be found.
  """
  given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
  missing = [f"--{name}" for name, value in given.items() if value is None]
  if 0 < len(missing) < len(given):
    raise UserError(
      f"{', '.join(missing)} missing: --coordinator, --num_processes and --process_id go together"
    )
  if missing and not _on_tpu() and _launcher() is None:
    return
  # Or JAX would take SIGTERM for itself. Stopping is ours, see `stopping`.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    jax.distributed.initialize(
      coordinator, num_processes, process_id, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS
    )
  except (ValueError, TypeError, RuntimeError) as error:
    raise UserError(
      f"The processes of this run did not find each other: {error}. Start all of them within 5 "
      "minutes, with the same --coordinator=HOST:PORT and --num_processes, and each with its own "
      "--process_id from 0; the port must be reachable"
    ) from error


def stay_alone(
  what: str, coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
  """For a program that is one process: several would do the same and overwrite each other's files.

  Args:
    what: names the program in the message.
    coordinator, num_processes, process_id: see `join_processes`.

  Raises:
    UserError: this process was started as one of several.
  """
  given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
  asked = [f"--{name}" for name, value in given.items() if value is not None]
  if asked or _launcher() is not None:
    raise UserError(
      f"{what} runs in one process; start it once, without "
      f"{', '.join(asked) or f'the other tasks of {_launcher()}'}"
    )


def leave_processes() -> None:
  """Ends what `join_processes` began, once all processes are here; needed before `os._exit`."""
  if jax.distributed.is_initialized():
    wait_for_all("the end")  # the main one has a summary to write
    jax.distributed.shutdown()


def is_main_process() -> bool:
  """Whether this is the process that writes and talks."""
  return jax.process_index() == 0


def wait_for_all(what: str) -> None:
  """Returns once every process has come to this place.

  It waits far longer than collectives on the devices do: hosts may need minutes to compile.
  """
  if jax.process_count() > 1:
    from orbax.checkpoint import multihost

    key = f"saol_jax {next(_places)}: {what}"
    multihost.get_barrier_sync_fn()(key=key, timeout_ms=1000 * _BARRIER_SECONDS)


def as_main_process_says(answer: Answer) -> Answer:
  """The main process's answer, a bool or a small number, in every process; all must ask."""
  if jax.process_count() == 1:
    return answer
  return type(answer)(multihost_utils.broadcast_one_to_all(np.asarray(answer)))


def _on_tpu() -> bool:
  installed = importlib.util.find_spec("libtpu") is not None
  return installed and os.environ.get("JAX_PLATFORMS", "tpu").startswith("tpu")


def _launcher() -> str | None:
  """What started several processes like this one."""
  started = (name for name, tasks in _LAUNCHERS.items() if int(os.environ.get(tasks, 1)) > 1)
  return next(started, None)


def data_mesh() -> Mesh:
  """All devices in a row, those of each process side by side.

  So each process owns consecutive examples of a batch, which `put_batch` relies on. `jax.make_mesh`
  orders devices by their wiring instead, by which the chips of a TPU host need not be neighbours.
  """
  devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
  return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """A copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
  """Consecutive, equal parts of the leading dimension on the devices."""
  return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
  """Makes global arrays from this process's part of a batch, of a mesh as `data_mesh` makes it."""
  sharding = split_batch(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()
  }
