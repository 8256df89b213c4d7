"""`--mode=predict`: labels, maps and boxes of a person's own images, as files and as a web page."""

import logging
import os
import pathlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from saol_jax.console import counted
from saol_jax.data.loader import prefetch
from saol_jax.durable import scratch_folder
from saol_jax.errors import UserError
from saol_jax.image_files import (
  ImageFile,
  UnreadableImage,
  find_images,
  printable,
  read_image,
)
from saol_jax.prediction_files import Results
from saol_jax.predictor import Prediction, Predictor, load
from saol_jax.progress import Progress

__all__ = ["Prediction", "Predictor", "load", "predict_command"]

logger = logging.getLogger(__name__)

SOME_SKIPPED = 4  # exit code: all is written, but some of the files were no images

_VIEW_SIDE = 512  # longest side of the picture that is kept of an image


def predict_command(
  workdir: str | os.PathLike,
  images: str | os.PathLike,
  *,
  output: str | os.PathLike | None = None,
  top_k: int = 5,
  batch_size: int = 32,
  checkpoint: str = "latest",
  weights: str = "auto",
) -> int:
  """Predicts every image that is asked for, and writes what it found.

  In the output folder: `predictions.jsonl` and `predictions.csv`, a line an image; `overlays/`, a
  picture an image with its box, its attention and its class map side by side; `report.html`, a
  gallery that needs no other file. A model with `head="gap"` has no maps: its predictions hold
  labels only. Where an image lies in a folder that is named like a class, that is its true label.

  Args:
    workdir: of a trained run, or an export.
    images: a file, a folder or a pattern, see `image_files.find_images`.
    output: folder, made if need be; None for `workdir/predictions`. What an earlier call wrote
      there is replaced once all images are predicted, and stays whole if this one fails; other
      files there stay.
    top_k: how many classes to name.
    batch_size: images at once.
    checkpoint, weights: of a run, see `load`.

  Returns:
    Exit code: 0, or `SOME_SKIPPED` where files could not be read; they are named and left out.

  Raises:
    UserError: no run, no image, none that could be read, or a folder that cannot be written.
  """
  workdir = pathlib.Path(workdir)
  output = workdir / "predictions" if output is None else pathlib.Path(output)
  files = find_images(images, leave_out=output / "overlays")
  predictor = load(
    workdir, top_k=top_k, batch_size=batch_size, checkpoint=checkpoint, weights=weights
  )
  logger.info(
    "%s; the model of step %d of %s knows %d classes and sees images at %d x %d pixels",
    counted(len(files), "file"),
    predictor.step,
    workdir,
    len(predictor.card.class_names),
    *predictor.card.image_size,
  )
  try:
    output.mkdir(parents=True, exist_ok=True)
    with (
      scratch_folder(output, ".predict-") as partial,
      Results(
        predictor,
        output,
        partial,
        run=printable(workdir.resolve().name),
        what=printable(pathlib.Path(images).name or os.fspath(images)),
        expected=len(files),
      ) as results,
    ):
      _predict_files(predictor, files, results)
      if not results.count:
        found = counted(len(files), "file")
        raise UserError(
          f"--images={os.fspath(images)!r}: none of {found} is an image; expected pictures such as "
          f"JPEG or PNG. The first: {results.skipped[0][1]}"
        )
      logger.info("%s", results.finish())
  except OSError as error:
    raise UserError(
      f"--output={output} cannot be written: {error.strerror or error}; name a folder that you may "
      "write to, on a disk with free space"
    ) from error
  return SOME_SKIPPED if results.skipped else 0


def _predict_files(predictor: Predictor, files: list[ImageFile], results: Results) -> None:
  """Reads, predicts and writes batch by batch, with a line of progress now and then."""
  progress = Progress("predicted", len(files))
  note = progress.skip  # the first batch compiles the model
  for batch in _read_batches(predictor, files):
    readable = []
    for file, content in batch:
      if isinstance(content, UnreadableImage):
        results.skip(file, content)
      else:
        readable.append((file, *content))
    if readable:
      _, pixels, sizes, views = zip(*readable, strict=True)
      predictions = predictor.predict_prepared(np.stack(pixels), sizes)
      for (file, *_), view, prediction in zip(readable, views, predictions, strict=True):
        results.add(file, view, prediction)
    note(len(batch))
    note = progress.add


def _read_batches(predictor: Predictor, files: list[ImageFile]) -> Iterator[list[tuple]]:
  """Batches of (file, content), read ahead in threads.

  The content is what is needed of an image, since many large ones would not fit into memory:
  pixels for the model, (height, width), and a small picture. Or the reason why there is none.
  """

  def read(file: ImageFile) -> tuple:
    try:
      image = read_image(file.path)
      view = image.copy()
      view.thumbnail((_VIEW_SIDE, _VIEW_SIDE))
      return file, (predictor.prepare(image), (image.height, image.width), view)
    except UnreadableImage as error:
      return file, error

  size = predictor.batch_size
  with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "read") as threads:
    yield from prefetch(
      lambda start: list(threads.map(read, files[start : start + size])),
      range(0, len(files), size),
      depth=1,
    )
