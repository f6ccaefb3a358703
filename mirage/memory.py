"""What a training step keeps for its backward pass, from the configuration alone: linear in pixels and in images.

Needs no torch. Temporaries of the backward pass come on top: the gradients of a few maps of one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mirage.config import KERNEL_SIZE, ModelConfig, Recompute, Stage
from mirage.cost import IMAGE_CHANNELS, hidden_width, parameters, recomputes

Form = Literal["regions", "composed"]
"""How a block is computed: on a CPU as regions that keep their inputs alone, on CUDA of parts that keep more."""

Precision = Literal["fp32", "bf16"]

_FP32 = 4


@dataclass(frozen=True, slots=True)
class Kept:
    """How a step is taken, as far as it decides what is kept."""

    precision: Precision = "fp32"
    recompute: Recompute = "none"
    form: Form = "regions"

    @property
    def size(self) -> int:
        """Bytes of a number in a block."""
        return 2 if self.precision == "bf16" else _FP32


def activation_bytes(config: ModelConfig, height: int, width: int, how: Kept = Kept()) -> int:  # frozen
    """Bytes per image that stay until the backward pass; within a few percent of what autograd keeps."""
    pixels = height * width
    total = sum(how.size * pixels // stride**2 * channels for stride, channels in _kept_between(config))
    total += _kept_by_heads(config, pixels, how.precision)
    for stage in config.stages():
        here = pixels // stage.stride**2
        if recomputes(stage, how.recompute):
            total += stage.blocks * how.size * stage.channels * here
        else:
            total += stage.blocks * _kept_by_block(config, stage, here, how)
    return total


def recomputed_bytes(config: ModelConfig, height: int, width: int, how: Kept = Kept()) -> int:  # frozen
    """Bytes per image that come back for a while in the backward pass: those of the largest block that runs again."""
    blocks = [
        _kept_by_block(config, stage, height * width // stage.stride**2, how)
        for stage in config.stages()
        if stage.blocks and recomputes(stage, how.recompute)
    ]
    return max(blocks, default=0)


def cast_bytes(config: ModelConfig, precision: Precision) -> int:
    """Bytes of the weights in autocast's type, which a step makes once, whatever the images."""
    return 2 * parameters(config, spd_head=False) if precision == "bf16" else 0


def _kept_between(config: ModelConfig) -> Iterator[tuple[int, int]]:
    """(stride, channels) of what the convolutions and products between the stages keep."""
    d = config.dim
    yield 1, IMAGE_CHANNELS + d + 2 * d
    yield 2, (2 + 4 + 2) * d
    yield 4, (4 + 6 + 4) * d
    yield 8, (8 + 4) * d


def _kept_by_heads(config: ModelConfig, pixels: int, precision: Precision) -> int:
    """The reduced maps of both depths, in fp32, and under autocast what they are reduced from, in fp32 too."""
    if config.alignment == "none":
        return 0
    shallow, latent = config.head_channels()
    if precision == "bf16":
        shallow, latent = shallow + config.dim, latent + 4 * config.dim
    return _FP32 * (pixels * shallow + pixels // 64 * latent)


def _kept_by_block(config: ModelConfig, stage: Stage, pixels: int, how: Kept) -> int:
    """Bytes that one block keeps of one image, of `pixels` here."""
    attention, convolution, _ = config.widths(stage.channels)
    # Mean and deviation of a norm; a region computes those of the second one again.
    norms = 2 if how.form == "composed" else 1
    of_the_image = 10 * attention**2 + 2 * KERNEL_SIZE**2 * convolution  # Gram and mixing matrices; kernels
    return (
        pixels * (how.size * _kept_per_pixel(config, stage, how.form) + _FP32 * 2 * norms)
        + _FP32 * of_the_image
    )


def _kept_per_pixel(config: ModelConfig, stage: Stage, form: Form) -> int:
    """Numbers that one block keeps at each pixel."""
    channels = stage.channels
    attention, convolution, mlp = config.widths(channels)
    widths = [width for width in (attention, convolution, mlp) if width]
    kept = 3 * channels  # both norms' inputs, the first one's output
    kept += convolution  # what its last layer projects
    kept += channels  # the branches side by side; a region keeps them one by one
    gated = config.fusion == "gated" and len(widths) > 1
    projected = gated and len(set(widths)) > 1
    if form == "regions":
        return (
            kept + attention + (2 * channels if projected else 0)
        )  # v; the gates, and the branches by themselves
    kept += 6 * attention  # q, k and v before and after their windows
    kept += 3 * hidden_width(convolution)  # gate and values; their product
    kept += 4 * mlp  # the hidden map before and after its GELU
    kept += 3 * int(channels * config.ffn_expansion)  # the hidden map; the gated one
    return kept + (channels if gated else 0) + (channels if projected else 0)
