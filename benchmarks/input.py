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
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import miniature, record
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
  options = _parse_arguments()
  import_tensorflow()  # before TFDS does, whose notes on speed would be printed
  facts = record.describe_run()
  record.check_output(options.output)
  photos = [path.read_bytes() for path in sorted(options.photos.iterdir()) if path.is_file()]
  if not photos:
    raise UserError(f"--photos={options.photos} holds no file; expected a folder of photographs")
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    images = (photos * (options.images // len(photos) + 1))[: options.images]
    train = {wnid: images[i :: len(WNIDS)] for i, wnid in enumerate(WNIDS)}
    start = time.perf_counter()
    miniature.prepare_imagenet(root / "full", train, photos[:2])
    prepared = time.perf_counter()
    name = resize("imagenet2012", str(root / "full"), str(root / "small"), short_side=256)
    resized = time.perf_counter()
    preparation = {
      "prepare_images_per_second": options.images / (prepared - start),
      "resize_images_per_second": options.images / (resized - prepared),
      "prepared_bytes_per_image": _size(root / "full" / "imagenet2012") / options.images,
      "resized_bytes_per_image": _size(root / "small") / options.images,
    }
    sources = {"ours": ("imagenet2012", root / "full"), "ours, resized": (name, root / "small")}
    makers: dict[str, Callable[[], Iterator]] = {
      label: _ours(*where, options.batch_size) for label, where in sources.items()
    }
    makers[REFERENCE] = _flax(images, options.batch_size)
    makers["pillow"] = _pillow(images, options.batch_size)
    rates, per_core = _measure(makers, options)
    far = _far_start(root / "full", options.batch_size)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
      memory = process.submit(_memory, root / "full", options).result()

  ratios = {
    label: [mine / reference for mine, reference in zip(each, per_core[REFERENCE], strict=True)]
    for label, each in per_core.items()
  }
  result = facts | {
    "photos": len(photos),
    "images": options.images,
    "median_bytes": statistics.median(map(len, photos)),
    "batch_size": options.batch_size,
    "size": SIZE,
    "preparation": preparation,
    "images_per_second": rates,
    "images_per_second_per_core": per_core,
    f"ratio_to_{REFERENCE}": {
      label: {"median": statistics.median(x), "min": min(x), "max": max(x)}
      for label, x in ratios.items()
    },
    "first_batch_seconds": far,
    "memory_mib": memory,
  }
  record.write(options.output, result)
  _draw_memory(options.output.with_suffix(".png"), memory)
  rows = [
    [
      label,
      f"{statistics.median(each):.0f}",
      f"{statistics.median(per_core[label]):.0f}",
      f"{statistics.median(ratios[label]):.2f}",
      f"{min(ratios[label]):.2f} .. {max(ratios[label]):.2f}",
    ]
    for label, each in rates.items()
  ]
  header = ["pipeline", "images/s", "per core", "ratio per core", "lowest .. highest round"]
  print(f"\n{record.markdown(header, rows, text_columns=1)}")
  print("\n" + ", ".join(f"{name} {value:.0f}" for name, value in preparation.items()))
  print(
    f"\nFirst batch: {1e3 * far['step_0']:.0f} ms at step 0, {1e3 * far['step_10000000']:.0f} ms "
    f"at step 10,000,000. Memory: {memory['after_epoch'][0]:.0f} MiB after the first epoch, "
    f"{memory['after_epoch'][-1]:.0f} MiB after epoch {len(memory['after_epoch'])}."
  )


def _parse_arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--photos", type=pathlib.Path, required=True, help="folder of JPEG files")
  parser.add_argument("--images", type=int, default=2560, help="after repetition (default: 2560)")
  parser.add_argument("--batch_size", type=int, default=128)
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--epochs", type=int, default=5, help="of the look at memory")
  parser.add_argument(
    "--output", type=pathlib.Path, default=record.RESULTS / "input_cpu.json", help="result file"
  )
  options = parser.parse_args()
  for name in ("images", "batch_size", "rounds", "epochs"):
    if getattr(options, name) < 1:
      raise UserError(f"--{name}={getattr(options, name)}; expected 1 or more")
  if options.images < options.batch_size:
    raise UserError(f"--images={options.images} is less than --batch_size={options.batch_size}")
  return options


def _size(folder: pathlib.Path) -> int:
  """Bytes of all files below a folder."""
  return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _loader(name: str, root: pathlib.Path, batch_size: int) -> Loader:
  reading = Reading(geometry=Geometry(SIZE))
  return Loader(load_source(name, "train", data_dir=str(root), reading=reading), batch_size, seed=0)


def _ours(name: str, root: pathlib.Path, batch_size: int) -> Callable[[], Iterator]:
  loader = _loader(name, root, batch_size)
  return lambda: prefetch(loader.__getitem__, range(10**9))


def _flax(images: list[bytes], batch_size: int) -> Callable[[], Iterator]:
  """The training part of Flax's ImageNet example, on records in memory."""
  tf = import_tensorflow()
  mean = tf.constant([0.485 * 255, 0.456 * 255, 0.406 * 255], shape=[1, 1, 3])
  std = tf.constant([0.229 * 255, 0.224 * 255, 0.225 * 255], shape=[1, 1, 3])

  def preprocess(encoded):
    shape = tf.io.extract_jpeg_shape(encoded)
    begin, size, _ = tf.image.sample_distorted_bounding_box(
      shape,
      bounding_boxes=tf.constant([0.0, 0.0, 1.0, 1.0], shape=[1, 1, 4]),
      min_object_covered=0.1,
      aspect_ratio_range=(3 / 4, 4 / 3),
      area_range=(0.08, 1.0),
      max_attempts=10,
      use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], size[:2]], 0)
    image = tf.io.decode_and_crop_jpeg(encoded, window, channels=3)
    image = tf.image.resize([image], [SIZE, SIZE], method="bicubic")[0]
    image = tf.image.random_flip_left_right(tf.reshape(image, [SIZE, SIZE, 3]))
    return (image - mean) / std

  dataset = tf.data.Dataset.from_tensor_slices(images).repeat().shuffle(16 * batch_size, seed=0)
  dataset = dataset.map(preprocess, num_parallel_calls=tf.data.AUTOTUNE)
  dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(2)
  return lambda: (batch.numpy() for batch in dataset)


def _pillow(images: list[bytes], batch_size: int) -> Callable[[], Iterator]:
  """Decode, crop, resize by Pillow, in threads."""
  import io
  import os

  from PIL import Image

  def one(index: int) -> np.ndarray:
    rng = np.random.default_rng(index)
    with Image.open(io.BytesIO(images[index % len(images)])) as image:
      side = np.sqrt(rng.uniform(0.08, 1.0) * image.width * image.height)
      aspect = np.exp(rng.uniform(np.log(3 / 4) / 2, np.log(4 / 3) / 2))
      width, height = min(image.width, side * aspect), min(image.height, side / aspect)
      x, y = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
      crop = image.convert("RGB").resize(
        (SIZE, SIZE), Image.Resampling.BILINEAR, box=(x, y, x + width, y + height)
      )
    return np.asarray(crop)

  def batches() -> Iterator[np.ndarray]:
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
      for start in range(0, 10**9, batch_size):
        yield np.stack(list(threads.map(one, range(start, start + batch_size))))

  return batches


def _measure(
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


def _far_start(root: pathlib.Path, batch_size: int) -> dict[str, float]:
  """Seconds to the first batch of a fresh loader, at two steps; the median of five."""
  reading = Reading(geometry=Geometry(SIZE))
  source = _Large(load_source("imagenet2012", "train", data_dir=str(root), reading=reading))
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


def _memory(root: pathlib.Path, options: argparse.Namespace) -> dict[str, list[float]]:
  """The process's resident memory while the loader goes through several epochs, in MiB.

  `by_batch` includes what the C library keeps of freed memory. `after_epoch` is taken once that is
  given back: what grows there is a leak.
  """
  loader = _loader("imagenet2012", root, options.batch_size)
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
