"""What is printed when a program of ours runs."""

import subprocess
import sys

from tests.support import environment

# As TensorStore's threads do after a save that failed: an exception that reaches nobody.
CODE = """
from saol_jax import console
console.set_up()
class Dropped:
  def __del__(self):
    raise RuntimeError("Event loop is closed")
Dropped()
raise SystemExit("the end")
"""


def test_what_libraries_drop_in_their_threads_is_not_printed():
  done = subprocess.run(
    [sys.executable, "-c", CODE], capture_output=True, text=True, env=environment(), check=False
  )
  assert (done.returncode, done.stdout, done.stderr) == (1, "", "the end\n")
