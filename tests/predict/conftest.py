"""A run without training, its predictor, and pictures."""

import numpy as np
import pytest

from saol_jax.predictor import load
from tests.support import write_run


@pytest.fixture(scope="session")
def run(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def predictor(run):
  return load(run.folder, top_k=3, batch_size=8)


@pytest.fixture(scope="session")
def images(run):
  return run.experiment.source("test").images[:11]


@pytest.fixture(scope="session")
def photo():
  """A smooth picture that is not square: 60 high, 100 wide."""
  y, x = np.mgrid[:60, :100]
  return np.stack([2 * x, 4 * y, (x + y) % 256], -1).astype(np.uint8)
