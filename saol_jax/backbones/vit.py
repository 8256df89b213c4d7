"""Vision transformer: Dosovitskiy et al. 2021."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from saol_jax.backbones import layers
from saol_jax.backbones.registry import register

# timm's, for everything but the patches; its truncation at +-2 is a hundred standard deviations.
_INIT = nnx.initializers.normal(0.02)
_NUM_STAGES = 3


class TransformerBlock(nnx.Module):
  """Self-attention and a layer of four times the channels, each behind a norm and beside x.

  x = x + project(attention(norm1(x)));  y = x + contract(gelu(expand(norm2(x))))

  Queries, keys and values come from one layer, in this order. GELU is the exact one.
  """

  def __init__(
    self,
    channels: int,
    heads: int,
    *,
    drop_rate: float,
    rngs: nnx.Rngs,
    dtype: jnp.dtype = jnp.float32,
  ):
    """Makes the block.

    Args:
      channels: C.
      heads: of the attention; divides C.
      drop_rate: share of the examples whose branch is dropped in training, for each branch.
      rngs: for the kernels and the dropping.
      dtype: of the computation.
    """
    options = {"rngs": rngs, "dtype": dtype}
    self.norm1 = layers.LayerNorm(channels, **options)
    self.qkv = nnx.Linear(channels, 3 * channels, kernel_init=_INIT, **options)
    self.project = nnx.Linear(channels, channels, kernel_init=_INIT, **options)
    self.norm2 = layers.LayerNorm(channels, **options)
    self.expand = nnx.Linear(channels, 4 * channels, kernel_init=_INIT, **options)
    self.contract = nnx.Linear(4 * channels, channels, kernel_init=_INIT, **options)
    self.drop_path1 = layers.drop_path(drop_rate, rngs=rngs, ndim=3)
    self.drop_path2 = layers.drop_path(drop_rate, rngs=rngs, ndim=3)
    self.heads = heads

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """(B, N, C) tokens to the same."""
    q, k, v = (
      part.reshape(*part.shape[:2], self.heads, -1)
      for part in jnp.split(self.qkv(self.norm1(x)), 3, axis=-1)
    )
    y = self.project(_attention(q, k, v).reshape(x.shape))
    if self.drop_path1:
      y = self.drop_path1(y, deterministic=not train)
    x = x + y
    y = self.contract(nnx.gelu(self.expand(self.norm2(x)), approximate=False))
    if self.drop_path2:
      y = self.drop_path2(y, deterministic=not train)
    return x + y


def _attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """softmax(q k^T / sqrt(D)) v of (B, N, heads, D); scores and softmax in float32."""
  scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(scores * q.shape[-1] ** -0.5)
  return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v)


class VisionTransformer(nnx.Module):
  """Patches and a class token, with learnt positions, through blocks of attention.

  The architecture that timm, torchvision and transformers share, with epsilon 1e-6 in the norms as
  the authors, timm and torchvision have it (the configs of transformers say 1e-12).

  Stage maps: the patch tokens after each of the last three blocks, laid out as a map; all at the
  stride of the patches, the last one after the final norm. The class token is there, since
  pretrained patch tokens attend to it, but its own result is not used: GAP-FC classifies the mean
  of the patch tokens where the references classify the class token. It has as many parameters, but
  a classifier that was trained on the class token does not fit it.

  For an image of another size than the learnt positions are for, these are resized: bicubic with
  a = -0.75, not antialiased, as in transformers and torchvision (timm antialiases, with a = -0.5).

  Attributes:
    stage_channels: channels of each stage map.
    stage_strides: total stride of each stage map.
    grid: side of the map that the learnt positions are for, in patches.
  """

  def __init__(
    self,
    channels: int,
    heads: int,
    *,
    depth: int = 12,
    patch_size: int = 16,
    image_size: int = 224,
    dropout: float = 0.0,
    rngs: nnx.Rngs,
    dtype: jnp.dtype = jnp.float32,
    norm_group: int | None = None,
  ):
    """Makes the network.

    Args:
      channels: C, of every token.
      heads: of the attention; divides C.
      depth: blocks, at least 3.
      patch_size: side of a patch in pixels.
      image_size: side in pixels of the square images that the learnt positions are for.
      dropout: block i of n drops its branches for a share dropout * i / (n - 1) of the examples;
        Touvron et al. 2021 (DeiT) train with 0.1.
      rngs: for the kernels and the dropping.
      dtype: of the computation and of the stage maps.
      norm_group: nothing here is normalised over examples; taken because every backbone takes it.
    """
    del norm_group
    options = {"rngs": rngs, "dtype": dtype}
    lecun = nnx.initializers.lecun_normal()  # torchvision's
    self.patches = layers.patches(3, channels, patch_size, kernel_init=lecun, **options)
    self.grid = image_size // patch_size
    self.class_token = nnx.Param(_INIT(rngs.params(), (1, channels), jnp.float32))
    self.positions = nnx.Param(_INIT(rngs.params(), (1 + self.grid**2, channels), jnp.float32))
    rates = [dropout * i / max(1, depth - 1) for i in range(depth)]
    self.blocks = nnx.List(
      [TransformerBlock(channels, heads, drop_rate=rate, **options) for rate in rates]
    )
    self.norm = layers.LayerNorm(channels, **options)
    self.stage_channels = (channels,) * _NUM_STAGES
    self.stage_strides = (patch_size,) * _NUM_STAGES
    self.dtype = dtype

  def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
    """Computes the stage maps.

    Args:
      images: (B, H, W, 3), normalised, of any floating type; H and W at least the patch size.
      train: drop branches.

    Returns:
      Three (B, h, w, C) maps in `dtype`; h = H // patch size, likewise w.

    Raises:
      UserError: a side is shorter than a patch.
    """
    layers.check_size(images, self.stage_strides[-1])
    x = self.patches(images.astype(self.dtype))
    shape = x.shape
    class_token = jnp.broadcast_to(self.class_token[...], (shape[0], 1, shape[-1]))
    x = jnp.concatenate([class_token.astype(x.dtype), x.reshape(shape[0], -1, shape[-1])], axis=1)
    x = x + resize_positions(self.positions[...], shape[1:3])[None].astype(x.dtype)
    maps = []
    for block in self.blocks:
      x = block(x, train=train)
      maps.append(x[:, 1:].reshape(shape))
    maps[-1] = self.norm(maps[-1])
    return tuple(maps[-_NUM_STAGES:])


def resize_positions(positions: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Learnt positions for a map of another size.

  Args:
    positions: (1 + g * g, C), of the class token and then of a square grid, row by row.
    size: height and width of the map.

  Returns:
    (1 + height * width, C), the same where the size is.
  """
  side = round((positions.shape[0] - 1) ** 0.5)
  if size == (side, side):
    return positions
  rows, columns = (_bicubic(side, length).astype(positions.dtype) for length in size)
  grid = positions[1:].reshape(side, side, -1)
  grid = jnp.einsum("hi,wj,ijc->hwc", rows, columns, grid, precision="highest")
  return jnp.concatenate([positions[:1], grid.reshape(-1, grid.shape[-1])])


def _bicubic(old: int, new: int) -> np.ndarray:
  """(new, old) weights of PyTorch's bicubic interpolation, align_corners=False."""
  a = -0.75  # Keys 1981 has -0.5, which jax.image.resize takes
  centre = (np.arange(new) + 0.5) * old / new - 0.5
  first = np.floor(centre).astype(int) - 1
  weights = np.zeros((new, old))
  for tap in range(4):
    index = first + tap
    x = np.abs(centre - index)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    np.add.at(weights, (np.arange(new), np.clip(index, 0, old - 1)), np.where(x <= 1, near, far))
  return weights


@register
def vit_small_16(
  *, dropout: float = 0.0, rngs: nnx.Rngs, dtype: jnp.dtype, norm_group: int | None
) -> VisionTransformer:
  """ViT-S/16, of Touvron et al. 2021 (DeiT-S)."""
  return VisionTransformer(384, 6, dropout=dropout, rngs=rngs, dtype=dtype, norm_group=norm_group)


@register
def vit_base_16(
  *, dropout: float = 0.0, rngs: nnx.Rngs, dtype: jnp.dtype, norm_group: int | None
) -> VisionTransformer:
  """ViT-B/16."""
  return VisionTransformer(768, 12, dropout=dropout, rngs=rngs, dtype=dtype, norm_group=norm_group)
