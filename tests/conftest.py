"""Strict arithmetic for the whole suite, four fake devices, and a compilation cache."""

import functools
import os
import pathlib

# Before JAX starts. Subprocesses inherit the cache and the strictness, and choose their devices.
_ROOT = pathlib.Path(__file__).parent.parent
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["JAX_PLATFORMS"] = "cpu"

# Compiling is what the suite spends its time on. Subprocesses, which do not see this, compile what
# users run.
_FOR_SUBPROCESSES = os.environ.get("XLA_FLAGS", "")

import jax  # noqa: E402
import pytest  # noqa: E402

if jax.__version_info__ < (0, 11):  # later ones do not know the flag, and end without a word
  os.environ["XLA_FLAGS"] = f"{_FOR_SUBPROCESSES} --xla_cpu_use_fusion_emitters=false"
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_disable_most_optimizations", True)
jax.block_until_ready(jax.jit(lambda: 0)())  # by now XLA has read its flags
os.environ["XLA_FLAGS"] = _FOR_SUBPROCESSES


# The files that take longest come first, so that two workers end together.
_LONG = ("test_train_step.py", "test_main.py", "test_resume.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  items.sort(key=lambda item: item.path.name not in _LONG)  # otherwise as they were


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
  """The folder of real data sets; skips where it is not given."""
  folder = os.environ.get("SAOL_DATA_DIR")
  if not folder:
    pytest.skip("SAOL_DATA_DIR is not set")
  return pathlib.Path(folder)


@pytest.fixture(autouse=True, scope="session")
def _sources_are_small_and_built_once():
  """Data sets are the same at every call, so that the tests of one process can share them."""
  from saol_jax import experiment
  from saol_jax.data import digit_scenes

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(experiment, "load_source", functools.cache(experiment.load_source))
    patch.setattr(digit_scenes, "NUM_TEST", 600)  # a run evaluates them a few times
    yield
