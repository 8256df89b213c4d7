"""Convolution, squeeze-and-excitation and dropping, with conventions shared by all."""

import jax
import jax.numpy as jnp
from flax import nnx

from saol_jax.errors import UserError

HE_FAN_OUT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv(
  in_channels: int,
  out_channels: int,
  kernel_size: int,
  stride: int = 1,
  *,
  groups: int = 1,
  use_bias: bool = False,
  tensorflow: bool = False,
  rngs: nnx.Rngs,
  dtype: jnp.dtype = jnp.float32,
) -> nnx.Conv:
  """Makes a square convolution, without bias where a norm that has one follows or precedes it.

  The padding is `kernel_size // 2` on both sides, as in PyTorch: 'SAME' pads a stride of 2 on the
  far side only and so shifts every feature by a pixel against pretrained weights. Kernels start as
  He et al. 2015 for ReLU, counted over the outputs: normal with variance
  2 / (kernel_size^2 * out_channels), not truncated; torchvision and the wide ResNet authors do so,
  with the outputs of all groups counted together.

  Args:
    in_channels: channels of the input.
    out_channels: channels of the result.
    kernel_size: side of the kernel, odd.
    stride: 1 or 2; the result has ceil(side / stride) cells a side.
    groups: parts into which the channels are split, each convolved by itself (Xie et al. 2017);
      divides both channel counts. `in_channels` for a depthwise convolution.
    use_bias: add a bias that starts at 0.
    tensorflow: pad as TensorFlow's 'SAME' after all, for weights that were trained with it.
    rngs: its `params` stream initialises the kernel.
    dtype: of the computation and of the result. The kernel is stored in float32.

  Returns:
    A layer (B, H, W, in_channels) -> (B, ceil(H / stride), ceil(W / stride), out_channels).
  """
  return nnx.Conv(
    in_channels,
    out_channels,
    (kernel_size, kernel_size),
    strides=stride,
    padding="SAME" if tensorflow else kernel_size // 2,
    feature_group_count=groups,
    use_bias=use_bias,
    kernel_init=HE_FAN_OUT,
    dtype=dtype,
    param_dtype=jnp.float32,
    rngs=rngs,
  )


def patches(
  in_channels: int,
  out_channels: int,
  size: int,
  stride: int | None = None,
  *,
  kernel_init: nnx.Initializer,
  rngs: nnx.Rngs,
  dtype: jnp.dtype = jnp.float32,
) -> nnx.Conv:
  """Makes a convolution of patches that do not overlap, with a bias.

  Args:
    in_channels: channels of the input.
    out_channels: channels of the result.
    size: side of a patch. Pixels at the far ends that do not fill a patch are left out, as in
      PyTorch.
    stride: 1 for patches around every cell, padded at the far ends; None for `size`.
    kernel_init: of the kernel; the bias starts at 0.
    rngs: its `params` stream initialises the kernel.
    dtype: of the computation and of the result.

  Returns:
    A layer (B, H, W, in_channels) -> (B, H // size, W // size, out_channels), or to (B, H, W, ...)
    with stride 1.
  """
  return nnx.Conv(
    in_channels,
    out_channels,
    (size, size),
    strides=stride or size,
    padding="SAME" if stride == 1 else "VALID",
    kernel_init=kernel_init,
    dtype=dtype,
    param_dtype=jnp.float32,
    rngs=rngs,
  )


def check_size(images: jax.Array, least: int) -> None:
  """Refuses images (B, H, W, 3) of which no patch would be left.

  Raises:
    UserError: a side is shorter than `least` pixels.
  """
  height, width = images.shape[1:3]
  if min(height, width) < least:
    raise UserError(
      f"images of {height} x {width} pixels are too small for this backbone, which cuts them into "
      f"patches: the shorter side needs {least}. Enlarge them, or choose another backbone."
    )


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
  """max(x, 0), whose gradient looks at the result, not at x.

  What follows keeps the result anyway; x need neither be kept nor be computed again, from what it
  is a sum of, in the backward pass.
  """
  return jnp.maximum(x, 0)


# Not `result > 0`, which XLA turns into `x > 0`.
relu.defjvps(lambda tangent, result, x: jnp.where(result != 0, tangent, jnp.zeros_like(tangent)))


def pad_channels(x: jax.Array, channels: int) -> jax.Array:
  """Appends channels of zeros: (..., C) -> (..., channels), or x itself where C is that already."""
  missing = channels - x.shape[-1]
  return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x


def dropout(rate: float, *, rngs: nnx.Rngs) -> nnx.Dropout | None:
  """Makes a dropout layer that `nnx.reseed(model, dropout=key)` finds; None where rate is 0.

  `nnx.reseed` looks for the stream's tag, and with `rngs = nnx.Rngs(0)` a plain `nnx.Dropout`
  would hold a stream tagged `default`: it would be passed over without a word, and every step
  would draw the same masks.

  Args:
    rate: share of the values set to 0 in training, in [0, 1).
    rngs: its `dropout` stream (or the default one) gives the first key.

  Returns:
    The layer, or None.
  """
  if not rate:
    return None
  return nnx.Dropout(rate, rngs=nnx.RngStream(rngs.dropout(), tag="dropout"))


def drop_path(rate: float, *, rngs: nnx.Rngs, ndim: int = 4) -> nnx.Dropout | None:
  """Makes a layer that drops a whole residual branch, by example; None where rate is 0.

    y_b = x_b / (1 - rate) with probability 1 - rate, else 0

  Stochastic depth (Huang et al. 2016), divided in training as timm and torchvision do it, so that
  evaluation has nothing to multiply. Its randomness is that of `dropout`.

  Args:
    rate: share of the examples whose branch is dropped in training, in [0, 1).
    rngs: its `dropout` stream (or the default one) gives the first key.
    ndim: dimensions of x, (B, ..., C).

  Returns:
    The layer, or None.
  """
  if not rate:
    return None
  stream = nnx.RngStream(rngs.dropout(), tag="dropout")
  return nnx.Dropout(rate, broadcast_dims=tuple(range(1, ndim)), rngs=stream)


class LayerNorm(nnx.LayerNorm):
  """Layer normalisation over channels with epsilon 1e-6, in float32 whatever comes in and goes out.

  Flax's own rounds the input to its dtype first, and refuses bfloat16 under strict promotion.
  """

  def __init__(self, channels: int, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32):
    """Makes the layer, for C `channels`; the result is of type `dtype`."""
    super().__init__(channels, epsilon=1e-6, dtype=jnp.float32, rngs=rngs)
    self.result_dtype = dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    """(..., C) of any floating type to the same shape."""
    return super().__call__(x.astype(jnp.float32)).astype(self.result_dtype)


class SqueezeExcite(nnx.Module):
  """Scales each channel by a gate that has seen the whole image.

    y = x * sigmoid(expand(act(reduce(mean_hw(x)))))

  Squeeze-and-excitation (Hu et al. 2018), with biases and SiLU as EfficientNet has it; the mean is
  taken in float32.
  """

  def __init__(
    self, channels: int, reduced: int, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32
  ):
    """Makes the layer.

    Args:
      channels: C.
      reduced: channels between the two layers.
      rngs: for the kernels.
      dtype: of the computation.
    """
    self.reduce = conv(channels, reduced, 1, use_bias=True, rngs=rngs, dtype=dtype)
    self.expand = conv(reduced, channels, 1, use_bias=True, rngs=rngs, dtype=dtype)

  def __call__(self, x: jax.Array) -> jax.Array:
    """(B, H, W, C) in the layer's dtype, to the same."""
    squeezed = x.mean((1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
    return x * nnx.sigmoid(self.expand(nnx.silu(self.reduce(squeezed))))
