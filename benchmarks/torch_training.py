"""PyTorch's side of benchmarks/step_torch.py: networks, the training step, and a server of turns.

The step is what a plain PyTorch script does: CutMix with one box for the batch as in its authors'
code, forward pass, backward pass, SGD with Nesterov momentum. Networks that timm lacks are written
here as `saol_jax.backbones` has them. Nothing of JAX is imported.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# Variant -> memory format, and whether torch.compile is used.
VARIANTS = {
  "eager": (torch.contiguous_format, False),
  "eager, channels_last": (torch.channels_last, False),
  "compile, channels_last": (torch.channels_last, True),
}


class PreActivationBlock(nn.Module):
  """See `saol_jax.backbones.wide_resnet.PreActivationBlock`."""

  def __init__(self, in_channels: int, channels: int, stride: int):
    super().__init__()
    self.norm1 = nn.BatchNorm2d(in_channels)
    self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
    self.norm2 = nn.BatchNorm2d(channels)
    self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    self.shortcut = None
    if stride != 1 or in_channels != channels:
      self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """(B, in_channels, H, W) -> (B, channels, H / stride, W / stride)."""
    activated = F.relu(self.norm1(x), inplace=True)
    shortcut = self.shortcut(activated) if self.shortcut else x
    y = F.relu(self.norm2(self.conv1(activated)), inplace=True)
    return shortcut + self.conv2(y)


class PreActivationResNet(nn.Module):
  """See `saol_jax.backbones.wide_resnet.PreActivationResNet`, with GAP-FC behind it."""

  def __init__(
    self,
    stem: int,
    widths: Sequence[int],
    strides: Sequence[int],
    num_classes: int,
    *,
    depth: int = 1,
    stem_stride: int = 1,
  ):
    super().__init__()
    layers: list[nn.Module] = [nn.Conv2d(3, stem, 3, stem_stride, padding=1, bias=False)]
    channels = stem
    for width, stride in zip(widths, strides, strict=True):
      for i in range(depth):
        layers.append(PreActivationBlock(channels, width, stride if i == 0 else 1))
        channels = width
    layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)]
    self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, num_classes))

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> (B, K) logits."""
    return self.layers(images)


def create(name: str, num_classes: int) -> nn.Module:
  """A network of ours, or timm's of that name."""
  if name == "resnet8":
    return PreActivationResNet(32, (32, 64, 64), (1, 2, 1), num_classes, stem_stride=2)
  if name.startswith("wrn_"):
    depth, widen = (int(part) for part in name.split("_")[1:])
    widths = (16 * widen, 32 * widen, 64 * widen)
    return PreActivationResNet(16, widths, (1, 2, 2), num_classes, depth=(depth - 4) // 6)
  import timm

  return timm.create_model(name, num_classes=num_classes)


class Trainer:
  """A network with its optimizer and one batch, that does steps."""

  def __init__(self, variant: str, options: argparse.Namespace):
    memory_format, compiled = VARIANTS[variant]
    self.device = torch.device(options.device)
    self.dtype = torch.bfloat16 if options.dtype == "bfloat16" else None
    torch.manual_seed(0)
    network = create(options.backbone, options.num_classes).to(self.device)
    self.network = network.to(memory_format=memory_format).train()
    self.parameters = sum(parameter.numel() for parameter in network.parameters())
    self.optimizer = torch.optim.SGD(
      network.parameters(),
      lr=options.learning_rate,
      momentum=0.9,
      nesterov=True,
      weight_decay=5e-4,
    )
    rng = np.random.default_rng(0)  # the images of benchmarks/step.py
    size = (options.batch_size, options.image_size, options.image_size, 3)
    images = torch.from_numpy(rng.integers(0, 256, size, np.uint8)).to(self.device)
    labels = rng.integers(0, options.num_classes, options.batch_size, np.int32)
    self.images = images.permute(0, 3, 1, 2).contiguous(memory_format=memory_format)
    self.labels = torch.from_numpy(labels).long().to(self.device)
    self.rng = np.random.default_rng(1)
    self.loss = self._loss
    if compiled:
      self.loss = torch.compile(self._loss)
    self.last = torch.zeros(())

  def step(self) -> None:
    """One step."""
    images = (self.images.float() / 255 - 0.5) / 0.29
    order = torch.randperm(len(images), device=self.device)
    y_min, x_min, y_max, x_max = self._box(*images.shape[2:])
    pasted = (y_max - y_min) * (x_max - x_min) / (images.shape[2] * images.shape[3])
    images[:, :, y_min:y_max, x_min:x_max] = images[order, :, y_min:y_max, x_min:x_max]
    # A tensor, since a number would be compiled in; filled on the device, with no wait for a copy.
    share = torch.full((), pasted, device=self.device)
    with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype is not None):
      loss = self.loss(images, self.labels, self.labels[order], share)
    self.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    self.optimizer.step()
    self.last = loss.detach()

  def _loss(self, images, labels, others, share) -> torch.Tensor:
    logits = self.network(images)
    own, pasted = F.cross_entropy(logits, labels), F.cross_entropy(logits, others)
    return (1 - share) * own + share * pasted

  def _box(self, height: int, width: int) -> tuple[int, int, int, int]:
    side = np.sqrt(1 - self.rng.beta(1.0, 1.0))
    y, x = self.rng.integers(height), self.rng.integers(width)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    return (
      max(y - half_height, 0),
      max(x - half_width, 0),
      min(y + half_height, height),
      min(x + half_width, width),
    )

  def turn(self, steps: int) -> None:
    """Some steps, and a wait for the device."""
    for _ in range(steps):
      self.step()
    self.synchronise()

  def synchronise(self) -> None:
    """Waits for the device."""
    if self.device.type == "cuda":
      torch.cuda.synchronize()

  def peak_bytes(self) -> int | None:
    """The most memory that a step alone needs, of all that is allocated; None on a CPU."""
    if self.device.type != "cuda":
      return None
    torch.cuda.reset_peak_memory_stats()
    self.turn(1)
    return torch.cuda.max_memory_allocated()


def serve(reply: Callable[[Any], None]) -> None:
  """Answers requests, one JSON object a line: make a trainer, take turns, tell about it."""
  trainers: dict[str, Trainer] = {}
  for line in sys.stdin:
    request = json.loads(line)
    variant = request["variant"]
    try:
      if "options" in request:
        begin = time.monotonic()
        trainer = trainers[variant] = Trainer(variant, argparse.Namespace(**request["options"]))
        trainer.turn(2)
        seconds = time.monotonic() - begin
        reply({"parameters": trainer.parameters, "first_seconds": seconds, **versions()})
      elif "steps" in request:
        begin = time.process_time()
        trainers[variant].turn(request["steps"])
        reply({"busy_seconds": time.process_time() - begin})
      else:
        trainer = trainers[variant]
        reply({"loss": float(trainer.last), "peak_bytes": trainer.peak_bytes()})
    except Exception as error:
      reply({"error": f"{type(error).__name__}: {error}"})


def versions() -> dict[str, Any]:
  """Of what computes here."""
  found = {"torch": torch.__version__, "threads": torch.get_num_threads()}
  if torch.cuda.is_available():
    found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
  return found


if __name__ == "__main__":
  # What libraries print must not come between the answers.
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)

  def answer(content: Any) -> None:
    """Writes one line."""
    answers.write(json.dumps(content) + "\n")
    answers.flush()

  torch.backends.cudnn.benchmark = True
  serve(answer)
