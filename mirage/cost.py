"""Parameters and multiply-adds of a network, computed from its configuration. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mirage.config import KERNEL_SIZE, ActivationCheckpointing, ModelConfig, Stage

IMAGE_CHANNELS = 3


def parameters(config: ModelConfig, spd_head: bool = True) -> int:
    """Return the number of parameters; the SPD heads exist in training only."""
    total = sum(weights for _, weights in _convolutions(config))
    for stage in config.stages():
        total += stage.blocks * _block_parameters(config, stage)
    return total + (_head_parameters(config) if spd_head else 0)


def macs(config: ModelConfig, height: int, width: int, spd_head: bool = True) -> int:
    """Return the multiply-adds of one image in the reference form, which the paper calls FLOPs.

    Counts convolutions and matrix products, not norms, GELU, softmax and pooling. `spd_head` counts the heads, which
    the release runs at inference too. `height` and `width` are multiples of 8.
    """
    pixels = height * width
    return _macs(config, pixels, _block_macs) + (_head_macs(config, pixels) if spd_head else 0)


def fast_macs(config: ModelConfig, height: int, width: int) -> int:
    """Return the multiply-adds of one image in this implementation at inference, without the heads."""
    return _macs(config, height * width, _fast_block_macs)


def recomputed_macs(
    config: ModelConfig, height: int, width: int, checkpointing: ActivationCheckpointing
) -> int:
    """Return the multiply-adds per image that activation checkpointing runs a second time."""
    stages = [stage for stage in config.stages() if is_checkpointed(stage, checkpointing)]
    return sum(s.blocks * _fast_block_macs(config, s, height * width // s.stride**2) for s in stages)


def is_checkpointed(stage: Stage, checkpointing: ActivationCheckpointing) -> bool:
    """Return whether the blocks of `stage` are checkpointed: computed again in the backward pass."""
    return checkpointing == "all" or (checkpointing == "full_resolution" and stage.stride == 1)


def _macs(config: ModelConfig, pixels: int, block_macs: Callable[[ModelConfig, Stage, int], int]) -> int:
    convolutions = sum(pixels // stride**2 * weights for stride, weights in _convolutions(config))
    blocks = (s.blocks * block_macs(config, s, pixels // s.stride**2) for s in config.stages())
    return convolutions + sum(blocks)


def _convolutions(config: ModelConfig) -> Iterator[tuple[int, int]]:
    """Yield (stride, weights) of every convolution outside the blocks."""
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


def hidden_width(channels: int) -> int:
    """Return the number of gates, and of values, in a convolution branch of `channels` channels."""
    return int(8 / 3 * channels)


def _fusion_weights(widths: tuple[int, ...]) -> int:
    return sum(a * b for i, a in enumerate(widths) for j, b in enumerate(widths) if i != j and a != b)


def _pixel_weights(config: ModelConfig, stage: Stage) -> int:
    """Return the number of a block's weights that are used once at every pixel."""
    channels = stage.channels
    attention, convolution, mlp = config.widths(channels)
    hidden, ffn = hidden_width(convolution), int(channels * config.ffn_expansion)
    return (
        3 * attention**2
        + 9 * 3 * attention
        + (2 + 1) * convolution * hidden
        + convolution**2
        + 4 * mlp**2
        + (_fusion_weights((attention, convolution, mlp)) if config.fusion == "gated" else 0)
        + channels**2
        + 3 * channels * ffn
        + 9 * 2 * ffn
    )


def _generator_weights(config: ModelConfig, convolution: int) -> int:
    """Return the number of weights of the filter generator, used once per image."""
    return convolution**2 * (1 + KERNEL_SIZE**2) if config.kernels == "dynamic" else 0


def _block_parameters(config: ModelConfig, stage: Stage) -> int:
    widths = config.widths(stage.channels)
    attention, convolution, _ = widths
    branches = sum(width > 0 for width in widths)
    layer_norms = 2 * 2 * stage.channels
    batch_norm_and_temperature = 2 * convolution + 1 if convolution else 0
    temperatures = stage.heads if attention else 0
    scales = branches if branches > 1 and config.fusion == "gated" else 0
    static = KERNEL_SIZE**2 * convolution if config.kernels == "static" else 0
    return (
        _pixel_weights(config, stage)
        + _generator_weights(config, convolution)
        + static
        + layer_norms
        + batch_norm_and_temperature
        + temperatures
        + scales
    )


def _block_macs(config: ModelConfig, stage: Stage, pixels: int) -> int:
    attention, convolution, _ = config.widths(stage.channels)
    products = 2 * attention * (attention // stage.heads)  # q k^T and its use on v, head by head
    depthwise = KERNEL_SIZE**2 * convolution
    per_image = _generator_weights(config, convolution)
    return pixels * (_pixel_weights(config, stage) + products + depthwise) + per_image


def _fast_block_macs(config: ModelConfig, stage: Stage, pixels: int) -> int:
    attention, convolution, _ = config.widths(stage.channels)
    # One Gram matrix of q and k for all heads, and one matrix that mixes v.
    products = (2 * attention) ** 2 + attention**2
    depthwise = KERNEL_SIZE**2 * convolution
    per_image = _generator_weights(config, convolution)
    if config.kernels == "dynamic":
        per_image += convolution**2  # the expansion of the average that the generator reads
    return pixels * (_pixel_weights(config, stage) + products + depthwise) + per_image


def _head_weights(config: ModelConfig) -> Iterator[tuple[int, int, int]]:
    """Yield (weights per pixel, size of the descriptor, weights that embed it) of the shallow and the latent head."""
    if config.alignment == "none":
        return
    for channels, reduced in zip((config.dim, 4 * config.dim), config.head_channels(), strict=True):
        numbers = reduced if config.alignment == "euclidean" else reduced**2
        yield channels * reduced, numbers, numbers * config.spd_embed_dim


def _head_parameters(config: ModelConfig) -> int:
    embedded = config.alignment != "geodesic"
    biases = sum(config.head_channels()) + 2 * config.spd_embed_dim * embedded
    weights = sum(reduce + embed * embedded for reduce, _, embed in _head_weights(config))
    return weights + (biases if config.alignment != "none" else 0)


def _head_macs(config: ModelConfig, pixels: int) -> int:
    """Count reduction, covariance, embedding and cosine, but no matrix decompositions."""
    total = 0
    for (reduce, numbers, embed), count in zip(_head_weights(config), (pixels, pixels // 64), strict=False):
        total += count * (reduce + (numbers if config.alignment != "euclidean" else 0))
        total += embed if config.alignment != "geodesic" else 0
    return total + (config.spd_embed_dim if config.alignment not in ("none", "geodesic") else 0)
