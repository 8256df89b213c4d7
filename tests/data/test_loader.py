import itertools
import threading
import time

import numpy as np
import pytest

from saol_jax.data.loader import Loader, padded_batches, prefetch
from saol_jax.data.source import ArraySource, DatasetInfo


def numbered(size):
  """A source whose images and labels are the numbers of the examples."""
  info = DatasetInfo(tuple(map(str, range(size))), (0.5,) * 3, (0.2,) * 3)
  labels = np.arange(size, dtype=np.int32)
  images = np.broadcast_to(np.uint8(labels)[:, None, None, None], (size, 2, 2, 3))
  boxes = np.array([[0, 0, 1, 1]] * size, np.int32)
  return ArraySource(np.ascontiguousarray(images), labels, info, boxes)


def labels(loader, batches):
  return np.concatenate([loader[k]["label"] for k in batches])


# Order


@pytest.mark.parametrize(("size", "batch_size"), [(20, 4), (23, 4), (7, 16), (5, 5)])
def test_each_epoch_is_a_new_permutation_without_a_gap(size, batch_size):
  """Also where the batch does not divide an epoch, or holds several."""
  epochs = 4
  batches = -(-epochs * size // batch_size)
  row = labels(Loader(numbered(size), batch_size, seed=0), range(batches))
  orders = row[: epochs * size].reshape(epochs, size)
  np.testing.assert_array_equal(np.sort(orders, 1), [range(size)] * epochs)
  assert len({tuple(order) for order in orders}) == epochs
  assert all((order != np.arange(size)).any() for order in orders)


def test_a_batch_holds_the_examples_that_its_indices_say():
  source = numbered(30)
  loader = Loader(source, 8, seed=3)
  for k in (0, 5):
    batch = loader[k]
    assert batch.keys() == {"image", "label", "box"}
    np.testing.assert_array_equal(batch["label"], loader.indices(k))
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], loader.indices(k))


def test_batch_k_does_not_depend_on_what_came_before():
  steady = Loader(numbered(23), 4, seed=1)
  row = [steady[k]["label"] for k in range(40)]
  for k in (39, 0, 17, 5, 6, 39):
    np.testing.assert_array_equal(Loader(numbered(23), 4, seed=1)[k]["label"], row[k])
    np.testing.assert_array_equal(steady[k]["label"], row[k])


def test_a_far_batch_costs_as_little_as_the_first():
  loader = Loader(numbered(23), 4, seed=1)
  start = time.perf_counter()
  indices = loader.indices(10**9)
  assert time.perf_counter() - start < 0.1
  assert len(set(indices.tolist())) >= 2
  assert indices.min() >= 0
  assert indices.max() < 23


def test_any_number_of_processes_reads_the_same_batches():
  for k in range(8):
    whole = Loader(numbered(23), 8, seed=2)[k]["label"]
    for count in (2, 4, 8):
      parts = [
        Loader(numbered(23), 8, seed=2, process_index=i, process_count=count)[k]["label"]
        for i in range(count)
      ]
      assert {len(part) for part in parts} == {8 // count}
      np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_the_seed_decides_the_order():
  rows = [labels(Loader(numbered(100), 50, seed=seed), range(4)) for seed in (0, 0, 1, 2)]
  np.testing.assert_array_equal(rows[0], rows[1])
  # A shuffled row meets another in about one place of 100.
  for a, b in itertools.combinations(rows[1:], 2):
    assert (a == b).mean() < 0.1
  assert (rows[0][:100] == rows[0][100:]).mean() < 0.1
  # Epoch 1 of one seed is not epoch 0 of the next.
  assert (rows[0][100:] == rows[2][:100]).mean() < 0.1


def test_a_source_is_told_the_seed_and_the_place_of_its_first_example():
  """Of which it makes the random crops of that example."""
  seen = []

  class Recorded:
    def __len__(self):
      return 20

    def sample(self, indices, seed, place):
      seen.append((len(indices), seed, place))
      return {}

  for process in (0, 1):
    Loader(Recorded(), 8, seed=5, process_index=process, process_count=2)[3]
  assert seen == [(4, 5, 24), (4, 5, 28)]


# Evaluation


@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (8, 4), (3, 5), (1, 1)])
def test_padded_batches_hold_each_example_once_in_order(size, batch_size):
  batches = list(padded_batches(numbered(size), batch_size))
  assert len(batches) == -(-size // batch_size)
  for batch in batches:
    assert batch["mask"].dtype == np.float32
    assert {name: len(value) for name, value in batch.items()} == dict.fromkeys(
      ("image", "label", "box", "mask"), batch_size
    )
  row, mask = (np.concatenate([b[name] for b in batches]) for name in ("label", "mask"))
  assert set(mask) <= {0, 1}
  np.testing.assert_array_equal(row[mask == 1], range(size))


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_the_evaluation_out_without_a_gap(process_count):
  """11 examples in batches of 8: all get two batches, and together each example once."""
  whole = list(padded_batches(numbered(11), 8))
  parts = [
    list(padded_batches(numbered(11), 8, process_index=i, process_count=process_count))
    for i in range(process_count)
  ]
  assert {len(part) for part in parts} == {2}
  for number, batch in enumerate(whole):
    for name in batch:
      joined = np.concatenate([part[number][name] for part in parts])
      np.testing.assert_array_equal(joined, batch[name])


# Prefetching


def prefetch_threads():
  return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_prefetch_keeps_the_order_and_ends_its_threads():
  def make(number):
    time.sleep(0.002 * (number % 3))
    return number**2

  for depth in (1, 2, 50):
    assert list(prefetch(make, range(20), depth=depth)) == [n**2 for n in range(20)]
  assert list(prefetch(make, range(0))) == []
  assert list(prefetch(make, iter([3, 1, 2]))) == [9, 1, 4]
  assert not prefetch_threads()


def test_prefetch_runs_ahead_but_not_further_than_asked():
  made = []
  items = prefetch(made.append, itertools.count(), depth=3)
  next(items)
  deadline = time.monotonic() + 5
  while len(made) < 4 and time.monotonic() < deadline:
    time.sleep(0.01)
  time.sleep(0.05)
  # One given away, three in the making or waiting.
  assert sorted(made) == [0, 1, 2, 3]
  items.close()


@pytest.mark.parametrize("error", [OSError, StopIteration, ZeroDivisionError])
def test_an_exception_comes_where_its_item_would_have(error):
  def make(number):
    if number == 3:
      raise error("broken file")
    return number

  items = prefetch(make, range(10))
  assert [next(items) for _ in range(3)] == [0, 1, 2]
  # Python turns a StopIteration into a RuntimeError where it would pass for the end.
  with pytest.raises(RuntimeError if error is StopIteration else error) as caught:
    next(items)
  reason = caught.value.__cause__ if error is StopIteration else caught.value
  assert isinstance(reason, error)
  assert "broken file" in str(reason)
  assert not prefetch_threads()


def test_none_is_an_item_like_any_other():
  assert list(prefetch(lambda _: None, range(3))) == [None] * 3


def test_closing_early_stops_the_threads():
  made = []
  items = prefetch(made.append, itertools.count())
  next(items)
  assert prefetch_threads()
  start = time.monotonic()
  items.close()
  assert time.monotonic() - start < 2
  assert not prefetch_threads()
  count = len(made)
  time.sleep(0.05)
  assert len(made) == count < 10
