"""What counts as a request to stop."""

import signal

import pytest

from saol_jax.stopping import StopRequest


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_is_a_request_unless_it_is_ignored(ignored):
  """Ignored is how `nohup` hands SIGHUP over."""
  before = signal.SIG_IGN if ignored else lambda *_: None
  found = signal.signal(signal.SIGHUP, before)
  try:
    with StopRequest() as stop:
      signal.raise_signal(signal.SIGHUP)
      assert stop.requested != ignored
    assert signal.getsignal(signal.SIGHUP) == before
  finally:
    signal.signal(signal.SIGHUP, found)
