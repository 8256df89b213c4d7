"""Parts of a batch, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saol_jax.accumulation import every_nth_chunk, mean_over_parts

VALUES = jnp.arange(12.0)


@pytest.mark.parametrize("unroll", [False, True])
def test_a_part_has_every_other_chunk_and_a_key_of_its_own(unroll):
  """Of 3 chunks each, so that their means are those of the whole batch."""

  def first_and_mean(part, key):
    assert part["x"].shape == (6,)
    first = {"first": jnp.int32(part["x"][0]), "first two": part["x"][:2]}
    return first | {"mean": part["x"].mean(), "noise": jax.random.normal(key)}

  key = jax.random.key(0)
  found = mean_over_parts(
    first_and_mean, {"x": VALUES}, key, parts=2, chunk=2, unroll=unroll
  )  # [0 1 4 5 8 9] and [2 3 6 7 10 11]
  np.testing.assert_array_equal(found["first two"], [1, 2])
  assert found["first"] == 2  # no float, and so of the last part
  assert found["first"].dtype == jnp.int32
  assert found["mean"] == VALUES.mean()
  noise = [jax.random.normal(own) for own in jax.random.split(key)]
  np.testing.assert_allclose(found["noise"], np.mean(noise), rtol=1e-6)


def test_only_a_loop_is_a_loop():
  """Unrolled, and where there is one part, the program has none."""

  def program(**options) -> str:
    run = lambda x, key: mean_over_parts(lambda b, _: b["x"].mean(), {"x": x}, key, **options)  # noqa: E731
    return jax.jit(run).lower(VALUES, jax.random.key(0)).as_text()

  assert "while" in program(parts=2, chunk=2)
  assert "while" not in program(parts=2, chunk=2, unroll=True)
  assert "while" not in program(parts=1, chunk=2)


def test_every_nth_chunk():
  np.testing.assert_array_equal(every_nth_chunk(VALUES, n=3, chunk=2), [0, 1, 6, 7])
  np.testing.assert_array_equal(every_nth_chunk(VALUES, n=1, chunk=2), VALUES)
