"""What a trained model says of any image: labels and where."""

import dataclasses
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image

from saol_jax import explain
from saol_jax.compiler import compiler_options
from saol_jax.data import Geometry
from saol_jax.data.augment import normalise
from saol_jax.distributed import data_mesh, put_batch, replicated, split_batch
from saol_jax.errors import UserError
from saol_jax.image_files import read_image
from saol_jax.localization import BOX_MAP, BOX_THRESHOLD, boxes_from_maps, has_area, resize_maps
from saol_jax.model import FunctionalModel, Variables
from saol_jax.model_card import ModelCard
from saol_jax.train_step import head_log_probs
from saol_jax.trained import restore_trained

_BOX_SIDE = 512  # boxes of larger images are found at this size: the grid has a few cells a side

ImageLike = str | os.PathLike | bytes | Image.Image | np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
  """What a model says of one image. The k most probable classes come in falling order.

  Attributes:
    labels: (k,) int32.
    names: k names of classes.
    probabilities: (k,) float32 in [0, 1]; over all classes they would sum to 1.
    size: height and width of the image.
    grids: by name of a map, (k, h, w) float32 for each class, or (1, h, w) where the map does not
      depend on it, at the model's own resolution; empty for a model with `head="gap"`.
    boxes: (k, 4) int32, for each class y_min, x_min, y_max, x_max in pixels of the image, max
      exclusive, zeros where nothing stands out; None for a model with `head="gap"`.
    window: the part of the image that the model saw, and that the grids cover: y_min, x_min, y_max,
      x_max in pixels, max exclusive; None for all of it.
  """

  labels: np.ndarray
  names: tuple[str, ...]
  probabilities: np.ndarray
  size: tuple[int, int]
  grids: dict[str, np.ndarray]
  boxes: np.ndarray | None
  window: tuple[int, int, int, int] | None = None

  @property
  def label(self) -> int:
    """The most probable class."""
    return int(self.labels[0])

  @property
  def name(self) -> str:
    """Its name."""
    return self.names[0]

  @property
  def confidence(self) -> float:
    """Its probability."""
    return float(self.probabilities[0])

  @property
  def box(self) -> np.ndarray | None:
    """(4,), its box."""
    return None if self.boxes is None else self.boxes[0]

  @property
  def attention(self) -> np.ndarray | None:
    """(H, W) float32 at image size: the weight of the cell around each pixel, see `resize_maps`."""
    return self._at_image_size(self.grids["attention"][0]) if self.grids else None

  @property
  def class_maps(self) -> np.ndarray | None:
    """(k, H, W) float32 in [0, 1] at image size: how probable each class is around each pixel."""
    return self._at_image_size(self.grids["class"]) if self.grids else None

  def _at_image_size(self, grids: np.ndarray) -> np.ndarray:
    """(..., h, w) to (..., H, W), 0 where the model saw nothing."""
    if self.window is None:
      return resize_maps(grids, self.size)
    y_min, x_min, y_max, x_max = self.window
    maps = np.zeros((*grids.shape[:-2], *self.size), np.float32)
    maps[..., y_min:y_max, x_min:x_max] = resize_maps(grids, (y_max - y_min, x_max - x_min))
    return maps


class Predictor:
  """A trained model; called with images, it says what they show and where.

  An image is seen as evaluation sees it: the centred square that `data.eval_crop` asks for, or all
  of it, resized straight to the size of the training images by Pillow's bilinear filter, which
  averages over all pixels where an image shrinks (antialiasing). What has that size already is not
  changed. Maps and boxes are scaled back.

  Attributes:
    card: of the model.
    step: of the checkpoint.
    top_k: how many classes are named.
    batch_size: images at once. The one compiled program has this size; batches are filled up.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    card: ModelCard,
    model: FunctionalModel,
    variables: Variables,
    *,
    step: int = 0,
    top_k: int = 5,
    batch_size: int = 32,
  ):
    """Makes a predictor; see `load` for the usual way.

    Args:
      config: of the run.
      card, model, variables: what was trained.
      step: of the checkpoint.
      top_k: how many classes to name, at most all.
      batch_size: rounded up to a multiple of the devices.

    Raises:
      UserError: a number below 1.
    """
    for name, value in (("top_k", top_k), ("batch_size", batch_size)):
      if value < 1:
        raise UserError(f"{name}={value}; expected 1 or more")
    self.card, self.step = card, step
    self.top_k = min(top_k, len(card.class_names))
    self._mesh = data_mesh()
    self.batch_size = -(-batch_size // self._mesh.size) * self._mesh.size
    # Images that were read whole in training are small, and all of one size.
    eval_crop = config.data.eval_crop if config.data.image_size else 0.0
    self._geometry = Geometry(card.image_size[0], eval_crop=eval_crop)
    self._variables = jax.device_put(variables, replicated(self._mesh))

    def forward(variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
      images = normalise(images, card.mean, card.std)
      output, _ = model.apply(variables, images, train=False)
      head = head_log_probs(output, config.model.head)
      log_probs, labels = jax.lax.top_k(head, self.top_k)
      result = {"probabilities": jnp.exp(log_probs), "labels": labels}
      if output.spatial is not None:
        result["attention"] = output.spatial.attention[:, None]

        def maps_of(classes: jax.Array) -> dict[str, jax.Array]:
          return explain.score_maps(model, variables, images, classes, ("class", BOX_MAP))[0]

        # Of K maps only these leave the device: with 1,000 classes that is 0.5 % of them. The
        # compiler merges this forward pass and the one above, since both have the same input.
        result |= jax.vmap(maps_of, in_axes=1, out_axes=1)(labels)
      return result

    self._forward = jax.jit(
      forward,
      in_shardings=(replicated(self._mesh), split_batch(self._mesh)),
      out_shardings=replicated(self._mesh),
      compiler_options=compiler_options(self._mesh),
    )

  def __call__(self, images: ImageLike | Sequence[ImageLike]) -> list[Prediction]:
    """Predicts.

    Args:
      images: paths, arrays (H, W, 3) uint8 of NumPy or JAX, or PIL images, of any sizes, mixed as
        you like; one array (N, H, W, 3) uint8; or a single image, which counts as a list of one.
        All are read as `image_files.read_image` says.

    Returns:
      A Prediction an image, in order.

    Raises:
      UnreadableImage: a UserError; the first image that cannot be read.
    """
    if hasattr(images, "__array__"):
      images = np.asarray(images)
      several = images.ndim == 4 or images.dtype.kind in "OU"  # the last two hold paths
    else:
      several = isinstance(images, Sequence) and not isinstance(images, str | bytes)
    images = images if several else [images]
    results = []
    for start in range(0, len(images), self.batch_size):
      pixels, sizes = [], []
      for image in images[start : start + self.batch_size]:
        image = read_image(image)
        pixels.append(self.prepare(image))
        sizes.append((image.height, image.width))
      results += self.predict_prepared(np.stack(pixels), sizes)
    return results

  def prepare(self, image: Image.Image) -> np.ndarray:
    """An RGB image of any size as the model takes it, uint8."""
    size = self.card.image_size[::-1]
    y_min, x_min, y_max, x_max = self._geometry.eval_window(image.height, image.width)
    if (x_max - x_min, y_max - y_min) != image.size or image.size != size:
      box = (x_min, y_min, x_max, y_max)
      image = image.resize(size, Image.Resampling.BILINEAR, box=box)
    return np.asarray(image)

  def predict_prepared(
    self, images: np.ndarray, sizes: Sequence[tuple[int, int]]
  ) -> list[Prediction]:
    """Predicts at most `batch_size` images.

    Args:
      images: (n, h, w, 3) uint8, from `prepare`.
      sizes: height and width that each had before.
    """
    filled = np.zeros((self.batch_size, *images.shape[1:]), np.uint8)
    filled[: len(images)] = images
    batch = put_batch(self._mesh, {"image": filled})
    output = jax.device_get(self._forward(self._variables, batch["image"]))
    return [
      self._prediction({name: array[index] for name, array in output.items()}, size)
      for index, size in enumerate(sizes)
    ]

  def _prediction(self, output: dict[str, np.ndarray], size: tuple[int, int]) -> Prediction:
    labels, probabilities = output.pop("labels"), output.pop("probabilities")
    boxes = None
    window = y_min, x_min, y_max, x_max = self._geometry.eval_window(*size)
    if output:  # one box for all classes where the map does not depend on them
      boxes = _boxes(output[BOX_MAP], (y_max - y_min, x_max - x_min))
      moved = boxes + np.int32([y_min, x_min] * 2)
      boxes = np.where(has_area(boxes)[:, None], moved, boxes)
      boxes = np.broadcast_to(boxes, (len(labels), 4))
    return Prediction(
      labels=labels,
      names=tuple(self.card.class_names[label] for label in labels),
      probabilities=probabilities,
      size=size,
      grids=output,
      boxes=boxes,
      window=None if window == (0, 0, *size) else window,
    )


def _boxes(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """(n, h, w) maps to (n, 4) boxes in pixels of an image."""
  scale = min(1, _BOX_SIDE / max(size))
  small = tuple(max(1, round(side * scale)) for side in size)
  boxes = boxes_from_maps(maps, small, BOX_THRESHOLD)
  return np.round(boxes * np.tile(np.array(size) / np.array(small), 2)).astype(np.int32)


def load(
  path: str | os.PathLike,
  *,
  top_k: int = 5,
  batch_size: int = 32,
  dtype: str | None = None,
  checkpoint: str = "latest",
  weights: str = "auto",
) -> Predictor:
  """A predictor from an export, or from a checkpoint of a run; no data set is needed.

  Labels and probabilities are SAOL's, or GAP-FC's for a model with `head="gap"`, which has no maps.

  Args:
    path: folder of an export, or workdir of a run, finished or going on.
    top_k: how many classes to name.
    batch_size: images at once.
    dtype: "float32" or "bfloat16" of the computation; None for that of the run.
    checkpoint: of a run: "latest", the newest that is intact, or "best", by the evaluation score.
    weights: of a run: "raw", "ema" for their moving average, or "auto": that where it kept one.

  Raises:
    UserError: there is no run, or nothing intact in it, or an argument is out of range.
  """
  trained = restore_trained(path, dtype=dtype, checkpoint=checkpoint, weights=weights)
  return Predictor(
    trained.config,
    trained.card,
    trained.model,
    trained.variables,
    step=trained.step,
    top_k=top_k,
    batch_size=batch_size,
  )
