"""Fused operators made of Triton kernels and PyTorch's matrix products."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mirage.kernels import reference
from mirage.kernels.autocast import cast_for_autocast
from mirage.kernels.triton import operators


def feed_forward(
    x: Tensor, scale: Tensor, shift: Tensor, expand: Tensor, filters: Tensor, contract: Tensor
) -> Tensor:
    """Apply layer norm and the feed-forward network: (b, h, w, c) → (b, h, w, c).

    Kept for the gradient: x, two numbers per pixel, the hidden map before its GELU, and the gated map.
    """
    expand, filters, contract = cast_for_autocast(x, expand, filters, contract)
    hidden, _, _ = operators.norm_linear(x, scale, shift, expand, reference.NORM_EPS)
    return F.linear(operators.gated_depthwise(hidden, filters), contract)


def attention_input(x: Tensor, matrix: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return v (b, h, w, a) and the Gram matrix of q and k (b, 2a, 2a); x (b, h, w, c), matrix (3a, c)."""
    x, matrix, filters = cast_for_autocast(x, x, matrix, filters)
    qkv = operators.depthwise(F.linear(x, matrix), filters)
    width = matrix.shape[0] // 3
    return qkv[..., 2 * width :], operators.gram(qkv[..., : 2 * width].flatten(1, 2))


def gated_unit(x: Tensor, weight: Tensor, bias: Tensor, filters: Tensor, contract: Tensor) -> Tensor:
    """Apply the gated convolution: x (b, h, w, c), weight (2n, c), filters (b, m, k, k), contract (c, n)."""
    x, weight, bias, filters, contract = cast_for_autocast(x, x, weight, bias, filters, contract)
    return F.linear(operators.gated_values(F.linear(x, weight, bias), filters), contract)
