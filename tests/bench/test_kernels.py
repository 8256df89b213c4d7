"""kernels.py: what it makes of a device's trace. The trace itself needs a GPU."""

import sys

import jax
import pytest

from benchmarks import kernels
from benchmarks.kernels import Kernel
from saol_jax.errors import UserError
from tests.support import table_rows

TRACED = [  # two steps, in nanoseconds; the second kernel overlaps the first
  Kernel("loop_fusion_1", "fusion.1", 0, 10),
  Kernel("sm90_xmma_fprop", "cudnn-conv.2", 5, 30),
  Kernel("input_reduce_fusion", "reduce.3", 40, 50),
  Kernel("loop_fusion_1", "fusion.1", 70, 80),
]


def test_times_are_added_up_by_kind_and_by_instruction():
  found = kernels.summary(TRACED, 2, {"fusion.1": "jit(step)/add"})
  assert found["seconds"] == pytest.approx(40e-9)
  assert found["idle_seconds"] == pytest.approx((10 + 20) / 2 * 1e-9)
  assert {name: own["number"] for name, own in found["kinds"].items()} == {
    "convolution": 0.5,
    "elementwise": 1.0,
    "reduction": 0.5,
  }
  assert found["kernels"][0]["kernel"] == "sm90_xmma_fprop"  # the longest first
  assert found["kernels"][1] == {
    "kernel": "loop_fusion_1",
    "instruction": "fusion.1",
    "operation": "jit(step)/add",
    "seconds": pytest.approx(10e-9),
    "number": 1.0,
  }
  rows = {row[0]: row[1:] for row in table_rows(kernels.table(found))}
  assert rows["convolution"] == ["0", "0.00", "31.2%"]
  assert rows["nothing"] == ["0", "0.00", "37.5%"]


def test_operations_of_a_compiled_program_are_found():
  program = jax.jit(lambda x: jax.numpy.sin(x) @ x).lower(jax.numpy.ones((9, 9))).compile()
  found = kernels.instructions(program.as_text())
  assert any(operation.endswith("dot_general") for operation in found.values())


def test_without_a_gpu_it_says_so_and_keeps_what_it_was_asked_to(tmp_path, monkeypatch):
  output, kept = tmp_path / "kernels.json", tmp_path / "kept"
  arguments = [f"--output={output}", f"--keep={kept}", "--variants=gap", "--batch_size=8"]
  sizes = ["--image_size=16", "--num_classes=3", "--steps=1", "--set", "model.norm_group=2"]
  monkeypatch.setattr(sys, "argv", ["kernels.py", *arguments, *sizes])
  with pytest.raises(UserError, match="the trace shows no kernel of cpu: this script is for GPUs"):
    kernels.main()
  assert not output.exists()
  assert "ENTRY" in (kept / "gap.hlo.txt").read_text()
  assert (kept / "gap.xplane.pb").stat().st_size
