import jax
import jax.numpy as jnp

from saol_jax.checksums import checksums, wrong_checksum

TREE = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3), "key": jax.random.key(0)}
SAVED = checksums(TREE)


def test_what_was_saved_is_right():
  assert set(SAVED) == {"['kernel']", "['bias']", "['key']"}
  assert wrong_checksum(TREE, SAVED) is None


def test_the_array_that_changed_is_named():
  for name, value in {
    "kernel": TREE["kernel"].at[1, 2].set(2),
    "bias": TREE["bias"].at[2].set(1),
    "key": jax.random.key(1),
  }.items():
    assert wrong_checksum(TREE | {name: value}, SAVED) == f"['{name}']"


def test_an_array_that_is_missing_or_was_never_saved_is_named():
  without = {name: leaf for name, leaf in TREE.items() if name != "bias"}
  assert wrong_checksum(without, SAVED) == "['bias']"
  assert wrong_checksum(TREE, checksums(without)) == "['bias']"
