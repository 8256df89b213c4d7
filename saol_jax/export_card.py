"""`MODEL_CARD.md` of an export: what the model is, how it came about, and how good it is."""

import html
import json
import logging
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import ml_collections

from saol_jax.durable import write_text
from saol_jax.experiment import data_title
from saol_jax.runlog import read_records
from saol_jax.trained import Trained

logger = logging.getLogger(__name__)

_NAMED_CLASSES = 20
_SCORES = {"top1": "top-1", "top5": "top-5", "nll": "NLL, nats", "ece": "ECE"}
_BOX_SCORES = {"gt_known": "GT-known", "top1_loc": "top-1 loc", "max_box_acc_v2": "MaxBoxAccV2"}


def write_card(
  folder: pathlib.Path, trained: Trained, facts: Mapping[str, Any], workdir: pathlib.Path
) -> None:
  """Writes `MODEL_CARD.md`, and `sample.png` where the run has drawn the model's predictions.

  Args:
    folder: of the export.
    trained: the model.
    facts: what `model.json` holds.
    workdir: of the run, for its localisation scores and its picture.
  """
  config, card = trained.config, trained.card
  names = [_plain(name) for name in card.class_names[:_NAMED_CLASSES]]
  more = len(card.class_names) - len(names)
  lines = [
    f"# {config.model.name} with {_HEADS[config.model.head]} on {_plain(data_title(config))}",
    "",
    f"Image classifier with {len(card.class_names)} classes: {', '.join(names)}"
    + (f" and {more} more (`model.json`)." if more else "."),
    "",
    f"**Input**: RGB images of {card.image_size[0]} x {card.image_size[1]} pixels, uint8"
    f"{_crop(config.data)}; the programs normalise them themselves "
    f"(mean {_numbers(card.mean)}, std {_numbers(card.std)}, as shares of 255).",
    "",
    f"**Weights**: step {trained.step}, "
    + ("moving average" if trained.weights == "ema" else "as trained")
    + (", batch norms folded into convolutions." if facts["fused_norms"] else "."),
    "",
    "## Training",
    "",
    *_recipe(config),
    "",
    *_scores(facts["scores"], trained),
    *_localization(workdir),
  ]
  sample = _sample(workdir, trained)
  if sample is not None:
    shutil.copyfile(sample, folder / "sample.png")
    lines += ["## Sample", "", "![what the model sees, and where](sample.png)", ""]
  lines += ["## Use", "", _USE.strip(), ""]
  if facts["saved_model"] == "written":
    lines += [_TENSORFLOW.strip(), ""]
  if "maps" in facts["programs"]:
    lines += [_MAPS.strip(), ""]
  write_text(folder / "MODEL_CARD.md", "\n".join(lines))


_HEADS = {"saol": "the SAOL and GAP-FC heads", "gap": "the GAP-FC head"}

_USE = """
Needs JAX and flatbuffers, nothing of saol_jax:

```python
import numpy as np
from jax import export

program = export.deserialize(bytearray(open("labels.stablehlo", "rb").read()))
program.call(images)["probabilities"]  # images: (any number, height, width, 3) uint8
```

With saol_jax itself: `saol_jax.load(FOLDER)`, see its README.
"""

_TENSORFLOW = """
TensorFlow: `tf.saved_model.load("saved_model").signatures["labels"](images=...)`.
"""

_MAPS = """
`maps.stablehlo` (signature `maps`) also gives, on the grid of the last stage, `attention`, the
weight of each cell; `class_probabilities` of each cell; and `map`, the score map of the most
probable class, from which boxes are drawn. SAOL: Kim, Baek, Kim, "Spatially Attentive Output Layer
for Image Classification", CVPR 2020.
"""


def _recipe(config) -> list[str]:
  optimizer, cutmix = config.optimizer, config.cutmix
  length = (
    f"{config.num_train_steps:,} steps"
    if config.num_train_steps
    else f"{config.num_epochs:g} epochs"
  )
  rows = {
    "data": data_title(config),
    "began with": config.model.pretrained or "random weights",
    "length": f"{length} of {config.batch_size} images",
    "optimizer": f"{optimizer.name}, learning rate {optimizer.learning_rate:g}, "
    f"{optimizer.schedule} schedule, weight decay {optimizer.weight_decay:g}",
    "CutMix": f"probability {cutmix.prob:g}, alpha {cutmix.alpha:g}",
    "computation": config.dtype,
    "seed": config.seed,
  }
  return [
    "| | |",
    "|---|---|",
    *(f"| {name} | {_plain(value)} |" for name, value in rows.items()),
    "",
    "All fields are in `model.json`.",
  ]


def scores_at(workdir: pathlib.Path, step: int) -> dict[str, float]:
  """What a run logged of the evaluation at a step, by the names of `metrics.jsonl`."""
  found = {}
  for record in read_records(workdir / "metrics.jsonl"):
    if record["step"] == step:
      found |= {name: v for name, v in record.items() if name.startswith(("eval/", "test/"))}
  return found


def _scores(found: Mapping[str, float], trained: Trained) -> list[str]:
  """Table of the evaluation at the exported step."""
  prefix = "ema_" if trained.weights == "ema" else ""
  rows = []
  for split in ("eval", "test"):
    for head, title in (("saol", "SAOL"), ("gap", "GAP-FC")):
      values = [found.get(f"{split}/{prefix}{head}_{score}") for score in _SCORES]
      if any(value is not None for value in values):
        split_name = {"eval": _eval_split(trained), "test": "test"}[split]
        rows.append([title, split_name, *("" if v is None else f"{v:.4f}" for v in values)])
  if not rows:
    return ["## Scores", "", f"Step {trained.step} was not evaluated.", ""]
  return ["## Scores", "", *_table(["head", "split", *_SCORES.values()], rows), ""]


def _eval_split(trained: Trained) -> str:
  return "validation" if trained.config.data.validation else "test"


def _sample(workdir: pathlib.Path, trained: Trained) -> pathlib.Path | None:
  """The picture that the run drew with these variables at this step; None where it drew none."""
  if trained.weights != ("ema" if trained.config.optimizer.ema_decay else "raw"):
    return None  # where there is an average, it is what is drawn
  last = max((record["step"] for record in read_records(workdir / "metrics.jsonl")), default=None)
  if trained.step == last and (workdir / "predictions.png").exists():
    return workdir / "predictions.png"
  pictures = workdir.glob("figures/step_*.png")
  return next((path for path in pictures if path.stem[5:].lstrip("0") == str(trained.step)), None)


def _localization(workdir: pathlib.Path) -> list[str]:
  """Table of every `--mode=localize` that was run."""
  lines = []
  for path in sorted(workdir.glob("localization_*.json")):
    try:
      facts = json.loads(path.read_text())
      title = f"{facts['num_images']} {facts['split']} images, step {facts['step']}"
      rows = [
        [name, *(f"{100 * scores[key]:.1f} %" for key in _BOX_SCORES)]
        for name, scores in facts["maps"].items()
      ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      logger.warning("%s is left out of the card, since it is damaged (%r)", path, error)
      continue
    table = _table(["map", *_BOX_SCORES.values()], rows)
    lines += [f"## Localisation, {title}", "", *table, ""]
  return lines


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
  return [
    f"| {' | '.join(header)} |",
    f"|{'---|' * len(header)}",
    *(f"| {' | '.join(row)} |" for row in rows),
  ]


def _numbers(values: tuple[float, ...]) -> str:
  return ", ".join(f"{value:.4f}" for value in values)


def _crop(data: ml_collections.ConfigDict) -> str:
  """What evaluation took of each image, where it did not take all."""
  if not (data.image_size and data.eval_crop):
    return ""
  return f" (of an image the centred square with {data.eval_crop:g} of its shorter side, resized)"


def _plain(value: object) -> str:
  """Text that Markdown and HTML leave alone, whatever a data set calls its classes."""
  # Quotes matter in attributes only; as entities they would have a # that is escaped below.
  text = html.escape(" ".join(str(value).split()), quote=False)
  return "".join(f"\\{c}" if c in r"\`*_{}[]()#!|~" else c for c in text)
