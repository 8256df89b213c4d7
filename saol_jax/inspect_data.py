"""`--mode=inspect`: what is in a data set, as numbers, and as the network sees it."""

import json
import logging
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np

from saol_jax.config import resolve
from saol_jax.console import counted
from saol_jax.data import EncodedSource
from saol_jax.data.inspection import inspect_split
from saol_jax.data.loader import Loader
from saol_jax.experiment import Experiment, data_title
from saol_jax.image_files import printable
from saol_jax.preparation import base_key, prepare_batch, step_keys
from saol_jax.progress import Progress
from saol_jax.training_picture import draw_training_images
from saol_jax.workdir import check_writable, writing

logger = logging.getLogger(__name__)

_NAMED = 10  # files of each kind of mistake in the table; the JSON file has all


def inspect_workdir(
  config: ml_collections.ConfigDict, workdir: str | pathlib.Path
) -> dict[str, Any]:
  """Reads the data set of a config once, whole, and looks at its first training batch.

  Writes `workdir/inspection.json` and `workdir/inspection.png`; nothing else there is touched, and
  no run needs to be there.

  Returns:
    What the JSON file holds: by split, see `inspection.inspect_split`.

  Raises:
    UserError: bad input, or the folder cannot be written.
  """
  workdir = pathlib.Path(workdir)
  experiment = Experiment(resolve(config))
  results = {}
  with writing(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    check_writable(workdir)
    for split in dict.fromkeys(("train", experiment.eval_split, experiment.report_split)):
      source = experiment.source(split)
      results[split] = inspect_split(source, Progress(f"reading {split}", len(source)).add)
    path = workdir / "inspection.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    _draw_first_batch(experiment, path.with_suffix(".png"))
  logger.info("%s", "\n".join(describe(split, result) for split, result in results.items()))
  if isinstance(experiment.train, EncodedSource):
    mean, std = (tuple(results["train"][name]) for name in ("mean", "std"))
    logger.info(
      "Normalised with mean %s and std %s; for those of train: "
      "--config.data.mean='%s' --config.data.std='%s'",
      *(_numbers(values) for values in (experiment.info.mean, experiment.info.std)),
      mean,
      std,
    )
  logger.info("written to %s and .png", path)
  return results


def describe(split: str, result: dict[str, Any]) -> str:
  """A result of `inspect_split` as a few lines of text."""
  counts = result["per_class"]
  fewest, most = min(counts, key=counts.get), max(counts, key=counts.get)
  per_class = f"{counts[fewest]} ({printable(fewest)}) to {counts[most]} ({printable(most)})"
  if counts[fewest] == counts[most]:
    per_class = f"{counts[most]} each"
  lines = [
    f"{split}: {counted(result['images'], 'image')} of {len(counts)} classes",
    f"  per class   {per_class}",
  ]
  for name in ("height", "width"):
    least, median, most = result[name].values()
    several = f"{least} to {most}, median {median:g}"
    lines.append(f"  {name:<10}  {several if least < most else least}")
  for name in ("kinds", "modes"):
    if result[name]:
      each = (f"{name} {count}" for name, count in result[name].items())
      lines.append(f"  {name:<10}  {', '.join(each)}")
  if result["boxes"]:
    lines.append(f"  boxes       {result['boxes']}")
  lines.append(f"  mean, std   {_numbers(result['mean'])}; {_numbers(result['std'])}")
  for title, files in (
    ("broken", {name: f": {why}" for name, why in result["broken"].items()}),
    ("wrong extension", {name: f" is {kind}" for name, kind in result["mislabelled"].items()}),
    ("box beyond the border", dict.fromkeys(result["boxes_beyond_the_border"], "")),
  ):
    if files:
      lines.append(f"  {title}: {len(files)}")
      named = list(files.items())[:_NAMED]
      lines += [f"    {printable(name)}{printable(what)}" for name, what in named]
      if len(files) > _NAMED:
        lines.append(f"    and {len(files) - _NAMED} more, see inspection.json")
  return "\n".join(lines)


def _draw_first_batch(experiment: Experiment, path: pathlib.Path) -> None:
  """What the first training step gets."""
  config, info = experiment.config, experiment.info
  loader = Loader(experiment.train, config.batch_size, config.seed)
  key_augment, key_cutmix, _ = step_keys(base_key(jax.random.key(config.seed)), 0)

  @jax.jit
  def prepare(batch):
    return prepare_batch(config, info, experiment.mesh, batch, key_augment, key_cutmix)

  batch = jax.device_get(prepare(experiment.put(loader[0])))
  mean, std = np.array(info.mean, np.float32), np.array(info.std, np.float32)
  images, mixed = (
    np.clip(255 * (batch[name] * std + mean) + 0.5, 0, 255).astype(np.uint8)
    for name in ("image", "mixed")
  )
  draw_training_images(
    path,
    images,
    mixed,
    boxes=batch["box"],
    targets=batch["target"],
    class_names=info.class_names,
    title=f"{data_title(config)}: what the first step of training sees",
  )


def _numbers(values) -> str:
  return " ".join(f"{value:.3f}" for value in values)
