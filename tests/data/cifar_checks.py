"""What a CIFAR-10 of ours must be, wherever it was read."""

import hashlib

import numpy as np

from saol_jax.data import load_source

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def in_checksum_order(images):
  labels = np.arange(len(images), dtype=np.int32) % 10
  rows = sorted(zip(images, labels, strict=True), key=_checksum)
  return [np.array(column) for column in zip(*rows, strict=True)]


def _checksum(row):
  image, label = row
  return hashlib.sha256(image.tobytes() + int(label).to_bytes(4, "little")).hexdigest()


def check_cifar(data_dir, images):
  """Both splits hold the images, labelled by their place modulo 10, in the order of checksums."""
  for split in ("train", "test"):
    source = load_source("cifar10", split, data_dir=str(data_dir))
    expected_images, expected_labels = in_checksum_order(images[split])
    np.testing.assert_array_equal(source.images, expected_images)
    np.testing.assert_array_equal(source.labels, expected_labels)
    assert list(source.info.class_names) == CIFAR10
