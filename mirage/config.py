"""The configuration of a MIRAGE network, shared by the model, its cost formulas and weights files."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

TOTAL_STRIDE = 8
"""Height and width of every input must be multiples of this: three halvings."""

KERNEL_SIZE = 7
"""Side of the filters that the dynamic convolution generates, in pixels."""

ActivationCheckpointing = Literal["none", "full_resolution", "all"]
"""The blocks that keep only their input and are computed again in the backward pass."""

ShallowTap = Literal["encoder1", "patch_embed"]
BatchNormKind = Literal["synced", "local"]
Kernels = Literal["dynamic", "static"]
FusionKind = Literal["gated", "concatenation"]
Alignment = Literal["spd", "euclidean", "log_euclidean", "geodesic", "none"]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The configuration of a MIRAGE network. The defaults are MIRAGE-T; `small()` is MIRAGE-S."""

    dim: int = 24
    """Channels at full resolution in the encoder; they double with each level."""
    blocks: tuple[int, int, int, int] = (3, 5, 5, 7)
    """Blocks of encoder 1, 2, 3 and of the latent; the decoders mirror the encoders."""
    refinement_blocks: int = 2
    """Blocks after decoder 1, at full resolution with 2 * dim channels."""
    heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    """Attention heads per level; decoder 1 and refinement use the first."""
    ffn_expansion: float = 2.0
    """Hidden width of the feed-forward network over its input width."""
    branch_ratios: tuple[int, int, int] = (1, 1, 1)
    """Relative widths of attention, dynamic convolution and channel MLP; a branch of width 0 does not exist."""
    drop_path: float = 0.1
    """Probability that a sample skips the gated convolution of a block in training."""
    spd_channels: tuple[int, int] = (12, 24)
    """Channels of the shallow and the latent covariance."""
    spd_embed_dim: int = 64
    """Length of the two embeddings that InfoNCE compares."""
    shallow_tap: ShallowTap = "encoder1"
    """Source of the shallow features: the release's (`encoder1`) or that of the paper's App. C.3 (`patch_embed`)."""
    batch_norm: BatchNormKind = "synced"
    """Batch statistics of the global micro-batch, or (`local`, as in the release) of each process alone."""
    kernels: Kernels = "dynamic"
    """7x7 filters generated from the image, or (`static`) learned ones, the same for every image."""
    fusion: FusionKind = "gated"
    """Branches gate each other, or (`concatenation`) are only concatenated."""
    alignment: Alignment = "spd"
    """Descriptors that contrastive learning compares: covariances as vectors (`spd`, the paper), pooled features
    (`euclidean`), logarithms of covariances, covariances by their geodesic distance; `none` has no heads."""

    def __post_init__(self) -> None:
        for name in ("blocks", "heads", "branch_ratios", "spd_channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_counts(self)
        _check_widths(self)
        _check_heads(self)
        _check_choices(self)

    @classmethod
    def tiny(cls) -> ModelConfig:
        """Return MIRAGE-T: 6,207,412 parameters."""
        return cls()

    @classmethod
    def base(cls) -> ModelConfig:
        """Return a network of the size of PromptIR and MoCE-IR, not from the paper: 28,305,304 parameters."""
        return cls(dim=48, blocks=(4, 6, 6, 8), refinement_blocks=4)

    @classmethod
    def small(cls) -> ModelConfig:
        """Return MIRAGE-S: 9,678,983 parameters."""
        return cls(dim=30, refinement_blocks=3)

    def widths(self, channels: int) -> tuple[int, int, int]:
        """Return the channels of the attention, convolution and MLP branches in a block of `channels` channels."""
        unit = channels // sum(self.branch_ratios)
        attention, convolution, mlp = self.branch_ratios
        return attention * unit, convolution * unit, mlp * unit

    def head_channels(self) -> tuple[int, int]:
        """Return the channels of the shallow and the latent descriptor; geodesics need matrices of one size."""
        return (min(self.spd_channels),) * 2 if self.alignment == "geodesic" else self.spd_channels

    def stages(self) -> tuple[Stage, ...]:
        """Return the eight stages, in the order in which an image passes them."""
        d, (b1, b2, b3, b4), (h1, h2, h3, h4) = self.dim, self.blocks, self.heads
        return (
            Stage("encoder1", d, b1, h1, 1),
            Stage("encoder2", 2 * d, b2, h2, 2),
            Stage("encoder3", 4 * d, b3, h3, 4),
            Stage("latent", 8 * d, b4, h4, 8),
            Stage("decoder3", 4 * d, b3, h3, 4),
            Stage("decoder2", 2 * d, b2, h2, 2),
            Stage("decoder1", 2 * d, b1, h1, 1),
            Stage("refinement", 2 * d, self.refinement_blocks, h1, 1),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` is the inverse."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Build from the result of `to_dict`. Missing keys keep their default; unknown keys raise ValueError."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f'did you mean "{close[0]}"?' if close else f"known keys: {', '.join(known)}"
                raise ValueError(f"model.{name}: unknown key; {hint}")
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Stage:
    """A stack of equal blocks at one resolution."""

    name: str
    channels: int
    blocks: int
    heads: int
    stride: int
    """Input pixels per pixel of this stage, along each axis."""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_whole_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_MOST = 1 << 20
"""Maximum of any count: a file of a stranger may claim more, and the checks below take time with it."""


def _check_counts(config: ModelConfig) -> None:
    for name, length, least in (
        ("blocks", 4, 1),
        ("heads", 4, 1),
        ("branch_ratios", 3, 0),
        ("spd_channels", 2, 1),
    ):
        value = getattr(config, name)
        if len(value) != length or not all(_is_whole_number(v) and least <= v <= _MOST for v in value):
            raise ValueError(
                f"{name}={_shown(value)}: must be {length} whole numbers, each at least {least} and at most {_MOST:,}."
            )
    for name, least in (("dim", 2), ("refinement_blocks", 0), ("spd_embed_dim", 1)):
        value = getattr(config, name)
        if not _is_whole_number(value) or not least <= value <= _MOST:
            raise ValueError(
                f"{name}={_shown(value)}: must be a whole number of at least {least} and at most {_MOST:,}."
            )
    if sum(config.branch_ratios) == 0:
        raise ValueError(
            "branch_ratios=(0, 0, 0): at least one branch must have a width. The paper's ratios are (1, 1, 1)."
        )


def _check_widths(config: ModelConfig) -> None:
    total = sum(config.branch_ratios)
    unit = math.lcm(2, total)
    if config.dim % unit:
        low = config.dim // unit * unit
        nearest = f"{low} or {low + unit}" if low else f"{unit}"
        raise ValueError(
            f"dim={config.dim}: must be even (halving a level halves the channels first) and a multiple of "
            f"{total}, the sum of branch_ratios {config.branch_ratios}. Nearest: {nearest}."
        )
    if not 0 < config.ffn_expansion <= _MOST or int(config.dim * config.ffn_expansion) < 1:
        raise ValueError(
            f"ffn_expansion={_shown(config.ffn_expansion)}: leaves no hidden channel, or too many. The paper uses 2."
        )


def _check_heads(config: ModelConfig) -> None:
    for stage in config.stages():
        width = config.widths(stage.channels)[0]
        if width % stage.heads:
            divisors = [h for h in range(1, width + 1) if width % h == 0]
            nearest = min(divisors, key=lambda h: abs(h - stage.heads))
            raise ValueError(
                f"heads={config.heads}: {stage.heads} heads do not divide the {width} attention channels of "
                f"{stage.name}. Nearest: {nearest}."
            )


def _check_choices(config: ModelConfig) -> None:
    if not 0 <= config.drop_path < 1:
        raise ValueError(f"drop_path={config.drop_path}: must be a probability of at least 0 and below 1.")
    for name, choices in (
        ("shallow_tap", get_args(ShallowTap)),
        ("batch_norm", get_args(BatchNormKind)),
        ("kernels", get_args(Kernels)),
        ("fusion", get_args(FusionKind)),
        ("alignment", get_args(Alignment)),
    ):
        value = getattr(config, name)
        if value not in choices:
            raise ValueError(f"{name}={value!r}: must be one of {', '.join(choices)}.")
