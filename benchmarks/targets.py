"""Devices that this machine does not have: what XLA's real compilers for them need to know.

Compiling ahead of time needs a compiler and a description, not the device. The compilers come with
`pip install "jax[tpu]"` and `pip install "jax[cuda12]"`, at the version of jax that is pinned.
"""

import os

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from saol_jax.errors import UserError

# The chips of a slice, as libtpu wants it spelled.
_TPU_V5E = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_GPUS_A_HOST = 8
# XLA's own description of the card (xla/backends/gpu/target_config/specs/h100_sxm.txtpb).
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

KINDS = {"cpu": "fake devices", "tpu": "TPU v5e", "cuda": "H100, 8 a host"}


def prepare(target: str, most: int) -> None:
  """Settles what has to be settled before JAX starts, for up to `most` devices."""
  jax.config.update("jax_platforms", "cpu")  # where shapes are computed
  if target == "cpu":
    jax.config.update("jax_num_cpu_devices", most)
  if target == "tpu":  # or libtpu asks the cloud where it is, and complains that nobody answers
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")


def mesh_of(target: str, devices: int) -> Mesh:
  """Devices in a row, on axis `data`.

  Raises:
    UserError: there is no such number of them, or the compiler is not installed.
  """
  found = jax.devices()[:devices] if target == "cpu" else _described(target, devices)
  return Mesh(np.array(found), ("data",), axis_types=(AxisType.Auto,))


def _described(target: str, devices: int) -> list[jax.Device]:
  if target == "tpu":
    if devices not in _TPU_V5E:
      raise UserError(
        f"--devices={devices}: a v5e slice has one of {', '.join(map(str, _TPU_V5E))}"
      )
    arguments, options = (f"v5e:{_TPU_V5E[devices]}", "tpu"), {}
  else:
    hosts = -(-devices // _GPUS_A_HOST)
    if devices % hosts:
      raise UserError(f"--devices={devices}: expected at most {_GPUS_A_HOST}, or a multiple of it")
    shape = f"1x{hosts}x{devices // hosts}"
    arguments, options = ("", "cuda"), {"target_config": _H100, "topology": shape}
  try:
    return topologies.get_topology_desc(*arguments, **options).devices
  except (RuntimeError, ValueError, NotImplementedError) as error:
    extra = {"tpu": "tpu", "cuda": "cuda12"}[target]
    raise UserError(
      f"--target={target} cannot be compiled for: {str(error).splitlines()[0]}. Its compiler comes "
      f'with: pip install "jax[{extra}]=={jax.__version__}"'
    ) from error
