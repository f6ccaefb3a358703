"""Operators of the network: one specification and two backends.

    reference.py   every operator in plain PyTorch, on any device: the definition
    cpu/           oneDNN and C; `cpu/__init__.py` lists which module implements which operator
    triton/        Triton kernels for CUDA; `triton/__init__.py` lists them

`backend.py` chooses by device and dtype. The functions below call the chosen backend. Maps are channels last,
(b, h, w, c). Under autocast the operators work in its dtype, except norms and Gram matrices, which are fp32.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mirage.kernels.backend import select
from mirage.kernels.reference import NORM_EPS, NormStatistics

__all__ = [
    "NORM_EPS",
    "NormStatistics",
    "attention",
    "batch_sums",
    "channel_mlp",
    "depthwise",
    "dynamic_depthwise",
    "feed_forward",
    "fusion_linear",
    "gated_convolution",
    "gram",
    "layer_norm",
    "update_running",
]


def depthwise(x: Tensor, filters: Tensor) -> Tensor:
    """Convolve each channel of x (b, h, w, c) with its own filter (c, k, k), k odd, with zero padding."""
    out: Tensor = select(x).depthwise(x, filters.to(x.dtype))
    return out


def dynamic_depthwise(x: Tensor, filters: Tensor) -> Tensor:
    """Convolve each channel of each image of x (b, h, w, c) with its own filter (b, c, k, k)."""
    out: Tensor = select(x).dynamic_depthwise(x, filters.to(x.dtype))
    return out


def batch_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image's mean (b, c), and of the batch (1 + 2c,) the pixels, sums and sums of squares; x (b, h, w, c).

    The first in fp32 or better, the second in float64. Sums over processes are those of the global micro-batch.
    """
    image_mean, sums = select(x).batch_sums(x)
    return image_mean, sums


def update_running(sums: Tensor, running_mean: Tensor, running_var: Tensor, tracked: Tensor) -> None:
    """Move batch norm's running statistics (c,) towards those of `batch_sums`, and count the batch in `tracked`."""
    select(running_mean).update_running(sums, running_mean, running_var, tracked)


def gram(x: Tensor) -> Tensor:
    """Return inner products of channels over pixels, (b, n, c) → (b, c, c), in fp32 or better."""
    out: Tensor = select(x).gram(x)
    return out


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalise the channels of x (b, h, w, c), then multiply by scale (c,) and add shift (c,)."""
    out: Tensor = select(x).layer_norm(x, scale, shift)
    return out


def feed_forward(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    expand: Tensor,
    filters: Tensor,
    contract: Tensor,
    shortcut: bool = False,
) -> Tensor:
    """Apply layer norm and the gated feed-forward network to x (b, h, w, c), and add x if `shortcut`.

    scale, shift (c,) of the norm; expand (2n, c); GELU; 3x3 filters (2n, 3, 3); the first half of the channels gates
    the second; contract (c, n).
    """
    out: Tensor = select(x).feed_forward(x, scale, shift, expand, filters, contract, shortcut)
    return out


def attention(x: Tensor, matrix: Tensor, filters: Tensor, temperature: Tensor) -> Tensor:
    """Apply channel attention to x (b, h, w, c) → (b, h, w, a).

    matrix (3a, c) and filters (3a, 3, 3) give q, k and v; temperature (heads,) multiplies the cosines of each head.
    """
    out: Tensor = select(x).attention(x, matrix, filters, temperature)
    return out


def gated_convolution(
    x: Tensor,
    statistics: NormStatistics,
    gain: Tensor,
    offset: Tensor,
    temperature: Tensor,
    expand: Tensor,
    generator: Tensor | None,
    filters: Tensor,
    contract: Tensor,
    project: Tensor,
    path_scale: Tensor | None,
) -> Tensor:
    """Apply batch norm and the gated convolution to x (b, h, w, c), add x, and apply a last linear layer (o, c).

    gain, offset (c,) of the norm; temperature (1,) divides the gates; expand (2n, c); contract (c, n); path_scale (b,):
    DropPath's factor of each image, None for 1. generator (c, c) and filters (c * k * k, c) are two linear layers that
    make the filters of an image from its mean; without a generator the filters are (c, k, k), for all images.
    """
    weights = gain, offset, temperature, expand, generator, filters, contract, project
    out: Tensor = select(x).gated_convolution(x, statistics, *weights, path_scale)
    return out


def channel_mlp(x: Tensor, expand: Tensor, contract: Tensor) -> Tensor:
    """Apply two linear layers with a GELU between them at each pixel of x (b, h, w, c)."""
    out: Tensor = select(x).channel_mlp(x, expand, contract)
    return out


def fusion_linear(
    branches: list[Tensor],
    scales: list[Tensor],
    weight: Tensor,
    shortcut: Tensor | None = None,
    mlp: Sequence[Tensor] | None = None,
) -> Tensor:
    """Gate two or three equally wide branches (b, h, w, c) by each other, concatenate, project and add the shortcut.

    Branch i becomes `z_i + s_i sigmoid(sum of z_j, j != i)`; scales s (1,); weight (o, branches * c). mlp: both
    matrices of a `channel_mlp`, which is first applied to the last branch.
    """
    out: Tensor = select(branches[0]).fusion_linear(branches, scales, weight, shortcut, mlp)
    return out
