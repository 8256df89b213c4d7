"""The files that a prediction leaves: tables, overlay pictures and the report."""

import contextlib
import csv
import json
import logging
import pathlib
import re
import shutil
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from saol_jax.console import counted
from saol_jax.data.folder import nfc
from saol_jax.gallery import Gallery
from saol_jax.image_files import ImageFile, UnreadableImage
from saol_jax.localization import BOX_MAP
from saol_jax.predictor import Prediction, Predictor
from saol_jax.report import overlay

logger = logging.getLogger(__name__)

_SHOWN_MAPS = ("attention", "class")
_LEAST_PANEL = 128  # longest side of a panel of an overlay picture
_LEAST_SHORT_SIDE = 32  # a hair-thin image is shown thicker than it is
_GAP = 4
_BOX_COLOUR, _BOX_SHADOW = "#ffd60a", "#1a1a1a"
_OVERLAY = re.compile(r"overlays/\d{6,}_[\w-]*\.jpg")  # names of ours only
_NAMED = 20  # skipped files that are named one by one; the report names all


class Results:
  """The files in the output folder; until `finish` they are in another one."""

  def __init__(
    self,
    predictor: Predictor,
    output: pathlib.Path,
    partial: pathlib.Path,
    *,
    run: str,
    what: str,
    expected: int,
  ):
    """Opens the files.

    Args:
      predictor: that makes them.
      output: folder, which exists.
      partial: folder on the same disk.
      run: name of what was trained.
      what: name of what is predicted.
      expected: images.

    Raises:
      OSError: one of them cannot be written.
    """
    self.count = 0
    self.skipped: list[tuple[str, str]] = []
    self._output, self._partial = output, partial
    self._class_names = predictor.card.class_names
    self._run, self._what, self._step = run, what, predictor.step
    self._labels = _unique_labels(self._class_names)
    self._known = self._right = 0
    self._has_maps = False
    self._gallery = Gallery(self._class_names, box_map=BOX_MAP, expected=expected)
    self._overlays = output / "overlays"
    self._overlays.mkdir(exist_ok=True)
    self._replaces = (output / "predictions.jsonl").exists()
    self._earlier = _earlier_overlays(output)
    (partial / "overlays").mkdir()
    self._jsonl = (partial / "predictions.jsonl").open("w", encoding="utf-8")
    # A file name that is not UTF-8 comes back as the bytes that it is.
    self._csv = (partial / "predictions.csv").open(
      "w", encoding="utf-8", errors="surrogateescape", newline=""
    )
    self._rows = csv.writer(self._csv)
    self._rows.writerow(_csv_header(predictor.top_k))

  def __enter__(self) -> "Results":
    return self

  def __exit__(self, *_) -> None:
    self._jsonl.close()
    self._csv.close()

  def skip(self, file: ImageFile, error: UnreadableImage) -> None:
    """Notes a file that is no image."""
    self.skipped.append((file.name, str(error)))
    if len(self.skipped) <= _NAMED:
      logger.warning("skipped: %s", error)
    elif len(self.skipped) == _NAMED + 1:
      logger.warning("skipped more; report.html names all of them")

  def add(self, file: ImageFile, view: Image.Image, prediction: Prediction) -> None:
    """Writes what there is of one image."""
    picture = None
    if prediction.grids:
      self._has_maps = True
      picture = self._free_name(f"overlays/{self.count:06d}_{_safe(file.path.stem)}")
      overlay_strip(view, prediction).save(self._partial / picture, quality=88, subsampling=0)
    truth = self._labels.get(nfc(file.folder))
    if truth is not None:
      self._known += 1
      self._right += truth == prediction.label
    record = _record(file, prediction, None if truth is None else file.folder, picture)
    self._jsonl.write(json.dumps(record) + "\n")
    self._rows.writerow(_csv_row(record))
    self._gallery.add(file.name, view, prediction, truth)
    self.count += 1

  def finish(self) -> str:
    """Writes the report, puts all in its place, and returns what to tell the user."""
    self._gallery.write(
      self._partial / "report.html",
      model=f"{self._run}, step {self._step}",
      skipped=self.skipped,
      title=f"Predictions of {self._what}",
    )
    self._replace_earlier()
    report = self._output / "report.html"
    lines = [f"Predicted {counted(self.count, 'image')}."]
    if self._replaces:
      lines.append("  replaced     the predictions that were there; --output names another folder")
    if self._known:
      share = 100 * self._right / self._known
      lines.append(
        f"  right        {self._right} of {self._known} with a known label, {share:.2f} %"
      )
    if self.skipped:
      lines.append(f"  skipped      {counted(len(self.skipped), 'file')} that cannot be read")
    lines.append(f"  report       {report}   open it in a browser")
    lines.append(f"  predictions  {self._output / 'predictions.jsonl'} and .csv")
    if self._has_maps:
      lines.append(f"  overlays     {self._overlays}")
    else:
      lines.append("  no maps      this model has GAP-FC alone, which says what but not where")
    return "\n".join(lines)

  def _free_name(self, stem: str) -> str:
    """Name of a new picture; one that a person put there keeps its own."""
    while f"{stem}.jpg" not in self._earlier and (self._output / f"{stem}.jpg").exists():
      stem += "_"
    return f"{stem}.jpg"

  def _replace_earlier(self) -> None:
    self._jsonl.close()
    self._csv.close()
    pictures = [f"overlays/{path.name}" for path in (self._partial / "overlays").iterdir()]
    for name in (*pictures, "predictions.jsonl", "predictions.csv", "report.html"):
      shutil.move(self._partial / name, self._output / name)
    for name in self._earlier.difference(pictures):
      (self._output / name).unlink(missing_ok=True)


def _earlier_overlays(output: pathlib.Path) -> set[str]:
  """The pictures that an earlier call wrote: those that its predictions.jsonl names."""
  path = output / "predictions.jsonl"
  if not path.exists():
    return set()
  found = set()
  with path.open(encoding="utf-8", errors="replace") as lines:
    for line in lines:
      with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that is none of ours
        found.add(json.loads(line)["overlay"])
  return {name for name in found if isinstance(name, str) and _OVERLAY.fullmatch(name)}


def _unique_labels(class_names: tuple[str, ...]) -> dict[str, int]:
  """Label by name in NFC, without names that several classes share."""
  names = [nfc(name) for name in class_names]
  return {name: k for k, name in enumerate(names) if names.count(name) == 1}


def _record(
  file: ImageFile, prediction: Prediction, truth: str | None, picture: str | None
) -> dict[str, Any]:
  """A line of predictions.jsonl. Boxes are y_min, x_min, y_max, x_max in pixels, max exclusive."""
  top = [
    {"name": name, "label": int(label), "probability": round(float(probability), 6)}
    for name, label, probability in zip(
      prediction.names, prediction.labels, prediction.probabilities, strict=True
    )
  ]
  return {
    "file": str(file.path),
    "height": prediction.size[0],
    "width": prediction.size[1],
    "top": top,
    "confidence": top[0]["probability"],
    "box": None if prediction.box is None else prediction.box.tolist(),
    "map": None if prediction.box is None else BOX_MAP,
    "true": truth,
    "overlay": picture,
  }


def _csv_header(top_k: int) -> list[str]:
  ranks = [f"{what}_{rank + 1}" for rank in range(top_k) for what in ("label", "probability")]
  box = ["y_min", "x_min", "y_max", "x_max", "map"]
  return ["file", "height", "width", *ranks, "confidence", *box, "true", "overlay"]


def _csv_row(record: dict[str, Any]) -> list[Any]:
  top = [entry[what] for entry in record["top"] for what in ("name", "probability")]
  box = record["box"] or [None] * 4
  return [
    *(record[name] for name in ("file", "height", "width")),
    *top,
    record["confidence"],
    *box,
    *(record[name] for name in ("map", "true", "overlay")),
  ]


def _safe(stem: str) -> str:
  """Part of a file name that is harmless everywhere; letters and digits of any script stay."""
  return re.sub(r"[^\w-]+", "_", nfc(stem))[:50]


def _heat(image: np.ndarray, score_map: np.ndarray, window: np.ndarray) -> np.ndarray:
  """A map over what the model saw of an image: y_min, x_min, y_max, x_max; dark around it."""
  y_min, x_min = np.minimum(np.round(window[:2]).astype(int), np.array(image.shape[:2]) - 1)
  y_max, x_max = np.maximum(np.round(window[2:]).astype(int), [y_min + 1, x_min + 1])
  shown = image // 3
  part = np.s_[y_min:y_max, x_min:x_max]
  shown[part] = overlay(image[part], score_map)
  return shown


def overlay_strip(view: Image.Image, prediction: Prediction) -> Image.Image:
  """The image with the box of its first class, its attention and its class map, side by side."""
  scale = max(1, -(-_LEAST_PANEL // max(view.size)))
  size = tuple(max(side * scale, _LEAST_SHORT_SIDE) for side in view.size)
  view = view.resize(size, Image.Resampling.NEAREST)
  pixels = np.asarray(view)
  to_view = np.tile(np.array([view.height, view.width]) / np.array(prediction.size), 2)
  window = np.array(prediction.window or (0, 0, *prediction.size)) * to_view
  panels = [view] + [
    Image.fromarray(_heat(pixels, prediction.grids[name][0], window)) for name in _SHOWN_MAPS
  ]
  y_min, x_min, y_max, x_max = prediction.box * to_view
  if y_max > y_min and x_max > x_min:
    draw = ImageDraw.Draw(view)
    corners = np.round([x_min, y_min, max(x_max - 1, x_min), max(y_max - 1, y_min)]).tolist()
    draw.rectangle(corners, outline=_BOX_SHADOW, width=4)
    draw.rectangle(corners, outline=_BOX_COLOUR, width=2)
  strip = Image.new("RGB", (3 * view.width + 2 * _GAP, view.height), "white")
  for place, panel in enumerate(panels):
    strip.paste(panel, (place * (view.width + _GAP), 0))
  return strip
