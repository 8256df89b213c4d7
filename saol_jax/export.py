"""`--mode=export`: a trained model as a folder of files that other programs open."""

import dataclasses
import glob
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from saol_jax import explain
from saol_jax.checksums import checksums
from saol_jax.data.augment import normalise
from saol_jax.durable import scratch_folder
from saol_jax.errors import UserError
from saol_jax.export_card import scores_at, write_card
from saol_jax.fuse import count_norms
from saol_jax.image_files import printable
from saol_jax.localization import BOX_MAP, BOX_THRESHOLD
from saol_jax.tensorflow_cpu import import_tensorflow
from saol_jax.train_step import head_log_probs
from saol_jax.trained import (
  EXPORT_FORMAT,
  Trained,
  for_inference,
  is_export,
  restore_run,
  save_variables,
)

logger = logging.getLogger(__name__)

Program = Callable[[jax.Array], dict[str, jax.Array]]

PLATFORMS = ("cpu", "cuda", "tpu")
# All that an export writes; what is in `checkpoint` and in the last two folders is Orbax's and
# TensorFlow's.
_ENTRIES = {
  "checkpoint",
  "model.json",
  "labels.stablehlo",
  "maps.stablehlo",
  "MODEL_CARD.md",
  "sample.png",
  "saved_model",
  "saved_model/fingerprint.pb",
  "saved_model/saved_model.pb",
  "saved_model/assets",
  "saved_model/variables",
}
_PACKAGES = ("jax", "jaxlib", "flax", "orbax-checkpoint")
_CHECKED_IMAGES = 3
# Rounding of another order of the same sums: float32, and bfloat16 with its 8 bits.
_TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


class _NoSavedModelError(Exception):
  """TensorFlow is not there, or cannot run what JAX writes."""


def export_command(
  workdir: str | os.PathLike,
  output: str | os.PathLike | None = None,
  *,
  checkpoint: str = "latest",
  weights: str = "auto",
  fuse: bool = False,
) -> pathlib.Path:
  """Writes a trained model for use elsewhere.

  In the output folder:

    checkpoint/        Orbax, the inference model's parameters and batch statistics
    model.json         class names, preprocessing, architecture and recipe, scores, map settings,
                       versions, and checksums of the checkpoint
    labels.stablehlo   a `jax.export` program, images (b, H, W, 3) uint8 to `probabilities` (b, K)
    maps.stablehlo     likewise, with `attention` (b, h, w), `class_probabilities` (b, h, w, K) and
                       `map` (b, h, w), the score map of the most probable class; only with SAOL
    saved_model/       the same programs for TensorFlow, signatures `labels` and `maps`
    MODEL_CARD.md, sample.png   for people

  b is any batch size, H x W the size of the training images. The programs hold the weights and run
  on CPU, CUDA and TPU without our code. `saol_jax.load(output)` gives a predictor.

  Args:
    workdir: of a run.
    output: folder; None for `workdir/export`. An earlier export there is replaced, once the new one
      is whole; a folder with anything else in it is refused, such as predictions made with it.
    checkpoint: "latest" or "best".
    weights: "auto", "raw" or "ema", see `trained.restore_run`.
    fuse: fold batch norms into convolutions.

  Returns:
    The folder.

  Raises:
    UserError: there is no run, a value is unknown, the folder is not ours to replace, or a program
      does not agree with the model.
  """
  workdir = pathlib.Path(workdir)
  output = workdir / "export" if output is None else pathlib.Path(output)
  place = output.resolve()  # the folder itself, where a link to it was named
  _put_back(place)
  _check_replaceable(output)
  trained = restore_run(workdir, checkpoint=checkpoint, weights=weights)
  plain = for_inference(trained)
  ready = for_inference(trained, fuse=True) if fuse else plain
  place.parent.mkdir(parents=True, exist_ok=True)
  # Beside the result, so that the last step is a rename.
  with scratch_folder(place.parent, f".{place.name}-export-") as temporary:
    partial, before = temporary / "export", temporary / "before"
    partial.mkdir()
    _write(ready, plain, workdir, partial)
    try:
      if place.exists():
        place.rename(before)
      partial.rename(place)
    except BaseException:
      if before.exists() and not place.exists():
        before.rename(place)
      raise
  logger.info(
    "Step %d of %s (%s weights) exported to %s", ready.step, workdir, ready.weights, output
  )
  return output


def _put_back(place: pathlib.Path) -> None:
  """Puts an earlier export back in its place where a call was killed as it replaced it."""
  for before in place.parent.glob(f".{glob.escape(place.name)}-export-*/before"):
    if not place.exists():
      before.rename(place)


def _check_replaceable(output: pathlib.Path) -> None:
  """Raises UserError where there is anything at the path that an export does not write."""
  if not output.exists() or (output.is_dir() and not any(output.iterdir())):
    return
  if not is_export(output):
    raise UserError(f"--output={output} exists and is no export; name a new folder")
  paths = [*output.glob("*"), *output.glob("saved_model/*")]
  foreign = sorted({path.relative_to(output).as_posix() for path in paths} - _ENTRIES)
  if foreign:
    raise UserError(
      f"--output={output} holds more than an export, and would lose it: "
      f"{', '.join(map(printable, foreign))}. Move that away, or name a new folder"
    )


def _write(ready: Trained, plain: Trained, workdir: pathlib.Path, folder: pathlib.Path) -> None:
  """Fills the folder; `plain` is the model without fused norms, to compare with."""
  logger.info("Writing the checkpoint ...")
  save_variables(folder / "checkpoint", ready.variables)

  programs = make_programs(ready)
  images = _images_to_compare(ready.card.image_size)
  expected = {name: jax.jit(program)(images) for name, program in make_programs(plain).items()}
  differences, exported = {}, {}
  for name, program in programs.items():
    logger.info("Exporting the program %s for %s ...", name, ", ".join(PLATFORMS))
    path = folder / f"{name}.stablehlo"
    path.write_bytes(serialise(program, ready.card.image_size))
    exported[name] = jax_export.deserialize(bytearray(path.read_bytes()))
    found = exported[name].call(images)
    differences[path.name] = _compare(path.name, found, expected[name], ready, plain)
  path = folder / "saved_model"
  try:
    _write_saved_model(path, programs, ready.card.image_size)
    found = _call_saved_model(path, images)
  except _NoSavedModelError as error:
    logger.info("No TensorFlow SavedModel: %s", error)
    shutil.rmtree(path, ignore_errors=True)
    saved_model = f"not written: {error}"
  else:
    saved_model = "written"
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # as TensorFlow has no other
      for name, program in exported.items():
        what = f"{path.name}: {name}"
        differences[what] = _compare(what, found[name], program.call(images), ready, plain)
  facts = {
    **dataclasses.asdict(ready.card),
    "export_format": EXPORT_FORMAT,
    "step": ready.step,
    "weights": ready.weights,
    "fused_norms": ready is not plain,
    "norms_left": count_norms(ready.model.merge(ready.variables)),
    "platforms": PLATFORMS,
    "programs": {
      name: _outputs(program, ready.card.image_size) for name, program in programs.items()
    },
    "largest_difference": differences,
    "saved_model": saved_model,
    "maps": {"box_map": BOX_MAP, "box_threshold": BOX_THRESHOLD},
    "versions": {name: metadata.version(name) for name in _PACKAGES},
    "scores": scores_at(workdir, ready.step),
    "config": json.loads(ready.config.to_json()),
    "checksums": checksums(ready.variables),
  }
  (folder / "model.json").write_text(json.dumps(facts, indent=2) + "\n")
  write_card(folder, ready, facts, workdir)


def make_programs(trained: Trained) -> dict[str, Program]:
  """Functions from images (b, H, W, 3) uint8 to what `export_command` says, weights inside."""
  card, model, variables = trained.card, trained.model, trained.variables
  head = trained.config.model.head

  def labels(images: jax.Array) -> dict[str, jax.Array]:
    output, _ = model.apply(variables, normalise(images, card.mean, card.std), train=False)
    return {"probabilities": jnp.exp(head_log_probs(output, head))}

  def maps(images: jax.Array) -> dict[str, jax.Array]:
    images = normalise(images, card.mean, card.std)
    found, output = explain.score_maps(model, variables, images, None, (BOX_MAP,))
    return {
      "probabilities": jnp.exp(output.spatial.log_probs),
      "attention": output.spatial.attention,
      "class_probabilities": jnp.exp(output.spatial.spatial_log_probs),
      "map": found[BOX_MAP],
    }

  return {"labels": labels} if head == "gap" else {"labels": labels, "maps": maps}


def serialise(program: Program, image_size: tuple[int, int]) -> bytes:
  """A program as `jax.export` stores it; `jax.export.deserialize(bytes).call(images)` runs it."""
  (batch,) = jax_export.symbolic_shape("b")
  images = jax.ShapeDtypeStruct((batch, *image_size, 3), jnp.uint8)
  return bytes(jax_export.export(jax.jit(program), platforms=PLATFORMS)(images).serialize())


def _outputs(program: Program, image_size: tuple[int, int]) -> dict[str, list[int | str]]:
  """Shape of each result; the batch is "b"."""
  images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.uint8)
  return {name: ["b", *x.shape[1:]] for name, x in jax.eval_shape(program, images).items()}


def _images_to_compare(image_size: tuple[int, int]) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (_CHECKED_IMAGES, *image_size, 3), np.uint8)


def _compare(
  what: str,
  found: Mapping[str, jax.Array],
  wanted: Mapping[str, jax.Array],
  ready: Trained,
  plain: Trained,
) -> float:
  """The largest difference of any value between an exported program and the model.

  Args:
    what: the program.
    found: what it says.
    wanted: what it should say, computed on the same kind of device.
    ready, plain: the models that are exported, and that it was made from.

  Raises:
    UserError: it is larger than rounding.
  """
  dtype = ready.config.dtype
  # A score map has no scale of its own: differences count relative to its largest value.
  difference = max(
    float(jnp.abs(found[name] - value).max() / jnp.maximum(jnp.abs(value).max(), 1.0))
    for name, value in wanted.items()
  )
  if not difference <= _TOLERANCE[dtype]:
    raise UserError(
      f"The exported program {what} differs from the model by {difference:.1e}, expected at most "
      f"{_TOLERANCE[dtype]:.0e}; nothing was exported. Report it"
      + ("" if ready is plain else ", and export without --fuse")
    )
  return difference


def _write_saved_model(
  folder: pathlib.Path, programs: dict[str, Program], image_size: tuple[int, int]
) -> None:
  """The programs for TensorFlow; raises _NoSavedModelError where it is not there."""
  try:
    tf = import_tensorflow()  # before jax2tf, which imports it too
    from jax.experimental import jax2tf
  except ImportError as error:
    raise _NoSavedModelError(f"{error.name} is not installed") from error
  logger.info("Writing the TensorFlow SavedModel ...")
  module, signatures = tf.Module(), {}
  for name, program in programs.items():
    converted = jax2tf.convert(
      program,
      polymorphic_shapes=[f"(b, {image_size[0]}, {image_size[1]}, 3)"],
      native_serialization_platforms=PLATFORMS,
      with_gradient=False,
    )
    signature = [tf.TensorSpec((None, *image_size, 3), tf.uint8, name="images")]
    signatures[name] = tf.function(converted, autograph=False, input_signature=signature)
    setattr(module, name, signatures[name])
  tf.saved_model.save(module, str(folder), signatures=signatures)


def _call_saved_model(folder: pathlib.Path, images: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
  """What each of its programs says of images; raises _NoSavedModelError where JAX is too new."""
  tf = import_tensorflow()
  signatures = tf.saved_model.load(str(folder)).signatures
  try:
    return {
      name: {key: value.numpy() for key, value in call(images=tf.constant(images)).items()}
      for name, call in signatures.items()
    }
  except tf.errors.InvalidArgumentError as error:
    if "Cannot deserialize computation" not in str(error):
      raise
    raise _NoSavedModelError(
      f"TensorFlow {tf.__version__} is too old for the programs of JAX {jax.__version__}"
    ) from error
