"""TensorFlow, kept away from the accelerator: it decodes images and writes TensorBoard's events."""

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
  import tensorflow as tf

  tf.get_logger().setLevel("ERROR")  # each split has a graph of its own, which it calls wasteful
  for kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], kind)
  return tf
