"""TensorFlow, kept away from the accelerator: it decodes images and writes TensorBoard's events."""

import ctypes
import functools
import os


@functools.cache
def import_tensorflow():
  """TensorFlow with its GPUs and TPUs hidden, so that it takes none of their memory.

  Everything of ours that needs TensorFlow gets it here, before it has started any device.

  Raises:
    ImportError: it is not installed.
  """
  # Its notes on speed, and lines for every broken image, would be noise: we name these ourselves.
  if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # JAX sets 1 when it is imported
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  _limit_arenas()
  import tensorflow as tf

  tf.get_logger().setLevel("ERROR")  # each split has a graph of its own, which it calls wasteful
  for kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], kind)
  return tf


def _limit_arenas() -> None:
  """Tells glibc's malloc to keep one heap a core, not eight: many threads decode images here.

  Buffers move between threads, and each heap keeps what it once needed: memory then grows for
  hours, by half as much again in the first epochs of ImageNet-sized images on 2 cores
  (benchmarks/input.py).
  """
  m_arena_max = -8  # of malloc.h
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries need no such hint
  if mallopt is not None:
    mallopt(m_arena_max, os.cpu_count() or 1)
