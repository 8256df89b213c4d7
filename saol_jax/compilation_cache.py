"""Compiled programs are kept between processes, so that a restart is quick."""

import hashlib
import os
import pathlib
import platform

import jax

# JAX keeps what took a second to compile: not the evaluation of a small network on a quick machine.
_WORTH_KEEPING = 0.1  # seconds
_MIN_SECONDS = "jax_persistent_cache_min_compile_time_secs"


def set_up() -> None:
  """Turns JAX's persistent compilation cache on, in the user's cache folder.

  It stays as it is where JAX was told already: a folder by `JAX_COMPILATION_CACHE_DIR`, or none by
  `JAX_ENABLE_COMPILATION_CACHE=false`; and off where the folder cannot be made. What took 0.1 s to
  compile is kept, unless `JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS` says otherwise.
  """
  if _MIN_SECONDS.upper() not in os.environ:
    jax.config.update(_MIN_SECONDS, _WORTH_KEEPING)
  if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
    return
  try:
    folder = default_folder()
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # RuntimeError: the user has no home
    return
  if os.access(folder, os.W_OK):
    jax.config.update("jax_compilation_cache_dir", str(folder))


def default_folder() -> pathlib.Path:
  """`~/.cache/saol_jax/compiled-PROCESSOR`, or below `XDG_CACHE_HOME`.

  Homes may be shared by machines with different processors, and code compiled for one can crash on
  another; JAX does not look at the processor when it looks a program up.
  """
  caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(caches).expanduser() / "saol_jax" / f"compiled-{_processor()}"


def _processor() -> str:
  """A short name for what the processor can do."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = []
  abilities = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
  return hashlib.sha256(f"{platform.machine()} {abilities}".encode()).hexdigest()[:12]
