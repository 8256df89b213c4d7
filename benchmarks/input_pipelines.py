"""What `benchmarks/input.py` compares: for each pipeline a function that starts its batches."""

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from saol_jax.data.loader import Loader, prefetch
from saol_jax.tensorflow_cpu import import_tensorflow


def ours(loader: Loader) -> Callable[[], Iterator]:
  """Our loader, which makes two batches ahead."""
  return lambda: prefetch(loader.__getitem__, range(10**9))


def flax(images: list[bytes], batch_size: int, size: int) -> Callable[[], Iterator]:
  """The training part of Flax's ImageNet example, on records in memory."""
  tf = import_tensorflow()
  mean = tf.constant([0.485 * 255, 0.456 * 255, 0.406 * 255], shape=[1, 1, 3])
  std = tf.constant([0.229 * 255, 0.224 * 255, 0.225 * 255], shape=[1, 1, 3])

  def preprocess(encoded):
    shape = tf.io.extract_jpeg_shape(encoded)
    begin, extent, _ = tf.image.sample_distorted_bounding_box(
      shape,
      bounding_boxes=tf.constant([0.0, 0.0, 1.0, 1.0], shape=[1, 1, 4]),
      min_object_covered=0.1,
      aspect_ratio_range=(3 / 4, 4 / 3),
      area_range=(0.08, 1.0),
      max_attempts=10,
      use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], extent[:2]], 0)
    image = tf.io.decode_and_crop_jpeg(encoded, window, channels=3)
    image = tf.image.resize([image], [size, size], method="bicubic")[0]
    image = tf.image.random_flip_left_right(tf.reshape(image, [size, size, 3]))
    return (image - mean) / std

  dataset = tf.data.Dataset.from_tensor_slices(images).repeat().shuffle(16 * batch_size, seed=0)
  dataset = dataset.map(preprocess, num_parallel_calls=tf.data.AUTOTUNE)
  dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(2)
  return lambda: (batch.numpy() for batch in dataset)


def pillow(images: list[bytes], batch_size: int, size: int) -> Callable[[], Iterator]:
  """Decode, crop, resize by Pillow, in threads."""

  def one(index: int) -> np.ndarray:
    rng = np.random.default_rng(index)
    with Image.open(io.BytesIO(images[index % len(images)])) as image:
      side = np.sqrt(rng.uniform(0.08, 1.0) * image.width * image.height)
      aspect = np.exp(rng.uniform(np.log(3 / 4) / 2, np.log(4 / 3) / 2))
      width, height = min(image.width, side * aspect), min(image.height, side / aspect)
      x, y = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
      crop = image.convert("RGB").resize(
        (size, size), Image.Resampling.BILINEAR, box=(x, y, x + width, y + height)
      )
    return np.asarray(crop)

  def batches() -> Iterator[np.ndarray]:
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
      for start in range(0, 10**9, batch_size):
        yield np.stack(list(threads.map(one, range(start, start + batch_size))))

  return batches
