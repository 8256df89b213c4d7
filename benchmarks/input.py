"""Speed and memory of the input pipeline: files to training batches, on this machine's cores.

  python benchmarks/input.py --photos=FOLDER       # of photographs; a few minutes

The photographs are repeated to a few thousand, packed into tars, and prepared by TFDS's own
imagenet2012 builder in ArrayRecord. Random crops of 224 x 224 are then made in four ways, which
take turns, A B C D A B C D ..., so that the drift of a shared machine hits all alike:

  ours          this project's loader: records from the disk, uint8 out
  ours, resized the same on a copy made by `python -m saol_jax.data.resize` (shorter side 256)
  flax          as flax/examples/imagenet/input_pipeline.py: tf.data, decode_and_crop_jpeg, bicubic
                resize, flip and normalisation in float32 on the host; it gets its records, already
                parsed, from memory, and makes two batches ahead, as ours does
  pillow        Pillow in as many threads as cores: decode, crop, bilinear resize, uint8

Ours leaves flip and normalisation to the device; that is the design that is being compared.
Images/s per core are images by second of CPU time, all threads of the process together: what else
runs on a shared machine hardly changes it, as it does the time on the wall, which is kept too.
Beside the speed: that of TFDS's preparation (tars included) and of the resized copy, with their
bytes an image; the time to the first batch at step 10,000,000 against that at step 0 of as large a
data set as ImageNet; and over several epochs the memory of a process that does nothing but load, as
a picture.
"""

import argparse
import ctypes
import multiprocessing
import pathlib
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import input_pipelines as pipelines
from benchmarks import miniature, record
from benchmarks.command_line import make_parser, positive
from saol_jax.data import Geometry, Reading, load_source
from saol_jax.data.loader import Loader, prefetch
from saol_jax.data.resize import resize
from saol_jax.errors import UserError
from saol_jax.tensorflow_cpu import import_tensorflow

SIZE = 224
WNIDS = [f"n{number:08d}" for number in (1440764, 1443537, 1484850, 1491361, 1494475)]
REFERENCE = "flax"
_IMAGENET = 1_281_167  # training images


def main() -> None:
  """Prepares the photographs, measures, prints tables, writes JSON and a plot."""
  options = _parse()
  import_tensorflow()  # before TFDS does, whose notes on speed would be printed
  output, result = record.begin(options.output, "input")
  photos = [path.read_bytes() for path in sorted(options.photos.iterdir()) if path.is_file()]
  if not photos:
    raise UserError(f"--photos={options.photos} holds no file; expected a folder of photographs")
  result |= {
    "photos": len(photos),
    "images": options.images,
    "median_bytes": statistics.median(map(len, photos)),
    "batch_size": options.batch_size,
    "size": SIZE,
  }
  images = (photos * (options.images // len(photos) + 1))[: options.images]
  with tempfile.TemporaryDirectory() as folder:
    result |= _measure_all(images, pathlib.Path(folder), options)
  record.write(output, result)
  _draw_memory(output.with_suffix(".png"), result["memory_mib"])
  print(_report(result))


def _measure_all(
  images: list[bytes], root: pathlib.Path, options: argparse.Namespace
) -> dict[str, Any]:
  """All numbers, for JSON; the data sets are prepared in an empty folder."""
  preparation, full, resized = _prepare(images, root)
  makers: dict[str, Callable[[], Iterator]] = {
    "ours": pipelines.ours(_loader(*full, options.batch_size)),
    "ours, resized": pipelines.ours(_loader(*resized, options.batch_size)),
    REFERENCE: pipelines.flax(images, options.batch_size, SIZE),
    "pillow": pipelines.pillow(images, options.batch_size, SIZE),
  }
  rates, per_core = _measure_rates(makers, options)
  ratios = {
    label: [mine / reference for mine, reference in zip(each, per_core[REFERENCE], strict=True)]
    for label, each in per_core.items()
  }
  first_batch = _far_start(*full, options.batch_size)
  with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
    memory = process.submit(_memory, *full, options).result()
  return {
    "preparation": preparation,
    "images_per_second": rates,
    "images_per_second_per_core": per_core,
    f"ratio_to_{REFERENCE}": {
      label: {"median": statistics.median(x), "min": min(x), "max": max(x)}
      for label, x in ratios.items()
    },
    "first_batch_seconds": first_batch,
    "memory_mib": memory,
  }


def _prepare(
  images: list[bytes], root: pathlib.Path
) -> tuple[dict[str, float], tuple[str, pathlib.Path], tuple[str, pathlib.Path]]:
  """Speed and size of the preparation; names and folders of what it made, full size and resized."""
  train = {wnid: images[i :: len(WNIDS)] for i, wnid in enumerate(WNIDS)}
  start = time.perf_counter()
  miniature.prepare_imagenet(root / "full", train, images[:2])
  prepared = time.perf_counter()
  name = resize("imagenet2012", str(root / "full"), str(root / "small"), short_side=256)
  resized = time.perf_counter()
  facts = {
    "prepare_images_per_second": len(images) / (prepared - start),
    "resize_images_per_second": len(images) / (resized - prepared),
    "prepared_bytes_per_image": _size(root / "full" / "imagenet2012") / len(images),
    "resized_bytes_per_image": _size(root / "small") / len(images),
  }
  return facts, ("imagenet2012", root / "full"), (name, root / "small")


def _report(result: dict[str, Any]) -> str:
  """What is printed in the end."""
  rates, per_core = result["images_per_second"], result["images_per_second_per_core"]
  rows = []
  for label, each in rates.items():
    ratio = result[f"ratio_to_{REFERENCE}"][label]
    medians = (f"{statistics.median(values):.0f}" for values in (each, per_core[label]))
    spread = f"{ratio['min']:.2f} .. {ratio['max']:.2f}"
    rows.append((label, *medians, f"{ratio['median']:.2f}", spread))
  header = ("pipeline", "images/s", "per core", "ratio per core", "lowest .. highest round")
  first, after_epoch = result["first_batch_seconds"], result["memory_mib"]["after_epoch"]
  return "\n\n".join(
    (
      "\n" + record.markdown(header, rows, text_columns=1),
      ", ".join(f"{name} {value:.0f}" for name, value in result["preparation"].items()),
      f"First batch: {1e3 * first['step_0']:.0f} ms at step 0, "
      f"{1e3 * first['step_10000000']:.0f} ms at step 10,000,000. Memory: {after_epoch[0]:.0f} MiB "
      f"after the first epoch, {after_epoch[-1]:.0f} MiB after epoch {len(after_epoch)}.",
    )
  )


def _parse() -> argparse.Namespace:
  parser = make_parser(__doc__)
  parser.add_argument("--photos", type=pathlib.Path, required=True, help="folder of JPEG files")
  parser.add_argument("--images", type=positive(int), default=2560, help="after repetition")
  parser.add_argument("--batch_size", type=positive(int), default=128, help="of all pipelines")
  parser.add_argument("--rounds", type=positive(int), default=7, help="turns of each")
  parser.add_argument("--epochs", type=positive(int), default=5, help="of the look at memory")
  options = parser.parse_args()
  if options.images < options.batch_size:
    raise UserError(f"--images={options.images} is less than --batch_size={options.batch_size}")
  return options


def _size(folder: pathlib.Path) -> int:
  """Bytes of all files below a folder."""
  return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _loader(name: str, root: pathlib.Path, batch_size: int) -> Loader:
  reading = Reading(geometry=Geometry(SIZE))
  return Loader(load_source(name, "train", data_dir=str(root), reading=reading), batch_size, seed=0)


def _measure_rates(
  makers: dict[str, Callable[[], Iterator]], options: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
  """Images of each pipeline, by round: in a second, and in a second of CPU time."""
  # Two batches may have been made ahead when the clock starts: few against those that are timed.
  count = max(options.images // options.batch_size, 1)
  rates, per_core = ({label: [] for label in makers} for _ in range(2))
  for number in range(options.rounds + 1):
    for label, make in makers.items():
      batches = make()
      next(batches)
      start, start_cpu = time.perf_counter(), time.process_time()
      for _ in range(count):
        next(batches)
      seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
      batches.close()
      if number:  # round 0 warms up
        rates[label].append(count * options.batch_size / seconds)
        per_core[label].append(count * options.batch_size / cpu_seconds)
    if number:
      now = "  ".join(f"{label} {each[-1]:.0f}" for label, each in per_core.items())
      print(f"round {number} of {options.rounds}: images/s per core  {now}", flush=True)
  return rates, per_core


class _Large:
  """A data set as large as ImageNet, of which each example is one of a few."""

  def __init__(self, source):
    self._source, self.info = source, source.info

  def __len__(self) -> int:
    return _IMAGENET

  def sample(self, indices: np.ndarray, seed: int, place: int):
    return self._source.sample(indices % len(self._source), seed, place)


def _far_start(name: str, root: pathlib.Path, batch_size: int) -> dict[str, float]:
  """Seconds to the first batch of a fresh loader, at two steps; the median of five."""
  reading = Reading(geometry=Geometry(SIZE))
  source = _Large(load_source(name, "train", data_dir=str(root), reading=reading))
  seconds = {}
  source.sample(np.arange(batch_size), 0, 0)
  for step in (0, 10_000_000):
    times = []
    for seed in range(1, 6):  # another seed each time: nothing is remembered
      start = time.perf_counter()
      Loader(source, batch_size, seed=seed)[step]
      times.append(time.perf_counter() - start)
    seconds[f"step_{step}"] = statistics.median(times)
  return seconds


def _memory(name: str, root: pathlib.Path, options: argparse.Namespace) -> dict[str, list[float]]:
  """The process's resident memory while the loader goes through several epochs, in MiB.

  `by_batch` includes what the C library keeps of freed memory. `after_epoch` is taken once that is
  given back: what grows there is a leak.
  """
  loader = _loader(name, root, options.batch_size)
  per_epoch = options.images // options.batch_size
  samples, after_epoch = [], []
  give_back = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)  # glibc has it
  for epoch in range(options.epochs):
    for _ in prefetch(loader.__getitem__, range(epoch * per_epoch, (epoch + 1) * per_epoch)):
      samples.append(_resident_mib())
    give_back(0)
    after_epoch.append(_resident_mib())
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  return {"by_batch": samples, "after_epoch": after_epoch, "peak_of_the_process": peak}


def _resident_mib() -> float:
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * resource.getpagesize() / 2**20


def _draw_memory(path: pathlib.Path, memory: dict[str, list[float]]) -> None:
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 3.5), dpi=120, layout="constrained")
  axes = figure.add_subplot()
  per_epoch = len(memory["by_batch"]) / len(memory["after_epoch"])
  axes.plot(
    np.arange(1, len(memory["by_batch"]) + 1) / per_epoch, memory["by_batch"], label="each batch"
  )
  epochs = np.arange(1, len(memory["after_epoch"]) + 1)
  axes.plot(epochs, memory["after_epoch"], "o", label="after an epoch, freed memory given back")
  axes.legend(frameon=False, loc="lower right")
  axes.set_ylim(bottom=0)
  axes.set_xlabel("epochs")
  axes.set_ylabel("resident memory, MiB")
  axes.set_title("Memory of the process while the loader runs", loc="left")
  axes.spines[["top", "right"]].set_visible(False)
  FigureCanvasAgg(figure).print_png(path)


if __name__ == "__main__":
  record.run(main)
