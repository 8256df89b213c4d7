"""What `import saol_jax` gives, in an interpreter of its own."""

import sys

import saol_jax
from tests.support import run


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
