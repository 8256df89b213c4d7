"""The config of a run as a recipe: main.py takes it where `--config` is left out.

--config=saol_jax/saved_config.py:WORKDIR
"""

import pathlib

import ml_collections

from saol_jax.trained import read_config


def get_config(workdir: str) -> ml_collections.ConfigDict:
  """What `workdir/config.json` holds.

  Raises:
    UserError: it is not there, or not readable.
  """
  return read_config(pathlib.Path(workdir) / "config.json")
