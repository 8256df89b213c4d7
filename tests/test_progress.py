"""How the time of a run is counted, with a clock of our own."""

import logging

import pytest

from saol_jax import progress
from saol_jax.progress import Chrono, Progress, clock


@pytest.fixture
def now(monkeypatch):
  time = [100.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
  return time


def pass_time(chrono, now, *, training, waiting, pausing=0.0):
  now[0] += training
  with chrono.waiting():
    now[0] += waiting
  with chrono.pause():
    now[0] += pausing


def test_pauses_do_not_count_and_waiting_is_a_share_of_the_rest(now):
  chrono = Chrono(num_train_steps=100, batch_size=32, elapsed=50.0)
  chrono.begin(20)
  pass_time(chrono, now, training=6.0, waiting=2.0, pausing=30.0)
  rate, waited, left = chrono.lap(30)
  assert rate == pytest.approx(10 * 32 / 8)
  assert waited == pytest.approx(0.25)
  assert left == pytest.approx(70 * 0.8)
  assert chrono.elapsed == pytest.approx(50 + 38)
  pass_time(chrono, now, training=4.0, waiting=0.0)  # a new interval
  assert chrono.lap(50)[:2] == (pytest.approx(20 * 32 / 4), 0.0)


def test_a_glance_says_the_pace_now_and_then_and_leaves_the_interval(now):
  chrono = Chrono(num_train_steps=100, batch_size=32, elapsed=0.0)
  chrono.begin(20)
  pass_time(chrono, now, training=9.0, waiting=0.0)
  assert chrono.glance(22) is None  # too soon
  pass_time(chrono, now, training=0.5, waiting=0.0, pausing=50.0)
  assert chrono.glance(22) is None  # a pause is no silence
  pass_time(chrono, now, training=2.5, waiting=0.0)
  assert chrono.glance(20) is None  # nothing is done yet
  assert chrono.glance(24) == (pytest.approx(4 * 32 / 12), pytest.approx(76 * 3))
  assert chrono.glance(25) is None  # just said
  pass_time(chrono, now, training=12.0, waiting=0.0)
  assert chrono.lap(28)[0] == pytest.approx(8 * 32 / 24)  # of the whole interval
  pass_time(chrono, now, training=9.0, waiting=0.0)
  assert chrono.glance(30) is None


def test_waiting_for_data_is_warned_of_once_when_it_goes_on(now, caplog):
  chrono = Chrono(num_train_steps=100, batch_size=32, elapsed=0.0)
  chrono.begin(0)

  def warnings_after(*shares):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
      for share in shares:
        pass_time(chrono, now, training=10 * (1 - share), waiting=10 * share)
        chrono.lap(10)
    return [record.getMessage() for record in caplog.records]

  assert warnings_after(0.09, 0.09, 0.09, 0.09) == []
  assert warnings_after(0.5, 0.5, 0.0, 0.5, 0.5, 0.0) == []  # it did not stay
  (message,) = warnings_after(0.2, 0.3, 0.4)
  assert "waits for data for 40 % of the time" in message
  assert "python -m saol_jax.data.resize" in message
  assert warnings_after(0.9, 0.9, 0.9, 0.9) == []


def lines_of(progress: Progress, now, caplog, *steps: tuple[str, int, float]) -> list[str]:
  """The lines that a progress writes: each step is a method, a number of images, and seconds."""
  caplog.clear()
  with caplog.at_level(logging.INFO, "saol_jax"):
    for method, count, seconds in steps:
      now[0] += seconds
      getattr(progress, method)(count)
  return caplog.messages


def test_progress_leaves_out_of_its_rate_what_had_to_wait_for_a_compilation(now, caplog):
  steps = (("skip", 10, 60.0), ("add", 10, 5.0), ("add", 10, 5.0), ("add", 10, 1.0))
  progress = Progress("predicted", 40)
  lines = lines_of(progress, now, caplog, *steps)
  assert lines[0] == "predicted: 20 of 40 images (50 %), 2.0 images/s, 0:00:10 left"
  assert lines[-1] == "predicted: 40 of 40 images (100 %), 2.7 images/s, 0:00:00 left"


def test_what_is_soon_done_may_say_nothing(now, caplog):
  steps = (("add", 10, 1.0), ("add", 10, 1.0))
  assert not lines_of(Progress("evaluated", 20, last_line=False), now, caplog, *steps)
  assert len(lines_of(Progress("evaluated", 20), now, caplog, *steps)) == 1


@pytest.mark.parametrize(
  ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05"), (90_000, "25:00:00")]
)
def test_clock(seconds, text):
  assert clock(seconds) == text
