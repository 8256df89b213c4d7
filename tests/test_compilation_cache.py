import os
import pathlib

import jax
import pytest

from saol_jax import compilation_cache


@pytest.fixture
def untold(monkeypatch, tmp_path):
  """JAX as it is where nobody said anything of a cache."""
  old = jax.config.jax_compilation_cache_dir
  old_seconds = jax.config.jax_persistent_cache_min_compile_time_secs
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  jax.config.update("jax_compilation_cache_dir", None)
  yield tmp_path / "cache" / "saol_jax"
  jax.config.update("jax_compilation_cache_dir", old)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", old_seconds)


def test_it_is_on_by_default_in_a_folder_of_this_processor(untold):
  compilation_cache.set_up()
  folder = pathlib.Path(jax.config.jax_compilation_cache_dir)
  assert folder.is_dir()
  assert folder.parent == untold
  assert compilation_cache.default_folder() == folder


def test_another_processor_has_another_folder(untold, monkeypatch):
  here = compilation_cache.default_folder()
  monkeypatch.setattr(pathlib.Path, "read_text", lambda path: "flags\t\t: fpu sse\n")
  assert compilation_cache.default_folder().parent == untold
  assert compilation_cache.default_folder() != here


def test_what_jax_was_told_is_kept(untold):
  jax.config.update("jax_compilation_cache_dir", "/elsewhere")
  compilation_cache.set_up()
  assert jax.config.jax_compilation_cache_dir == "/elsewhere"


@pytest.mark.parametrize(("told", "kept"), [(None, 0.1), ("0.75", 0.75)])
def test_small_programs_are_kept_too_unless_jax_was_told_otherwise(untold, monkeypatch, told, kept):
  variable = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
  monkeypatch.delenv(variable, raising=False)
  if told is not None:
    monkeypatch.setenv(variable, told)
  jax.config.update(variable.lower(), 0.75)  # what JAX made of it
  compilation_cache.set_up()
  assert jax.config.jax_persistent_cache_min_compile_time_secs == kept


def test_it_stays_off_where_it_was_turned_off(untold):
  jax.config.update("jax_enable_compilation_cache", False)
  try:
    compilation_cache.set_up()
  finally:
    jax.config.update("jax_enable_compilation_cache", True)
  assert jax.config.jax_compilation_cache_dir is None


def test_it_stays_off_where_nothing_can_be_written(untold):
  untold.parent.write_text("a file in the folder's place")
  compilation_cache.set_up()
  assert jax.config.jax_compilation_cache_dir is None


def test_it_stays_off_without_a_home(untold, monkeypatch):
  monkeypatch.delenv("XDG_CACHE_HOME")
  monkeypatch.setattr(os.path, "expanduser", lambda path: path)
  compilation_cache.set_up()
  assert jax.config.jax_compilation_cache_dir is None
