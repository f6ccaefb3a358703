"""Predict the time of a training step on a GPU that no run has measured: traffic, arithmetic, launches, loading.

What a step moves and launches was counted without a GPU (`mirage bench traffic`) and stands in `traffic.json`, which
`scripts/count-traffic` renews. What a GPU can do is its datasheet's. The longest of the four times is the step's.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirage.config import ModelConfig
from mirage.cost import parameters

RECORD = Path(__file__).with_name("traffic.json")

LAUNCH_SECONDS = 6e-6
"""Assumed time of the host for a kernel: Python, autograd and driver."""
READER_IMAGES_PER_SECOND = 340.0
"""Crops of 128² that one reader prepares: the 3-degradation mixture in docs/benchmarks.md."""


@dataclass(frozen=True)
class Gpu:
    """Datasheet values of a GPU: memory bandwidth in bytes/s, dense arithmetic in FLOP/s."""

    bandwidth: float
    fp32: float
    tf32: float
    half: float


GPUS = {
    "H200": Gpu(4.8e12, 67e12, 494e12, 989e12),
    "H100": Gpu(3.35e12, 67e12, 494e12, 989e12),
    "A100": Gpu(2.04e12, 19.5e12, 156e12, 312e12),
    "L40S": Gpu(0.864e12, 91.6e12, 183e12, 362e12),
    "L4": Gpu(0.3e12, 30.3e12, 60e12, 121e12),
    "RTX 4090": Gpu(1.008e12, 82.6e12, 82.6e12, 165e12),
}
ASSUMED_GPU = "H100"


@dataclass(frozen=True)
class StepCounts:
    """What a step of a network asks of the device, by a formula fitted to counts."""

    bytes_per_value: float
    """Traffic of the blocks for each pixel and channel of a block's map."""
    bytes_per_pixel: float
    """Traffic outside the blocks for each pixel of the image."""
    bytes_per_parameter: float
    """Traffic of a step that no image causes: casts, clipping, optimiser, EMA."""
    launches_per_block: float
    launches_outside: float

    def traffic(self, config: ModelConfig, images: int, side: int) -> float:
        """Return the bytes of a step."""
        pixels = images * side**2
        values = sum(s.blocks * s.channels / s.stride**2 for s in config.stages())
        return pixels * (
            self.bytes_per_value * values + self.bytes_per_pixel
        ) + self.bytes_per_parameter * parameters(config)

    def launches(self, config: ModelConfig) -> float:
        """Return the kernels of a step."""
        return self.launches_per_block * sum(s.blocks for s in config.stages()) + self.launches_outside


@functools.cache
def counts(half: bool) -> StepCounts:
    """Return the formula for 16-bit or for fp32 training."""
    record: dict[str, Any] = json.loads(RECORD.read_text())
    return StepCounts(**record["formula"]["bf16" if half else "fp32"])


def bounds(
    gpu: Gpu, config: ModelConfig, precision: str, images: int, side: int, multiply_adds: float, readers: int
) -> dict[str, float]:
    """Return the seconds of a step that each resource needs, by its name."""
    half = precision in ("bf16", "fp16")
    counted = counts(half)
    rate = gpu.half if half else gpu.tf32 if precision == "tf32" else gpu.fp32
    reading = images * (side / 128) ** 2 / (READER_IMAGES_PER_SECOND * max(readers, 1))
    return {
        "memory traffic": counted.traffic(config, images, side) / gpu.bandwidth,
        "arithmetic": 2 * multiply_adds * images / rate,
        "kernel launches": counted.launches(config) * LAUNCH_SECONDS,
        "data loading": reading,
    }
