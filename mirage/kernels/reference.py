"""The specification: every operator in plain PyTorch. All backends are tested against it.

Channel counts that an operator takes as numbers are `int(...)`: a tracer would treat them as free sizes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-5
"""Epsilon of layer norm, added to a pixel's variance."""


def at_least_fp32(x: Tensor) -> Tensor:
    """Cast half precision to fp32; return fp32 and float64 unchanged."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def depthwise(x: Tensor, filters: Tensor) -> Tensor:
    """Convolve x (b, h, w, c) with filters (c, k, k)."""
    channels, size, _ = filters.shape
    y = F.conv2d(x.permute(0, 3, 1, 2), filters[:, None], padding=size // 2, groups=channels)
    return y.permute(0, 2, 3, 1)


def dynamic_depthwise(x: Tensor, filters: Tensor) -> Tensor:
    """Convolve x (b, h, w, c) with filters (b, c, k, k): the images become groups of one image."""
    batch, height, width, channels = x.shape
    folded = x.permute(1, 2, 0, 3).reshape(height, width, batch * channels)[None]
    y = depthwise(folded, filters.flatten(0, 1))
    return y.reshape(height, width, batch, channels).permute(2, 0, 1, 3)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image's mean and sum of squared deviations, (b, h, w, c) → (b, c) each, in fp32 or better."""
    x = at_least_fp32(x)
    mean = x.mean((1, 2))
    return mean, (x - mean[:, None, None]).square().sum((1, 2))


def gram(x: Tensor) -> Tensor:
    """Return inner products of channels over pixels, (b, n, c) → (b, c, c), in fp32 or better.

    Half precision would round sums over thousands of pixels, and the norms are read from this diagonal.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = at_least_fp32(x)
        return torch.bmm(x.transpose(1, 2), x)


def norm_linear(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> Tensor:
    """Apply layer norm over the channels of x (b, h, w, c), then weight (n, c) → (b, h, w, n)."""
    return F.linear(F.layer_norm(x, (int(x.shape[3]),), scale, shift, NORM_EPS), weight)


def gated_depthwise(hidden: Tensor, filters: Tensor) -> Tensor:
    """Apply GELU and filters (2n, 3, 3), then gate half of the channels by the other: (b, h, w, 2n) → (b, h, w, n)."""
    gate, values = depthwise(F.gelu(hidden), filters).chunk(2, dim=3)
    return F.gelu(gate) * values


def depthwise_gram(qkv: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Convolve qkv (b, h, w, 3a) with filters (3a, k, k) → v (b, h, w, a), Gram matrix of q and k (b, 2a, 2a)."""
    width = int(qkv.shape[3]) // 3
    qk, v = torch.split(depthwise(qkv, filters), [2 * width, width], dim=3)
    return v, gram(qk.flatten(1, 2))


def gated_values(hidden: Tensor, filters: Tensor) -> Tensor:
    """Gate values by the GELU of gates: hidden (b, h, w, 2n), filters (b, m, k, k) → (b, h, w, n).

    The first n channels are the gates. The last m are convolved first, with filters for each image.
    """
    half, convolved = int(hidden.shape[3]) // 2, int(filters.shape[1])
    gate, identity, rest = torch.split(hidden, [half, half - convolved, convolved], dim=3)
    return F.gelu(gate) * torch.cat((identity, dynamic_depthwise(rest, filters)), dim=3)


def feed_forward(
    x: Tensor, scale: Tensor, shift: Tensor, expand: Tensor, filters: Tensor, contract: Tensor
) -> Tensor:
    """Apply `norm_linear`, `gated_depthwise` and a linear layer: (b, h, w, c) → (b, h, w, c)."""
    return F.linear(gated_depthwise(norm_linear(x, scale, shift, expand), filters), contract)


def attention_input(x: Tensor, matrix: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Apply the linear layer `matrix` (3a, c) to x (b, h, w, c), then `depthwise_gram`."""
    return depthwise_gram(F.linear(x, matrix), filters)


def gated_unit(x: Tensor, weight: Tensor, bias: Tensor, filters: Tensor, contract: Tensor) -> Tensor:
    """Apply a linear layer (2n, c), `gated_values` and a linear layer (c, n): (b, h, w, c) → (b, h, w, c)."""
    return F.linear(gated_values(F.linear(x, weight, bias), filters), contract)


def channel_mlp(x: Tensor, expand: Tensor, contract: Tensor) -> Tensor:
    """Apply two linear layers with a GELU between them at each pixel: (b, h, w, c) → (b, h, w, c)."""
    return F.linear(F.gelu(F.linear(x, expand)), contract)


def fusion_linear(branches: list[Tensor], scales: Tensor, weight: Tensor) -> Tensor:
    """Add to each branch (b, h, w, c) the scaled sigmoid of the sum of the others, concatenate, and project."""
    gated = []
    for i, x in enumerate(branches):
        others = [y for j, y in enumerate(branches) if j != i]
        gated.append(x + scales[i] * torch.sigmoid(others[0] if len(others) == 1 else others[0] + others[1]))
    return F.linear(torch.cat(gated, dim=3), weight)
