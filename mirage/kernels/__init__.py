"""Operators of the network: one specification and two backends.

    reference.py   every operator in plain PyTorch, on any device: the definition
    cpu/           oneDNN and C; `cpu/__init__.py` lists which module implements which operator
    triton/        Triton kernels for CUDA; `triton/__init__.py` lists them

`backend.py` chooses by device and dtype. The functions below call the chosen backend. Maps are channels last,
(b, h, w, c). Under autocast the operators work in its dtype, except norms and Gram matrices, which are fp32.
"""

from __future__ import annotations

from torch import Tensor

from mirage.kernels.backend import select
from mirage.kernels.reference import NORM_EPS

__all__ = [
    "NORM_EPS",
    "attention_input",
    "channel_mlp",
    "depthwise",
    "dynamic_depthwise",
    "feed_forward",
    "fusion_linear",
    "gated_unit",
    "gram",
    "moments",
]


def depthwise(x: Tensor, filters: Tensor) -> Tensor:
    """Convolve each channel of x (b, h, w, c) with its own filter (c, k, k), k odd, with zero padding."""
    out: Tensor = select(x).depthwise(x, filters.to(x.dtype))
    return out


def dynamic_depthwise(x: Tensor, filters: Tensor) -> Tensor:
    """Convolve each channel of each image of x (b, h, w, c) with its own filter (b, c, k, k)."""
    out: Tensor = select(x).dynamic_depthwise(x, filters.to(x.dtype))
    return out


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the sum of squared deviations over pixels: (b, h, w, c) → two of (b, c)."""
    mean, squared_deviations = select(x).moments(x)
    return mean, squared_deviations


def gram(x: Tensor) -> Tensor:
    """Return inner products of channels over pixels, (b, n, c) → (b, c, c), in fp32 or better."""
    out: Tensor = select(x).gram(x)
    return out


def feed_forward(
    x: Tensor, scale: Tensor, shift: Tensor, expand: Tensor, filters: Tensor, contract: Tensor
) -> Tensor:
    """Apply layer norm and the gated feed-forward network to x (b, h, w, c).

    scale, shift (c,) of the norm; expand (2n, c); GELU; 3x3 filters (2n, 3, 3); the first half of the channels gates
    the second; contract (c, n).
    """
    out: Tensor = select(x).feed_forward(x, scale, shift, expand, filters, contract)
    return out


def attention_input(x: Tensor, matrix: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inputs of channel attention: v (b, h, w, a), and the Gram matrix of q and k (b, 2a, 2a).

    x (b, h, w, c), matrix (3a, c) and filters (3a, 3, 3) give q, k and v. The Gram matrix is fp32 or better.
    """
    v, inner_products = select(x).attention_input(x, matrix, filters)
    return v, inner_products


def gated_unit(x: Tensor, weight: Tensor, bias: Tensor, filters: Tensor, contract: Tensor) -> Tensor:
    """Apply a gated 7x7 convolution to x (b, h, w, c), with filters (b, m, k, k) for each image.

    weight (2n, c) and bias (2n,) give n channels of gates and n of values, of which the last m are convolved; contract
    (c, n).
    """
    out: Tensor = select(x).gated_unit(x, weight, bias, filters, contract)
    return out


def channel_mlp(x: Tensor, expand: Tensor, contract: Tensor) -> Tensor:
    """Apply two linear layers with a GELU between them at each pixel of x (b, h, w, c)."""
    out: Tensor = select(x).channel_mlp(x, expand, contract)
    return out


def fusion_linear(branches: list[Tensor], scales: Tensor, weight: Tensor) -> Tensor:
    """Gate two or three equally wide branches (b, h, w, c) by each other, concatenate them and project.

    Branch i becomes `z_i + s_i sigmoid(sum of z_j, j != i)`; scales s (branches,); weight (o, branches * c).
    """
    out: Tensor = select(branches[0]).fusion_linear(branches, scales, weight)
    return out
