"""Data: sources with random access, the loader, and augmentation on the device."""

from collections.abc import Callable

from saol_jax.data.source import ArraySource, DatasetInfo
from saol_jax.errors import UserError

__all__ = ["ArraySource", "DatasetInfo", "list_datasets", "load_source"]

_SPLITS = ("train", "validation", "test")


def _digit_scenes(split: str, data_dir: str | None, validation: float) -> ArraySource:
  del data_dir  # built from what ships inside scikit-learn
  from saol_jax.data import digit_scenes

  return digit_scenes.load(split, validation=validation)


def _cifar(name: str) -> Callable[[str, str | None, float], ArraySource]:
  def load(split: str, data_dir: str | None, validation: float) -> ArraySource:
    from saol_jax.data import cifar

    return cifar.load(name, split, data_dir=data_dir, validation=validation)

  return load


# Each module is imported when its data set is asked for: scikit-learn and TFDS are slow to import.
_DATASETS = {
  "cifar10": _cifar("cifar10"),
  "cifar100": _cifar("cifar100"),
  "digit_scenes": _digit_scenes,
}


def list_datasets() -> tuple[str, ...]:
  """The names that `load_source` knows."""
  return tuple(_DATASETS)


def load_source(
  name: str, split: str, *, data_dir: str | None = None, validation: float = 0.0
) -> ArraySource:
  """Loads one split of a data set into memory.

  With `validation` > 0 that share of the training examples, equal in every class, is held out: it
  is the validation split, and the rest is the train split. Which examples are held out is fixed
  (it does not depend on the run's seed), so numbers from different seeds are comparable, and
  nothing chosen on validation has been trained on. The test split is never touched by it.

  Args:
    name: one of `list_datasets()`.
    split: "train", "validation" or "test".
    data_dir: where TFDS data sets are prepared; None for TFDS's own default. `digit_scenes`
      needs none.
    validation: in [0, 1), the share of train held out.

  Returns:
    The split. The order of its examples is always the same.

  Raises:
    UserError: unknown name or split, `validation` out of range or zero where the validation split
      is asked for, or a data set that is not prepared.
  """
  if name not in _DATASETS:
    raise UserError(f"data.name={name!r} is not a data set; known are {', '.join(list_datasets())}")
  if split not in _SPLITS:
    raise UserError(f"split {split!r} does not exist; expected one of {', '.join(_SPLITS)}")
  if not 0 <= validation < 1:
    raise UserError(
      f"data.validation={validation} is not a share of train; expected 0 <= data.validation < 1, "
      "such as --config.data.validation=0.1"
    )
  if split == "validation" and validation == 0:
    raise UserError(
      f"{name} has no validation split while data.validation=0; hold out a share of train with "
      "--config.data.validation=0.1"
    )
  return _DATASETS[name](split, data_dir, validation)
