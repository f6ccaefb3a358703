"""What a network costs, from its configuration alone: parameters and multiply-adds. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator

from mirage.config import KERNEL_SIZE, ModelConfig, Stage

IMAGE_CHANNELS = 3


def parameters(config: ModelConfig, spd_head: bool = True) -> int:
    """Learned numbers; the SPD heads exist in training only."""
    total = sum(weights for _, weights in _convolutions(config))
    for stage in config.stages():
        total += stage.blocks * _block_parameters(config, stage)
    return total + (_head_parameters(config) if spd_head else 0)


def macs(config: ModelConfig, height: int, width: int, spd_head: bool = True) -> int:
    """Multiply-adds of one image in the plain reference form, as the paper counts "FLOPs".

    Convolutions and matrix products; norms, GELU, softmax and pooling are not counted. With `spd_head`,
    because the release runs it at inference too. `height` and `width` are multiples of 8.
    """
    pixels = height * width
    total = sum(pixels // stride**2 * weights for stride, weights in _convolutions(config))
    for stage in config.stages():
        total += stage.blocks * _block_macs(config, stage, pixels // stage.stride**2)
    return total + (_head_macs(config, pixels) if spd_head else 0)


def _convolutions(config: ModelConfig) -> Iterator[tuple[int, int]]:
    """(stride, weights) of every convolution outside the blocks."""
    d = config.dim
    yield 1, 9 * IMAGE_CHANNELS * d
    yield 1, 9 * d * (d // 2)
    yield 2, 9 * 2 * d * d
    yield 4, 9 * 4 * d * 2 * d
    yield 8, 8 * d * 4 * d
    yield 8, 9 * 4 * d * 8 * d
    yield 4, 6 * d * 4 * d
    yield 4, 9 * 4 * d * 8 * d
    yield 2, 4 * d * 2 * d
    yield 2, 9 * 2 * d * 4 * d
    yield 1, 9 * 2 * d * IMAGE_CHANNELS


def _hidden(channels: int) -> int:
    return int(8 / 3 * channels)


def _fusion_weights(widths: tuple[int, ...]) -> int:
    return sum(a * b for i, a in enumerate(widths) for j, b in enumerate(widths) if i != j and a != b)


def _pixel_weights(config: ModelConfig, stage: Stage) -> int:
    """Weights of a block that are used once at every pixel."""
    channels = stage.channels
    attention, convolution, mlp = config.widths(channels)
    hidden, ffn = _hidden(convolution), int(channels * config.ffn_expansion)
    return (
        3 * attention**2
        + 9 * 3 * attention
        + (2 + 1) * convolution * hidden
        + convolution**2
        + 4 * mlp**2
        + _fusion_weights((attention, convolution, mlp))
        + channels**2
        + 3 * channels * ffn
        + 9 * 2 * ffn
    )


def _generator_weights(convolution: int) -> int:
    """Weights that turn an image's average into its kernels, used once per image."""
    return convolution**2 * (1 + KERNEL_SIZE**2)


def _block_parameters(config: ModelConfig, stage: Stage) -> int:
    widths = config.widths(stage.channels)
    attention, convolution, _ = widths
    branches = sum(width > 0 for width in widths)
    layer_norms = 2 * 2 * stage.channels
    batch_norm_and_temperature = 2 * convolution + 1 if convolution else 0
    temperatures = stage.heads if attention else 0
    scales = branches if branches > 1 else 0
    return (
        _pixel_weights(config, stage)
        + _generator_weights(convolution)
        + layer_norms
        + batch_norm_and_temperature
        + temperatures
        + scales
    )


def _block_macs(config: ModelConfig, stage: Stage, pixels: int) -> int:
    attention, convolution, _ = config.widths(stage.channels)
    products = 2 * attention * (attention // stage.heads)  # q k^T and its use on v, head by head
    dynamic = KERNEL_SIZE**2 * convolution
    return pixels * (_pixel_weights(config, stage) + products + dynamic) + _generator_weights(convolution)


def _head_parameters(config: ModelConfig) -> int:
    return sum(
        channels * reduced + reduced + reduced**2 * config.spd_embed_dim + config.spd_embed_dim
        for channels, reduced in zip((config.dim, 4 * config.dim), config.spd_channels, strict=True)
    )


def _head_macs(config: ModelConfig, pixels: int) -> int:
    taps = ((config.dim, pixels), (4 * config.dim, pixels // 64))
    total = config.spd_embed_dim  # the cosine of the two embeddings
    for (channels, count), reduced in zip(taps, config.spd_channels, strict=True):
        total += count * (channels * reduced + reduced**2) + reduced**2 * config.spd_embed_dim
    return total


def activation_bytes(config: ModelConfig, height: int, width: int) -> int:
    """Bytes per image that a training step in fp32 keeps for its backward pass, without recomputation.

    What this implementation keeps inside its blocks, measured to within a few percent; weights, gradients, the
    optimiser and temporaries come on top.
    """
    numbers = 0
    for stage in config.stages():
        numbers += stage.blocks * _kept_per_pixel(config, stage) * (height * width // stage.stride**2)
    return 4 * numbers


def _kept_per_pixel(config: ModelConfig, stage: Stage) -> int:
    """Numbers that one block keeps at each pixel."""
    channels = stage.channels
    attention, convolution, mlp = config.widths(channels)
    around = 6 * channels  # both norms' inputs and outputs, the gates, the fused branches
    mixer = 6 * attention + 5 * _hidden(convolution) + convolution + 4 * mlp
    return around + mixer + 8 * int(channels * config.ffn_expansion)
