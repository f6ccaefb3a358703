"""What each kernel computes, in plain PyTorch: the definition that every other form is tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
        return torch.bmm(x.mT, x)
