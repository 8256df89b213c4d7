"""Output layers: GAP-FC, the baseline, and SAOL, the Spatially Attentive Output Layer."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx, struct

from saol_jax.checks import (
  check_counts,
  check_kernel_sizes,
  check_same_shape,
  check_stage_channels,
  check_stages,
)
from saol_jax.norm import GhostBatchNorm


@struct.dataclass
class SpatialOutput:
  """What SAOL says of a batch of images; all float32, H x W the output grid.

  Attributes:
    log_probs: (B, K), log of the class distribution of the image; exp of a row sums to 1.
    attention: (B, H, W), the weight of each cell; sums to 1 over the grid.
    spatial_log_probs: (B, H, W, K), log of the class distribution in each cell.
    mask_logits: (B, H, W), logit of "this cell was pasted by CutMix"; None outside training, and
      without the branch for it.
  """

  log_probs: jax.Array
  attention: jax.Array
  spatial_log_probs: jax.Array
  mask_logits: jax.Array | None


def spatial_attention_pool(attention_logits: jax.Array, class_logits: jax.Array) -> jax.Array:
  """Log of the attention-weighted class distribution.

    log y_k = logsumexp_ij( log softmax_ij(a)_ij + log softmax_k(z)_ijk )

  Args:
    attention_logits: (B, H, W), a, any real numbers.
    class_logits: (B, H, W, K), z, any real numbers.

  Returns:
    (B, K) float32 log-probabilities; exp of a row sums to 1.

  SAOL (Kim et al. 2020), section 3.1, kept in log space so that a confident cell cannot underflow
  the loss.
  """
  check_same_shape(
    rank=3, attention_logits=attention_logits, one_class_of_logits=class_logits[..., 0]
  )
  return _pool(_log_attention(attention_logits), _log_classes(class_logits))


def _log_attention(logits: jax.Array) -> jax.Array:
  """Log softmax over the H x W cells of (B, H, W), in float32."""
  return jax.nn.log_softmax(logits.astype(jnp.float32), axis=(1, 2))


def _log_classes(logits: jax.Array) -> jax.Array:
  """Log softmax over the K classes of (B, H, W, K), in float32."""
  return jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)


def _pool(log_attention: jax.Array, spatial_log_probs: jax.Array) -> jax.Array:
  """(B, K) log of the attention-weighted mean of the cells' distributions."""
  return jax.nn.logsumexp(log_attention[..., None] + spatial_log_probs, axis=(1, 2))


class GapFC(nnx.Module):
  """Global average pooling and a linear layer: `logits = W . mean_hw(X) + b`.

  The kernel starts as in torchvision's ResNets: uniform in +-1 / sqrt(channels). All is computed in
  float32: logits rounded to bfloat16 tie, and a tie goes to the lower class.
  """

  def __init__(self, channels: int, num_classes: int, *, rngs: nnx.Rngs):
    """Makes the layer for C = `channels` and K = `num_classes`."""
    check_counts(channels=channels, num_classes=num_classes)
    uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    self.linear = nnx.Linear(channels, num_classes, kernel_init=uniform, rngs=rngs)

  def __call__(self, stage: jax.Array) -> jax.Array:
    """(B, H, W, C) features, any floating type, to (B, K) float32 logits."""
    check_stages([stage], [self.linear.in_features])
    return self.linear(stage.mean((1, 2), dtype=jnp.float32))


class SAOL(nnx.Module):
  """Spatially attentive output layer: class distributions in every cell, and where to look.

    y_k = sum_ij A_ij Y_ijk

  A, the attention map, comes from the last stage: conv, BN, ReLU, conv to 1, softmax over cells.
  Y, the spatial logits, come from the last three stages: each resized to the grid of the last one
  and mapped to `width` channels, concatenated, BN, ReLU, conv to K, softmax over classes.
  An auxiliary branch shaped like the attention branch, used in training only, predicts for every
  cell whether CutMix pasted it.

  SAOL (Kim et al. 2020), sections 3.1 and 3.2. The paper leaves kernel sizes and widths open: the
  defaults here are 3 x 3 (laterals 1 x 1) and 128.
  """

  def __init__(
    self,
    stage_channels: Sequence[int],
    num_classes: int,
    *,
    width: int = 128,
    kernel_size: int = 3,
    lateral_kernel_size: int = 1,
    mask_branch: bool = True,
    norm_group: int | None = None,
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Makes the layer.

    Args:
      stage_channels: channels of each stage map that will be passed, coarse last; the last three
        are used, or as many as there are.
      num_classes: K.
      width: channels of each lateral map and of the attention and mask branches' hidden layers.
      kernel_size: of the attention, mask and class convolutions; odd.
      lateral_kernel_size: of the convolution that maps each stage to `width` channels; odd.
      mask_branch: build the branch that L_SS1 trains; not needed for inference.
      norm_group: examples a group of the batch normalisation; None for the whole batch.
      dtype: of the convolutions and what they give, the logits of many classes among it;
        parameters, statistics, scores, softmax and pooling are float32.
      rngs: stream `params` initialises the kernels.

    Raises:
      UserError: a size that cannot be.
    """
    check_counts(num_classes=num_classes, width=width, norm_group=norm_group or 1)
    check_stage_channels(stage_channels)
    check_kernel_sizes(kernel_size=kernel_size, lateral_kernel_size=lateral_kernel_size)
    options = {"norm_group": norm_group, "dtype": dtype, "rngs": rngs}
    last, used = stage_channels[-1], stage_channels[-3:]
    self.attention = _CellScore(last, width, kernel_size, **options)
    self.laterals = nnx.List(
      [_Conv(channels, width, lateral_kernel_size, dtype=dtype, rngs=rngs) for channels in used]
    )
    self.norm = GhostBatchNorm(width * len(used), group=norm_group, dtype=dtype)
    self.classify = _Logits(width * len(used), num_classes, kernel_size, dtype=dtype, rngs=rngs)
    # Last, so that all else starts with the same values without it.
    self.mask = _CellScore(last, width, kernel_size, **options) if mask_branch else None

  def __call__(self, stages: Sequence[jax.Array], *, train: bool) -> SpatialOutput:
    """Classifies every cell and the whole image.

    Args:
      stages: feature maps (B, h, w, c), any sizes; the grid H x W of the result is the last one's.
      train: normalise with batch statistics, update the running ones, and run the mask branch.

    Returns:
      SpatialOutput.

    Raises:
      ValueError: maps of other shapes than the layer was made for.
    """
    check_stages(stages, [lateral.in_features for lateral in self.laterals])
    last = stages[-1]
    log_attention = _log_attention(self.attention(last, train=train))
    spatial_log_probs = _log_classes(self._class_logits(stages, train=train))
    return SpatialOutput(
      log_probs=_pool(log_attention, spatial_log_probs),
      attention=jnp.exp(log_attention),
      spatial_log_probs=spatial_log_probs,
      mask_logits=self.mask(last, train=train) if train and self.mask is not None else None,
    )

  def _class_logits(self, stages: Sequence[jax.Array], *, train: bool) -> jax.Array:
    """(B, H, W, K) from the last stages, each brought to the grid of the last one."""
    grid = stages[-1].shape[1:3]
    features = [
      _resized_conv(lateral, stage, grid)
      for lateral, stage in zip(self.laterals, stages[-len(self.laterals) :], strict=True)
    ]
    features = jnp.concatenate(features, axis=-1)
    return self.classify(nnx.relu(self.norm(features, train=train)))


class _CellScore(nnx.Module):
  """One number a cell: conv, BN, ReLU, conv to 1."""

  def __init__(self, channels, width, kernel_size, *, norm_group, dtype, rngs):
    self.hidden = _Conv(channels, width, kernel_size, dtype=dtype, rngs=rngs)
    self.norm = GhostBatchNorm(width, group=norm_group, dtype=dtype)
    self.score = _Logits(width, 1, kernel_size, dtype=dtype, rngs=rngs)

  def __call__(self, stage: jax.Array, *, train: bool) -> jax.Array:
    """(B, H, W, C) to (B, H, W) float32."""
    hidden = nnx.relu(self.norm(self.hidden(stage), train=train))
    return self.score(hidden).squeeze(-1).astype(jnp.float32)


class _Conv(nnx.Conv):
  """A convolution that keeps height and width."""

  def __init__(self, channels, features, kernel_size, *, use_bias=False, dtype, rngs):
    super().__init__(
      channels,
      features,
      (kernel_size, kernel_size),
      padding=kernel_size // 2,
      use_bias=use_bias,
      dtype=dtype,
      kernel_init=nnx.initializers.he_normal(),
      rngs=rngs,
    )


class _Logits(_Conv):
  """The convolution, with bias, that ends a branch.

  To gather the neighbourhood of each cell, as compilers do it, takes longer than the arithmetic
  where few channels come out. A single product then gives what each cell contributes to each of its
  neighbours, and these are added up, in float32. How few is as two CPU cores had it; by the
  programs that XLA makes for an H100, it is all the same there.
  """

  def __init__(self, channels, features, kernel_size, *, dtype, rngs):
    super().__init__(channels, features, kernel_size, use_bias=True, dtype=dtype, rngs=rngs)
    self.few = 8 * features <= min(channels, 128)

  def __call__(self, x: jax.Array) -> jax.Array:
    """(B, H, W, C) to (B, H, W, features)."""
    if not self.few:
      return super().__call__(x)
    side, _, channels, features = self.kernel.shape
    kernel = self.kernel[...].astype(self.dtype).transpose(2, 0, 1, 3).reshape(channels, -1)
    cells = x.astype(self.dtype).reshape(-1, channels)
    parts = jnp.matmul(cells, kernel, preferred_element_type=jnp.float32)
    parts = parts.reshape(*x.shape[:3], side, side, features)
    middle = side // 2
    return self.bias[...].reshape(1, 1, 1, -1) + sum(
      _shifted(parts[:, :, :, i, j], middle - i, middle - j)
      for i in range(side)
      for j in range(side)
    )


def _shifted(x: jax.Array, down: int, right: int) -> jax.Array:
  """(B, H, W, C) moved by so many cells; what comes in is zero."""
  edges = ((0, 0, 0), (down, -down, 0), (right, -right, 0), (0, 0, 0))
  return jax.lax.pad(x, jnp.zeros((), x.dtype), edges)


def _resized_conv(conv: nnx.Conv, stage: jax.Array, grid: tuple[int, int]) -> jax.Array:
  """Convolution and bilinear resize to `grid`, in the cheaper order.

  A 1 x 1 convolution without bias commutes with the resize, so the one that leaves the other less
  to do comes first. Shrinking averages over the whole footprint of a cell (antialiasing).
  """
  height, width = stage.shape[1:3]
  if (height, width) == grid:
    return conv(stage)
  if height * width > grid[0] * grid[1]:
    return conv(_resize(stage, grid))
  return _resize(conv(stage), grid)


def _resize(stage: jax.Array, grid: tuple[int, int]) -> jax.Array:
  """Bilinear resize of (B, h, w, C) to (B, *grid, C), antialiased where it shrinks.

  Weights as `jax.image.resize`, which transposes the maps on the way; products batched over images,
  then over rows, leave their layout alone.
  """
  batch, height, width, channels = stage.shape
  by_row = _resize_first(stage.reshape(batch, height, width * channels), grid[0])
  by_column = _resize_first(by_row.reshape(batch * grid[0], width, channels), grid[1])
  return by_column.reshape(batch, *grid, channels)


def _resize_first(x: jax.Array, size: int) -> jax.Array:
  """(N, n, C) to (N, size, C)."""
  weights = jax.image.resize(jnp.eye(x.shape[1], dtype=x.dtype), (size, x.shape[1]), "linear")
  return jnp.matmul(jnp.broadcast_to(weights, (x.shape[0], *weights.shape)), x)
