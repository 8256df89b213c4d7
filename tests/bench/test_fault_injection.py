"""The parts of the fault benchmark that decide what is lost; the faults themselves take minutes."""

import collections
import os
import random
import subprocess
import sys
import time

import jax.numpy as jnp
import pytest

from benchmarks.fault_injection import draw, table
from benchmarks.faults import kinds
from benchmarks.faults.clock import Clock
from benchmarks.faults.comparison import different_arrays, leaves


def test_each_kind_comes_up_before_one_comes_again_in_an_order_that_the_seed_gives():
  whole = len(kinds.KINDS)
  drawn = draw(2 * whole + 3, seed=1)
  counts = collections.Counter(fault.kind for fault in drawn)
  assert sorted(counts.values()) == [2] * (whole - 3) + [3] * 3
  assert len({fault.seed for fault in drawn}) == len(drawn)
  assert drawn == draw(len(drawn), seed=1)
  assert drawn != draw(len(drawn), seed=2)


def test_comparison_of_arrays_sees_one_bit_and_the_sign_of_zero():
  tree = {"a": jnp.zeros(3), "b": jnp.arange(4), "c": jnp.ones(2)}
  other = {"a": jnp.array([0.0, -0.0, 0.0]), "b": jnp.arange(4).at[2].add(1), "d": jnp.ones(2)}
  assert different_arrays(leaves(tree), leaves(dict(tree))) == []
  assert different_arrays(leaves(tree), leaves(other)) == ["['a']", "['b']", "['c']", "['d']"]


def test_damage_changes_one_bit_or_cuts(tmp_path):
  path, content = tmp_path / "file", bytes(range(200))
  path.write_bytes(content)
  kinds._flip_a_bit(path, random.Random(0))
  changed = [a ^ b for a, b in zip(path.read_bytes(), content, strict=True) if a != b]
  assert [bin(bits).count("1") for bits in changed] == [1]
  path.write_bytes(content)
  kinds._truncate(path, random.Random(0))
  assert content.startswith(path.read_bytes())
  assert path.stat().st_size < len(content)


def test_clock_jumps_for_one_process_alone(tmp_path):
  clock = Clock(tmp_path)
  if not clock.works:
    pytest.skip("no C compiler")
  code = (
    "import sys, time, queue\n"
    "print(time.time(), flush=True); sys.stdin.readline(); print(time.time())\n"
    "start = time.monotonic()\n"
    "try: queue.Queue().get(timeout=0.2)\n"
    "except queue.Empty: print(time.monotonic() - start)\n"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", code],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ | clock.environment,
  )
  before = float(process.stdout.readline())
  clock.jump(-1e8)
  after, waited = process.communicate("\n", timeout=30)[0].split()
  now = time.time()
  assert abs(before - now) < 30
  assert abs(float(after) + 1e8 - now) < 30
  assert 0.2 <= float(waited) < 10


def test_table_counts_what_was_lost():
  results = [
    {"kind": "disk full", "code": 2, "problems": []},
    {"kind": "disk full", "code": 1, "problems": ["a traceback"]},
  ]
  rows = [
    [cell.strip() for cell in line.split("|")[1:-1]] for line in table(results, []).split("\n")
  ]
  assert rows[2:] == [["disk full", "2", "1 (1), 2 (1)", "2", "1", "1"]]
