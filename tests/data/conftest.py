import functools

import numpy as np
import pytest

from tests.data.bad_files import BROKEN, GOOD, JPEG_BYTES, ODD, load, place_of, write


@pytest.fixture(autouse=True, scope="session")
def _decoders_are_traced_once():
  """Half a second each; they keep nothing from one call to the next."""
  from saol_jax.data import encoded

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(encoded, "Decoder", functools.cache(encoded.Decoder))
    yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
  """Class `odd` has all of ODD, class `worse` all of BROKEN and three good ones."""
  files = {f"train/odd/{name}": data for name, data in ODD.items()}
  files |= {f"train/worse/{name}": data for name, (data, _) in BROKEN.items()}
  files |= {f"train/worse/{name}": JPEG_BYTES for name in GOOD}
  files |= {f"val/worse/{n}.jpg": JPEG_BYTES for n in range(5)}
  files |= {"train/odd/.hidden.jpg": b"", "train/.hidden/a.jpg": b"", "train/odd/notes.txt": b""}
  return write(tmp_path_factory.mktemp("folder"), files)


@pytest.fixture(scope="session")
def decoded(folder):
  """All files in evaluation's geometry, and where each is."""
  source = load(folder)
  return source, place_of(source), source[np.arange(len(source))]
