"""Convolution, max-pooling and dropout with the conventions that all backbones share."""

import jax
import jax.numpy as jnp
from flax import nnx


def conv(
  in_channels: int,
  out_channels: int,
  kernel_size: int,
  stride: int = 1,
  *,
  groups: int = 1,
  use_bias: bool = False,
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
    padding=kernel_size // 2,
    feature_group_count=groups,
    use_bias=use_bias,
    kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
    dtype=dtype,
    param_dtype=jnp.float32,
    rngs=rngs,
  )


def max_pool(x: jax.Array) -> jax.Array:
  """Halves a map by 3x3 maxima at stride 2, padded with -inf by 1 on both sides as in PyTorch.

  Args:
    x: (B, H, W, C).

  Returns:
    (B, ceil(H / 2), ceil(W / 2), C), of the type of x.
  """
  return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


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
