"""What `import saol_jax` gives, in an interpreter of its own."""

import sys
import tomllib

from packaging.requirements import Requirement

import saol_jax
from tests.support import ROOT, run


def python(code: str) -> str:
  done, output = run([sys.executable, "-c", code])
  assert done == 0, output
  return output.strip()


def test_a_missing_package_is_named_with_what_installs_it():
  code = """
import sys
sys.modules["cv2"] = None
import saol_jax
from saol_jax import command_line
try:
  saol_jax.wsol
except ImportError as error:
  print(error)
command_line.run(lambda: __import__("saol_jax.wsol"))
"""
  done, output = run([sys.executable, "-c", code])
  assert done == 2
  says = "the package 'cv2' is not installed; install all that training"
  asked, ran = output.splitlines()
  assert asked.startswith(says)
  assert ran == f"error: {asked}"
  assert "pip install 'FOLDER[training]'" in ran


def test_submodules_are_attributes_and_the_import_stays_light():
  names = saol_jax._SUBMODULES
  assert {"losses", "cutmix", "localization", "explain", "pretrained", "heads"} <= set(names)
  assert {"load", *names} <= set(dir(saol_jax))
  heavy = ("orbax.checkpoint", "matplotlib", "PIL", "cv2", "tensorflow", "ml_collections")
  code = f"""
import sys, saol_jax
print([name for name in {heavy} if name in sys.modules])
print([name for name in {names} if getattr(saol_jax, name) is not sys.modules["saol_jax." + name]])
print(saol_jax.pretrained.load_pretrained.__name__, saol_jax.load.__module__)
print(hasattr(saol_jax, "nonsense"))
"""
  assert python(code).splitlines() == ["[]", "[]", "load_pretrained saol_jax.predictor", "False"]


def test_ranges_are_of_the_packages_that_are_pinned_and_allow_their_versions():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  extra = project["optional-dependencies"]["training"]
  ranges = [Requirement(line) for line in (*project["dependencies"], *extra)]
  lines = (ROOT / "requirements.txt").read_text().splitlines()
  pins = dict(line.split("#")[0].strip().split("==") for line in lines if not line.startswith("#"))
  del pins["jaxlib"]  # JAX brings its own
  assert sorted(range.name for range in ranges) == sorted(pins)
  for range in ranges:
    assert "==" not in str(range.specifier), range
    assert pins[range.name] in range.specifier, range


def test_without_the_extra_a_trained_model_can_be_loaded():
  """As after `pip install .`: what only the extra brings cannot be imported."""
  code = """
import sys
for name in ("array_record", "clu", "cv2", "matplotlib", "sklearn", "tensorboard", "tensorflow",
             "tensorflow_datasets"):
  sys.modules[name] = None
import saol_jax
from saol_jax import explain, fuse, localization, losses, pretrained
print(saol_jax.load.__name__)
"""
  assert python(code) == "load"
