"""Memory that a training step keeps for its backward pass, from the configuration: linear in pixels and images.

Needs no torch. The temporaries of the backward pass are not included: gradients of a few maps of one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mirage.config import KERNEL_SIZE, ActivationCheckpointing, ModelConfig, Stage
from mirage.cost import IMAGE_CHANNELS, hidden_width, is_checkpointed, parameters

Backend = Literal["cpu", "triton"]
"""Backend of the operators: on a CPU a fused operator keeps its inputs alone, on CUDA it keeps hidden maps as well."""

Precision = Literal["fp32", "bf16"]

_FP32 = 4


@dataclass(frozen=True, slots=True)
class StepMode:
    """The choices that decide how much memory a training step keeps."""

    precision: Precision = "fp32"
    activation_checkpointing: ActivationCheckpointing = "none"
    backend: Backend = "cpu"

    @property
    def size(self) -> int:
        """Bytes of a number in a block."""
        return 2 if self.precision == "bf16" else _FP32


def activation_bytes(config: ModelConfig, height: int, width: int, mode: StepMode = StepMode()) -> int:
    """Return the bytes per image kept until the backward pass, within a few percent of what autograd keeps."""
    pixels = height * width
    total = sum(
        mode.size * pixels // stride**2 * channels for stride, channels in _kept_between_stages(config)
    )
    total += _kept_by_heads(config, pixels, mode.precision)
    for stage in config.stages():
        stage_pixels = pixels // stage.stride**2
        if is_checkpointed(stage, mode.activation_checkpointing):
            total += stage.blocks * mode.size * stage.channels * stage_pixels
        else:
            total += stage.blocks * _kept_by_block(config, stage, stage_pixels, mode)
    return total


def recomputed_bytes(config: ModelConfig, height: int, width: int, mode: StepMode = StepMode()) -> int:
    """Return the bytes per image of the largest checkpointed block, which the backward pass computes again."""
    blocks = [
        _kept_by_block(config, stage, height * width // stage.stride**2, mode)
        for stage in config.stages()
        if stage.blocks and is_checkpointed(stage, mode.activation_checkpointing)
    ]
    return max(blocks, default=0)


def cast_bytes(config: ModelConfig, precision: Precision) -> int:
    """Return the bytes of the weights cast for autocast on a CPU, once per step for any number of images.

    On CUDA an operator casts its weights when it runs, and keeps none.
    """
    return 2 * parameters(config, spd_head=False) if precision == "bf16" else 0


def _kept_between_stages(config: ModelConfig) -> Iterator[tuple[int, int]]:
    """Yield (stride, channels) of the maps that convolutions and linear layers between the stages keep."""
    d = config.dim
    yield 1, IMAGE_CHANNELS + d + 2 * d
    yield 2, (2 + 4 + 2) * d
    yield 4, (4 + 6 + 4) * d
    yield 8, (8 + 4) * d


def _kept_by_heads(config: ModelConfig, pixels: int, precision: Precision) -> int:
    """Return the bytes of both heads' reduced maps in fp32, and under autocast of their inputs, cast to fp32."""
    if config.alignment == "none":
        return 0
    shallow, latent = config.head_channels()
    if precision == "bf16":
        shallow, latent = shallow + config.dim, latent + 4 * config.dim
    return _FP32 * (pixels * shallow + pixels // 64 * latent)


def _kept_by_block(config: ModelConfig, stage: Stage, pixels: int, mode: StepMode) -> int:
    """Return the bytes that one block keeps of one image with `pixels` pixels at this stage."""
    attention, convolution, _ = config.widths(stage.channels)
    # Gram and mixing matrices; generated filters
    if mode.backend == "triton":
        per_image = (_FP32 + mode.size) * attention**2 + mode.size * KERNEL_SIZE**2 * convolution
    else:
        per_image = _FP32 * (10 * attention**2 + 2 * KERNEL_SIZE**2 * convolution)
    per_pixel = mode.size * _kept_per_pixel(config, stage, mode.backend)
    if mode.backend == "cpu":
        per_pixel += _FP32 * 2  # mean and deviation of the first norm
    return pixels * per_pixel + per_image


def _kept_per_pixel(config: ModelConfig, stage: Stage, backend: Backend) -> int:
    """Return the numbers that one block keeps at each pixel."""
    channels = stage.channels
    attention, convolution, mlp = config.widths(channels)
    widths = [width for width in (attention, convolution, mlp) if width]
    kept = 3 * channels  # both norms' inputs, the first one's output
    kept += convolution  # input of its last layer
    kept += channels  # the branches: concatenated, or one by one in a fused operator
    gated = config.fusion == "gated" and len(widths) > 1
    projected = gated and len(set(widths)) > 1
    # v; with projections also the gates, and the branches by themselves
    kept += 2 * channels if projected else 0
    if backend == "cpu":
        return kept + attention
    kept += 3 * attention  # q, k and v after their convolutions
    return kept + 3 * hidden_width(convolution)  # gate and values; their product
