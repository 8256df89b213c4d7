import functools

import pytest


@pytest.fixture(autouse=True, scope="session")
def _decoders_are_traced_once():
  """Half a second each; they keep nothing from one call to the next."""
  from saol_jax.data import encoded

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(encoded, "Decoder", functools.cache(encoded.Decoder))
    yield
