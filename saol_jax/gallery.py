"""`report.html`: predictions to look through in a browser, in one file that needs nothing else."""

import base64
import hashlib
import html
import importlib.resources
import io
import json
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from PIL import Image

from saol_jax.errors import UserError

if TYPE_CHECKING:
  from saol_jax.predictor import Prediction

MOST = 2000  # images in one report; a browser keeps all of them in memory

_SIDES = ((300, 448), (1000, 320), (MOST, 224))  # up to so many images: longest side of a picture
_SHARP = 128  # pictures up to this side are kept without loss
_COLOURS = 33  # stops of the heat's colour map; the page interpolates between them
# How the page is told of a map: its name there, and what its brightest value means; in the order
# in which they are shown, the box map last.
_VIEWS = {"attention": ("Attention", "of the attention"), "class": ("Class map", "probability")}


class Gallery:
  """Collects predictions and writes the page.

  Nothing in the page is loaded from anywhere, which its content security policy also enforces.
  Names of files and classes are data in it, never markup.
  """

  def __init__(self, class_names: Sequence[str], *, box_map: str, expected: int):
    """Starts an empty gallery.

    Args:
      class_names: by label.
      box_map: name of the map that the boxes are drawn from.
      expected: about how many images will be added: of many, smaller pictures are kept.
    """
    self._class_names, self._box_map = tuple(class_names), box_map
    self._side = next((side for most, side in _SIDES if expected <= most), _SIDES[-1][1])
    self._items: list[dict[str, Any]] = []
    self._left_out = 0

  def add(
    self, file: str, picture: Image.Image, prediction: "Prediction", truth: int | None
  ) -> None:
    """Adds an image; beyond `MOST` it is only counted.

    Args:
      file: name to show.
      picture: RGB, the image at any size.
      prediction: for it.
      truth: its label, None where unknown.
    """
    if len(self._items) == MOST:
      self._left_out += 1
      return
    height, width = prediction.size
    item = {
      "file": file,
      "height": height,
      "width": width,
      "truth": truth,
      "labels": prediction.labels.tolist(),
      "probabilities": [round(float(p), 5) for p in prediction.probabilities],
      "picture": _data_uri(picture, self._side),
      "maps": {name: _packed(grids) for name, grids in prediction.grids.items()},
    }
    if prediction.boxes is not None:
      item["boxes"] = prediction.boxes.tolist()
    if prediction.window is not None:
      item["window"] = prediction.window
    self._items.append(item)

  def write(
    self,
    path: str | os.PathLike,
    *,
    model: str,
    skipped: Sequence[tuple[str, str]] = (),
    title: str = "Predictions",
  ) -> None:
    """Writes the page.

    Args:
      path: of the page; an existing file is replaced.
      model: a few words on what predicted.
      skipped: file and reason, for each file that could not be read.
      title: of the page.

    Raises:
      UserError: the file cannot be written.
    """
    found = {name for item in self._items for name in item["maps"]}
    names = [*(name for name in _VIEWS if name in found), *sorted(found - _VIEWS.keys())]
    heat = matplotlib.colormaps["inferno"](np.linspace(0, 1, _COLOURS), bytes=True)[:, :3]
    data = {
      "title": title,
      "model": model,
      "classNames": self._class_names,
      "boxMap": self._box_map if names else None,
      "views": [[name, *_VIEWS.get(name, ("Box map", ""))] for name in names],
      "colours": heat.tolist(),
      "leftOut": self._left_out,
      "skipped": list(skipped),
      "items": self._items,
    }
    path = pathlib.Path(path)
    try:
      path.write_text(_page(title, data), encoding="utf-8")
    except OSError as error:
      raise UserError(
        f"{path} cannot be written: {error.strerror}; free some space, or name another --output"
      ) from error


def _page(title: str, data: dict[str, Any]) -> str:
  """The page: skeleton, style, script and data in one."""
  folder = importlib.resources.files("saol_jax")
  style, script = (
    "\n" + (folder / f"gallery.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")
  )
  parts = {
    "TITLE": html.escape(title),
    # Only this style and this script, and pictures that are in the page; no network at all.
    "POLICY": f"default-src 'none'; img-src data:; style-src {_hash(style)}; "
    f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'",
    "STYLE": style,
    "SCRIPT": script,
    "DATA": _json_for_html(data),
  }
  page = (folder / "gallery.html").read_text(encoding="utf-8")
  pieces = page.split("@@")  # text, name, text, name, ..., text
  return "".join(parts[piece] if place % 2 else piece for place, piece in enumerate(pieces))


def _json_for_html(data: Any) -> str:
  """JSON, in ASCII, in which nothing can end or change the script element around it."""
  text = json.dumps(data, separators=(",", ":"))
  for character in "<>&":
    text = text.replace(character, f"\\u{ord(character):04x}")
  return text


def _hash(text: str) -> str:
  digest = hashlib.sha256(text.encode()).digest()
  return f"'sha256-{base64.b64encode(digest).decode()}'"


def _packed(grids: np.ndarray) -> dict[str, Any]:
  """(n, h, w) maps as bytes, on one scale for all of them so that they can be compared.

  Zero is the bottom of the scale where nothing is negative: a class that is nowhere probable is
  dark everywhere.
  """
  grids = np.nan_to_num(np.asarray(grids, np.float64))
  low, high = min(grids.min(), 0.0), grids.max()
  scaled = (grids - low) / max(high - low, 1e-30)
  data = np.round(255 * scaled).astype(np.uint8)
  return {
    "size": grids.shape[1:],
    "high": float(f"{high:.4g}"),
    "data": [base64.b64encode(grid.tobytes()).decode() for grid in data],
  }


def _data_uri(picture: Image.Image, side: int) -> str:
  """The picture with at most `side` pixels a side."""
  picture = picture.copy()
  picture.thumbnail((side, side))
  file = io.BytesIO()
  if max(picture.size) <= _SHARP:
    kind = "png"
    picture.save(file, "PNG", optimize=True)
  else:
    kind = "jpeg"
    picture.save(file, "JPEG", quality=80, optimize=True)
  return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
