"""What callers may give to the heads, the losses and CutMix; all of it is known while tracing."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from saol_jax.errors import UserError


def check_counts(**values: int) -> None:
  """Raises UserError where one is not a whole number above 0."""
  for name, value in values.items():
    if not isinstance(value, int | np.integer) or value < 1:
      raise UserError(f"{name}={value!r}; expected a whole number, 1 or more")


def check_stage_channels(channels: Sequence[int]) -> None:
  """Raises UserError where they are not numbers above 0, one or more."""
  if not isinstance(channels, Sequence) or not channels:
    raise UserError(
      f"stage_channels={channels!r}; expected the channels of each stage map, coarse last, such as "
      "(512, 1024, 2048)"
    )
  check_counts(**{f"stage_channels[{i}]": value for i, value in enumerate(channels)})


def check_kernel_sizes(**values: int) -> None:
  """Raises UserError where one is not odd: a convolution keeps height and width."""
  check_counts(**values)
  for name, value in values.items():
    if value % 2 == 0:
      raise UserError(f"{name}={value}; expected an odd number, such as {value + 1}")


def check_images(images: jax.Array) -> None:
  """Raises ValueError where images are not floats (B, H, W, C)."""
  shape, dtype = getattr(images, "shape", ()), getattr(images, "dtype", type(images).__name__)
  expected = "expected one array of floats (batch, height, width, channels)"
  if len(shape) != 4 or 0 in shape:
    raise ValueError(f"images of shape {shape} and type {dtype}; {expected}")
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(
      f"images of type {dtype}; {expected}, normalised: (images / 255 - mean) / std, with what the "
      "network was trained with"
    )
  if shape[1] == 3 != shape[3]:
    raise ValueError(f"images of shape {shape} look channel-first; {expected}")


def check_stages(stages: Sequence[jax.Array], channels: Sequence[int]) -> None:
  """Raises ValueError where the last maps are not (B, h, w, c) of one B with these channels."""
  used = [jnp.shape(stage) for stage in stages][-len(channels) :]
  fits = [shape[3:] == (c,) and 0 not in shape for shape, c in zip(used, channels, strict=False)]
  if len(fits) < len(channels) or not all(fits) or len({shape[0] for shape in used}) > 1:
    raise ValueError(
      f"stage maps of shapes {used}; expected a sequence of maps (batch, height, width, channels), "
      f"coarse last, the last {len(channels)} with {', '.join(map(str, channels))} channels"
    )


def check_mixing(*, alpha: float, prob: float) -> None:
  """Raises UserError where the parameters of CutMix or mixup, if known by now, are out of range."""
  if not isinstance(alpha, jax.Array) and not 0 < alpha < float("inf"):
    raise UserError(f"alpha={alpha!r}; expected a number above 0")
  if not isinstance(prob, jax.Array) and not 0 <= prob <= 1:
    raise UserError(f"prob={prob!r}; expected a probability from 0 to 1")


def check_cutmix(images: jax.Array, targets: jax.Array, boxes: jax.Array) -> None:
  """Raises ValueError where these cannot be mixed, or would be broadcast in silence."""
  if targets.ndim != 2 or not jnp.issubdtype(targets.dtype, jnp.floating):
    raise ValueError(
      f"targets of shape {targets.shape} and type {targets.dtype}; expected distributions (B, K), "
      "of class numbers made by jax.nn.one_hot(labels, K)"
    )
  if not jnp.issubdtype(boxes.dtype, jnp.integer):
    raise ValueError(f"boxes of type {boxes.dtype}; expected whole numbers, in pixels")
  if images.ndim != 4 or len(targets) != len(images) or boxes.shape != (len(images), 4):
    raise ValueError(
      f"images {images.shape}, targets {targets.shape}, boxes {boxes.shape}; expected "
      "(B, H, W, C), (B, K) and (B, 4)"
    )


def check_same_shape(hint: str = "", *, rank: int, **arrays: jax.Array) -> None:
  """Raises ValueError where arrays differ in shape, and would be broadcast in silence, or rank."""
  shapes = {name: jnp.shape(array) for name, array in arrays.items()}
  if len(set(shapes.values())) > 1 or {len(shape) for shape in shapes.values()} != {rank}:
    found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    raise ValueError(f"{found}; expected one shape for all, with {rank} axes{hint}")
