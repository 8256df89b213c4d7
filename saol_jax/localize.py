"""`--mode=localize`: how well each kind of map finds the object, as a table, a file and a plot."""

import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from saol_jax import explain, localization
from saol_jax.compiler import compiler_options
from saol_jax.config import resolve
from saol_jax.data import Source
from saol_jax.data.augment import normalise
from saol_jax.data.folder import BOXES_FILE, BOXES_HEADER
from saol_jax.data.loader import padded_batches
from saol_jax.distributed import replicated, split_batch
from saol_jax.durable import write_text
from saol_jax.errors import UserError
from saol_jax.evaluate import restore_wanted
from saol_jax.experiment import Experiment, data_title
from saol_jax.localization_plot import draw_box_accuracy
from saol_jax.metrics import label_ranks
from saol_jax.model import Variables
from saol_jax.model_card import check_classes
from saol_jax.progress import Progress
from saol_jax.train_step import TrainState, head_log_probs
from saol_jax.workdir import check_config, check_writable, writing
from saol_jax.wsol import THRESHOLDS, BoxScores, PixelScores, overlaps, pixel_counts

logger = logging.getLogger(__name__)

# Column of the table: key of the result.
_COLUMNS = {
  "GT-known": "gt_known",
  "top-1 loc": "top1_loc",
  "top-5 loc": "top5_loc",
  "MaxBoxAcc": "max_box_acc",
  "IoU .3": "box_acc_30",
  "IoU .5": "box_acc_50",
  "IoU .7": "box_acc_70",
  "MaxBoxAccV2": "max_box_acc_v2",
  "PxAP": "px_ap",  # only of data sets with masks
}


def localize_workdir(
  config: ml_collections.ConfigDict, workdir: str | pathlib.Path
) -> dict[str, float]:
  """Scores every map of a checkpoint on a split with boxes.

  The threshold of each map is chosen on another split: validation where `data.validation` holds
  some out and it is not the one that is scored, else train. The result is a function of the
  checkpoint and the config.

  Writes `workdir/localization_SPLIT_CHECKPOINT.json` and `.png`. Nothing else there changes.

  Args:
    config: of the run; `localize` says what is scored, `evaluate.checkpoint` which checkpoint,
      latest or best. The moving average of the parameters is used where there is one. Without
      `localize.maps` the maps are all that one forward pass gives and both kinds of Grad-CAM on the
      last stage, see `explain.map_names`.
    workdir: of the run.

  Returns:
    `SPLIT/MAP_SCORE` for the threshold, each score of `wsol.BoxScores`, and `px_ap` where the data
    set has masks of its objects.

  Raises:
    UserError: no checkpoint there, or one of another config; no boxes; an unknown map; or the
      thresholds would be chosen on what is reported.
  """
  config, workdir = resolve(config), pathlib.Path(workdir)
  check_config(config, workdir)
  experiment = Experiment(config)
  split, threshold_split = _splits(experiment)
  check_classes(experiment.info, workdir)
  asked = (name.strip() for name in config.localize.maps.split(","))
  names = tuple(filter(None, asked)) or _default_maps(experiment)
  sources = tuple(_with_boxes(experiment, name) for name in (split, threshold_split))
  state = restore_wanted(experiment, workdir)
  check_writable(workdir)
  step, wanted = int(state.step), config.evaluate.checkpoint
  logger.info("Localising with %d maps of step %d (%s)", len(names), step, wanted)
  found = _localize(experiment, state, sources, (split, threshold_split), names)
  logger.info(
    "%s\nPercent of %d %s images; * the best of its column. Thresholds: chosen on %d %s images; "
    "MaxBoxAcc takes the best on those scored, as it is defined.",
    table(found.results),
    found.num_images,
    split,
    found.num_threshold_images,
    threshold_split,
  )

  path = workdir / f"localization_{split}_{wanted}.json"
  facts = {
    "step": step,
    "split": split,
    "num_images": found.num_images,
    "threshold_split": threshold_split,
    "num_threshold_images": found.num_threshold_images,
    "maps": found.results,
    "thresholds": THRESHOLDS.round(3).tolist(),
    "box_accuracy": {name: curve.round(6).tolist() for name, curve in found.curves.items()},
  }
  title = f"{config.model.name} on {data_title(config)}, {split}, step {step}"
  thresholds = {name: result["threshold"] for name, result in found.results.items()}
  with writing(workdir):
    write_text(path, json.dumps(facts) + "\n")
    draw_box_accuracy(path.with_suffix(".png"), found.curves, thresholds, title)
  logger.info("written to %s and .png", path)
  return {
    f"{split}/{name}_{score}": value
    for name, result in found.results.items()
    for score, value in result.items()
  }


class _Localization(NamedTuple):
  """What is known of the maps of a state.

  Attributes:
    results: by map, its threshold and its scores.
    curves: by map, (1000,) GT-known localisation at each of `THRESHOLDS`.
    num_images, num_threshold_images: that were scored, and that thresholds were chosen on.
  """

  results: dict[str, dict[str, float]]
  curves: dict[str, np.ndarray]
  num_images: int
  num_threshold_images: int


def _localize(
  experiment: Experiment,
  state: TrainState,
  sources: tuple[Source, Source],
  splits: tuple[str, str],
  names: Sequence[str],
) -> _Localization:
  """Chooses the threshold of each map on the second source, and scores it on the first."""
  (source, threshold_source), (split, threshold_split) = sources, splits
  variables = state.variables if state.ema is None else state.ema
  places = _spread(threshold_source.boxed, experiment.config.localize.num_threshold_images)
  chosen, _ = map_scores(experiment, variables, threshold_source, names, places, threshold_split)
  found, pixels = map_scores(experiment, variables, source, names, source.boxed, split)
  results = {}
  for name in names:
    threshold = chosen[name].best_threshold()
    # In the digits of the list of all thresholds.
    results[name] = {"threshold": round(threshold, 3)}
    results[name] |= found[name].at(threshold) | found[name].best()
    if name in pixels:
      results[name]["px_ap"] = pixels[name].average_precision()
  curves = {name: found[name].curve() for name in names}
  return _Localization(results, curves, found[names[0]].count, chosen[names[0]].count)


def _splits(experiment: Experiment) -> tuple[str, str]:
  """The split that is reported, and the one on which thresholds are chosen.

  Raises:
    UserError: they are the same.
  """
  config = experiment.config
  split, threshold_split = config.localize.split, config.localize.threshold_split
  if split == "auto":
    split = experiment.report_split
  if threshold_split == "auto":
    held_out = config.data.validation and split != "validation"
    threshold_split = "validation" if held_out else "train"
  if split == threshold_split:
    raise UserError(
      f"The thresholds would be chosen on the reported split, {split!r}; choose them on another "
      "one with localize.threshold_split: validation (with data.validation above 0) or train"
    )
  return split, threshold_split


def _spread(places: np.ndarray, most: int) -> np.ndarray:
  """At most so many of the places, evenly spread; 0: all."""
  if not 0 < most < len(places):
    return places
  return places[np.linspace(0, len(places) - 1, most).round().astype(int)]


def map_scores(
  experiment: Experiment,
  variables: Variables,
  source: Source,
  names: Sequence[str],
  places: np.ndarray,
  split: str,
) -> tuple[dict[str, BoxScores], dict[str, PixelScores]]:
  """Scores the maps of the true class, at the size of the image.

  Memory does not grow with the number of examples. Of large images the contours take most of the
  time, on one core: threads that share the interpreter find them no faster.

  Args:
    experiment: of the run.
    variables: of the model.
    source: with boxes.
    names: of the maps.
    places: (n,) which examples, in order; those that turn out to have no box are left out.
    split: its name, for the lines of progress.

  Returns:
    For each name its scores; by pixels only where the source has masks. A label is the prediction
    of the head that the map belongs to.

  Raises:
    UserError: none of the examples has a box.
  """
  predict = _make_predict(experiment, names)
  boxes, pixels = {name: BoxScores() for name in names}, {}
  progress = Progress(f"  {split}, localised", len(places), last_line=False)
  for batch in padded_batches(source, experiment.eval_batch_size, places):
    put = experiment.put(batch)
    maps, ranks = jax.device_get(predict(variables, put["image"], put["label"]))
    size = batch["image"].shape[1:3]
    known = localization.has_area(batch["box"])
    for index in np.flatnonzero(batch["mask"]):
      progress.add(1)
      if not known[index]:
        continue
      for name in names:
        # One at a time: a batch of maps at the size of the image need not fit into memory.
        large = localization.normalise(localization.resize_maps(maps[name][index], size))
        rank = ranks[explain.head_of(name)][index]
        ious = overlaps(large, batch["box"][index])
        boxes[name].add_overlaps(ious, top1=rank < 1, top5=rank < 5)
        if "object_mask" in batch:
          counts = pixel_counts(large, batch["object_mask"][index])
          pixels.setdefault(name, PixelScores()).add_counts(counts)
  without = len(places) - boxes[names[0]].count
  if without == len(places):
    raise UserError(
      f"None of the {len(places)} {split} images has a box, so nothing can be said of places; "
      "score another split with --config.localize.split, or name the feature that holds the boxes "
      "with --config.data.box_field"
    )
  if without:
    logger.info("  %s: %d of %d images have no box: left out", split, without, len(places))
  return boxes, pixels


def table(results: Mapping[str, Mapping[str, float]]) -> str:
  """Maps x scores in percent as aligned text, the best of each column with a star."""
  scores = set.intersection(*(set(result) for result in results.values()))
  columns = {title: key for title, key in _COLUMNS.items() if key in scores}
  best = {key: max(result[key] for result in results.values()) for key in columns.values()}
  rows = [["map", "threshold", *columns]]
  for name, result in results.items():
    cells = [
      f"{100 * result[key]:.2f}{'*' if result[key] == best[key] else ' '}"
      for key in columns.values()
    ]
    rows.append([name, f"{result['threshold']:.3f}", *cells])
  rows[0][2:] = [f"{title} " for title in rows[0][2:]]  # above the digits, not the star
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  return "\n".join(
    "  ".join(
      cell.ljust(width) if i == 0 else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  )


def _make_predict(experiment: Experiment, names: Sequence[str]):
  """A jitted function from variables, images and labels to maps, and the label's rank by head."""
  info, model = experiment.info, experiment.model

  def predict(variables: Variables, images: jax.Array, labels: jax.Array):
    images = normalise(images, info.mean, info.std)
    maps, output = explain.score_maps(model, variables, images, labels, names)
    heads = {explain.head_of(name) for name in names}
    return maps, {head: label_ranks(head_log_probs(output, head), labels) for head in heads}

  batch = split_batch(experiment.mesh)
  return jax.jit(
    predict,
    in_shardings=(replicated(experiment.mesh), batch, batch),
    out_shardings=replicated(experiment.mesh),
    compiler_options=compiler_options(
      experiment.mesh, deterministic=experiment.config.deterministic
    ),
  )


def _default_maps(experiment: Experiment) -> tuple[str, ...]:
  """All maps of one forward pass, and those by gradients on the last stage."""

  def stages(variables: Variables, images: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(experiment.model.merge(variables).backbone(images, train=False))

  images = jax.ShapeDtypeStruct((1, *experiment.train.image_shape), jnp.float32)
  last = len(jax.eval_shape(stages, experiment.abstract_state().variables, images))
  names = explain.map_names(experiment.heads, last)
  return tuple(name for name in names if "gradcam" not in name or name.endswith(f"_{last}"))


def _with_boxes(experiment: Experiment, split: str) -> Source:
  source, data = experiment.source(split), experiment.config.data
  if len(source.boxed):
    return source
  mend = "use a data set with boxes, such as digit_scenes"
  if data.name == "folder":
    path = pathlib.Path(data.data_dir).expanduser() / BOXES_FILE
    state = "has no line of an image of that split" if path.exists() else "does not exist"
    mend = f"{path} {state}; it holds a line an image, below the header {','.join(BOXES_HEADER)!r}"
  raise UserError(
    f"data.name={data.name!r} has no boxes of split {split!r}, so nothing can be said of places; "
    f"{mend}"
  )
