"""What each kernel computes, in plain PyTorch: the definition that every other form is tested against.

Channels that an operator takes as a number are `int(...)`: a tracer would take them for sizes that may vary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-5
"""What layer norm adds to a pixel's variance."""


def at_least_fp32(x: Tensor) -> Tensor:
    """Half precisions become fp32; fp32 and float64 stay as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """x (b, h, w, c), weight (c, k, k) → (b, h, w, c)."""
    channels, size, _ = weight.shape
    y = F.conv2d(x.permute(0, 3, 1, 2), weight[:, None], padding=size // 2, groups=channels)
    return y.permute(0, 2, 3, 1)


def dynamic_depthwise(x: Tensor, kernels: Tensor) -> Tensor:
    """x (b, h, w, c), kernels (b, c, k, k) → (b, h, w, c): images become groups of one wide image."""
    batch, height, width, channels = x.shape
    wide = x.permute(1, 2, 0, 3).reshape(height, width, batch * channels)[None]
    y = depthwise(wide, kernels.flatten(0, 1))
    return y.reshape(height, width, batch, channels).permute(2, 0, 1, 3)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Per-image mean and sum of squared deviations, (b, h, w, c) → (b, c) each, in fp32 or better."""
    x = at_least_fp32(x)
    mean = x.mean((1, 2))
    return mean, (x - mean[:, None, None]).square().sum((1, 2))


def gram(x: Tensor) -> Tensor:
    """Inner products of channels over pixels, (b, n, c) → (b, c, c), in fp32 or better.

    Half precision would round sums over thousands of pixels, and the norms are read off this diagonal.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = at_least_fp32(x)
        return torch.bmm(x.transpose(1, 2), x)


def norm_linear(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> Tensor:
    """Layer norm over the channels of x (b, h, w, c), then a product with weight (n, c) → (b, h, w, n)."""
    return F.linear(F.layer_norm(x, (int(x.shape[3]),), scale, shift, NORM_EPS), weight)


def gated_depthwise(hidden: Tensor, taps: Tensor) -> Tensor:
    """GELU, 3x3 convolution, and half of the channels gated by the other: (b, h, w, 2n) → (b, h, w, n)."""
    gate, values = depthwise(F.gelu(hidden), taps).chunk(2, dim=3)
    return F.gelu(gate) * values


def depthwise_gram(qkv: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """Convolve qkv (b, h, w, 3a) with taps (3a, k, k) → v (b, h, w, a), Gram matrix of q and k (b, 2a, 2a)."""
    width = int(qkv.shape[3]) // 3
    qk, v = torch.split(depthwise(qkv, taps), [2 * width, width], dim=3)
    return v, gram(qk.flatten(1, 2))


def gated_values(hidden: Tensor, kernels: Tensor) -> Tensor:
    """hidden (b, h, w, 2n), kernels (b, m, k, k) → (b, h, w, n).

    The first n channels are the gate, the last m are convolved first, each image by its own kernels.
    """
    half, convolved = int(hidden.shape[3]) // 2, int(kernels.shape[1])
    gate, identity, rest = torch.split(hidden, [half, half - convolved, convolved], dim=3)
    return F.gelu(gate) * torch.cat((identity, dynamic_depthwise(rest, kernels)), dim=3)


def feed_forward(
    x: Tensor, scale: Tensor, shift: Tensor, expand: Tensor, taps: Tensor, contract: Tensor
) -> Tensor:
    """Layer norm, product, `gated_depthwise`, product: (b, h, w, c) → (b, h, w, c)."""
    return F.linear(gated_depthwise(norm_linear(x, scale, shift, expand), taps), contract)


def attention_input(x: Tensor, matrix: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """`depthwise_gram` of the product of x (b, h, w, c) with matrix (3a, c)."""
    return depthwise_gram(F.linear(x, matrix), taps)


def gated_unit(x: Tensor, weight: Tensor, bias: Tensor, kernels: Tensor, contract: Tensor) -> Tensor:
    """Product with weight (2n, c), `gated_values`, product with contract (c, n): (b, h, w, c) → (b, h, w, c)."""
    return F.linear(gated_values(F.linear(x, weight, bias), kernels), contract)


def channel_mlp(x: Tensor, expand: Tensor, contract: Tensor) -> Tensor:
    """Two layers at each pixel: (b, h, w, c) → (b, h, w, c)."""
    return F.linear(F.gelu(F.linear(x, expand)), contract)


def fused_product(branches: list[Tensor], scales: Tensor, weight: Tensor) -> Tensor:
    """Each of the branches (b, h, w, c) lifted by a gate that the others open; the product of all with weight."""
    lifted = []
    for i, x in enumerate(branches):
        others = [y for j, y in enumerate(branches) if j != i]
        lifted.append(x + scales[i] * torch.sigmoid(others[0] if len(others) == 1 else others[0] + others[1]))
    return F.linear(torch.cat(lifted, dim=3), weight)
