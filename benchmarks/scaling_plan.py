"""Writes docs/scaling.md: what to expect of large runs, from programs and published speeds.

  python benchmarks/scaling_plan.py

reads what scaling.py, checkpoint.py and input.py left in benchmarks/results. Nothing in it was
measured on a pod or a cluster: it is arithmetic, with its assumptions in the open.
"""

import dataclasses
import json
import math
import pathlib
import statistics
import sys
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import record

DOCUMENT = record.ROOT / "docs" / "scaling.md"
TEMPLATE = pathlib.Path(__file__).parent / "scaling_template.md"

# What one accelerator is assumed to train of ResNet-50 with SAOL at 224 px, by its memory's speed:
# convolutional networks wait for memory. Not measured: 2,600 images/s of GAP-FC on a card with
# 4.8 TB/s is our own bar, SAOL's step may take 1.38 times as long.
_IMAGES_A_TERABYTE = 2600 / 4.8 / 1.38
_GLOBAL_BATCH = 8192
_PER_DEVICE = 128
_MOST_IMAGES = 256  # that fit into the memory of the smallest device
_NORM_GROUP = 32
_JPEG_BYTES = 110e3  # of an ImageNet image


@dataclasses.dataclass(frozen=True)
class Cluster:
  """Published speeds, bytes a second and one way.

  Attributes:
    name: of the accelerator.
    memory: of one device.
    near: link of one device to the others of its host, or of its slice.
    host: devices a host.
    far: network of one device beyond its host; None where the slice is one fabric.
    sizes: devices to plan for.
  """

  name: str
  memory: float
  near: float
  host: int
  far: float | None
  sizes: tuple[int, ...]

  @property
  def images_a_second(self) -> float:
    """Of one device, with SAOL."""
    return _IMAGES_A_TERABYTE * self.memory / 1e12

  def exchange_seconds(self, devices: int, size: float) -> float:
    """Of an all-reduce of `size` bytes: every link carries 2 (n - 1) / n of its share."""
    if self.far is None:
      return _ring(devices) * size / self.near
    hosts = math.ceil(devices / self.host)
    inside = _ring(min(devices, self.host)) * size / self.near
    return inside + _ring(hosts) * size / self.host / self.far


def _ring(parts: int) -> float:
  return 2 * (parts - 1) / parts


CLUSTERS = (
  # https://cloud.google.com/tpu/docs/v5e: 819 GB/s, 1,600 Gbit/s of interconnect both ways
  Cluster("TPU v5e", 819e9, 100e9, 8, None, (8, 64, 256)),
  # https://cloud.google.com/tpu/docs/v4: 1,228 GB/s, six links of 50 GB/s one way
  Cluster("TPU v4", 1228e9, 300e9, 4, None, (8, 64, 512)),
  # NVIDIA's H100 SXM and DGX H100 data sheets: 3.35 TB/s, NVLink 450 GB/s one way, NDR 400 Gbit/s
  Cluster("H100", 3350e9, 450e9, 8, 50e9, (8, 64, 512)),
)


def main() -> None:
  """Writes the document."""
  results = {
    name: json.loads((record.RESULTS / f"{name}.json").read_text())
    for name in (
      "scaling_wrn_40_2_cpu",
      "scaling_wrn_40_2_tpu",
      "scaling_resnet50_cuda",
      "memory_resnet50_cuda",
      "checkpoint_resnet50_cpu",
      "input_cpu",
    )
  }
  DOCUMENT.write_text(document(results))
  print(f"written: {DOCUMENT}")


def document(results: dict[str, Any]) -> str:
  """The whole text."""
  programs = results["scaling_resnet50_cuda"]["programs"]
  size = programs[0]["collectives"]["all-reduce"]["bytes"]
  checkpoint, pipeline = results["checkpoint_resnet50_cpu"], results["input_cpu"]
  return TEMPLATE.read_text().format(
    collectives=_collectives(results),
    memory=_memory(results["memory_resnet50_cuda"]["programs"]),
    megabytes=f"{size / 1e6:.0f}",
    weak=_plan(size, lambda devices: _PER_DEVICE),
    strong=_plan(size, lambda devices: _GLOBAL_BATCH / devices),
    batch=f"{_GLOBAL_BATCH:,}",
    per_device=_PER_DEVICE,
    norm_group=_NORM_GROUP,
    whole_groups=_GLOBAL_BATCH // _NORM_GROUP,
    feeding=_feeding(pipeline),
    state=f"{checkpoint['state_bytes'] / 1e6:.0f}",
    stall=f"{_median(checkpoint['stall_seconds']):.2f}",
    write=f"{_median(checkpoint['write_seconds']):.1f}",
    restore=f"{_median(checkpoint['restore_seconds']):.1f}",
  )


def _median(values: list[float]) -> float:
  return statistics.median(values)


def _collectives(results: dict[str, Any]) -> str:
  rows = []
  for name, network, target in (
    ("scaling_wrn_40_2_cpu", "WRN-40-2, 32 px", "CPU, fake devices"),
    ("scaling_wrn_40_2_tpu", "WRN-40-2, 32 px", "TPU v5e"),
    ("scaling_resnet50_cuda", "ResNet-50, 224 px", "H100, 8 a host"),
  ):
    for program in results[name]["programs"]:
      found = program["collectives"]
      sums = found.get("all-reduce", {"number": 0, "bytes": 0})
      rows.append(
        (
          network,
          target,
          str(program["devices"]),
          str(sums["number"]),
          f"{sums['bytes'] / 1e6:.2f}",
          f"{program['parameter_bytes'] / 1e6:.2f}",
          str(sum(kind["number"] for kind in found.values()) - sums["number"]),
          f"{program['program_bytes'] / 2**30:.2f}",
        )
      )
  header = ("network", "compiled for", "devices", "all-reduces", "MB", "parameters, MB", "others")
  return record.markdown((*header, "GiB a device"), rows, text_columns=2)


def _memory(programs: list[dict[str, Any]]) -> str:
  names = {"gap": "GAP-FC + CutMix", "saol_without_ss2": "SAOL without L_SS2", "saol": "SAOL"}
  base = programs[0]
  rows = [
    (
      names[program["variant"]],
      f"{program['program_bytes'] / 2**30:.2f}",
      f"{program['program_bytes'] / base['program_bytes']:.2f}",
      f"{program['flops_per_device'] / base['flops_per_device']:.2f}",
    )
    for program in programs
  ]
  return record.markdown(("step", "GiB", "ratio", "FLOPs ratio"), rows, text_columns=1)


def _plan(size: float, per_device: Callable[[int], float]) -> str:
  rows = []
  for cluster in CLUSTERS:
    for devices in cluster.sizes:
      images = per_device(devices)
      if images > _MOST_IMAGES:
        continue
      computing = images / cluster.images_a_second
      exchanging = cluster.exchange_seconds(devices, size)
      rows.append(
        (
          cluster.name,
          str(devices),
          f"{images:g}",
          f"{1000 * computing:.1f}",
          f"{1000 * exchanging:.2f}",
          f"{100 * computing / (computing + exchanging):.1f} %",
          f"{devices * images / (computing + exchanging):,.0f}",
        )
      )
  header = ("device", "devices", "images each", "computing, ms", "exchanging, ms", "efficiency")
  return record.markdown((*header, "images/s"), rows, text_columns=1)


def _feeding(pipeline: dict[str, Any]) -> str:
  measured = pipeline["images_per_second_per_core"]
  rates = [_median(measured[name]) for name in ("ours", "ours, resized")]
  rows = []
  for cluster in CLUSTERS:
    need = cluster.host * cluster.images_a_second
    cores = (f"{need / rate:.0f}" for rate in rates)
    rows.append((cluster.name, f"{need:,.0f}", f"{need * _JPEG_BYTES / 1e6:,.0f}", *cores))
  header = ("device", "images/s a host", "MB/s of JPEG", "cores", "cores, from a copy at 256 px")
  return record.markdown(header, rows, text_columns=1)


if __name__ == "__main__":
  record.run(main)
