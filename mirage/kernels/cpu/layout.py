"""How the C of `c/` wants maps and weights: channels in planes of `lanes()`, the last one filled up with zeros.

Zeros change nothing: `GELU(0) * 0` is 0, and so is a product with them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mirage.kernels.cpu.library import lanes


def up(channels: int) -> int:
    """Channels with those that fill the last plane up."""
    return -(-channels // lanes()) * lanes()


def planes(matrix: Tensor) -> Tensor:
    """(k, n) → (planes, k, lanes), the last plane filled up with zeros."""
    rows, columns = matrix.shape
    wide = F.pad(matrix, (0, up(columns) - columns))
    return wide.view(rows, -1, lanes()).permute(1, 0, 2).contiguous()


def from_planes(x: Tensor) -> Tensor:
    """(planes, k, lanes) → (k, channels), with those that fill the last plane up."""
    return x.permute(1, 0, 2).flatten(1)


def filled(weight: Tensor, parts: int = 1) -> Tensor:
    """(parts * n, ...) → the same with zeros that fill the planes of each part up."""
    split = weight.view(parts, -1, *weight.shape[1:])
    more = up(split.shape[1]) - split.shape[1]
    if not more:
        return weight
    return torch.cat((split, split.new_zeros(parts, more, *split.shape[2:])), 1).flatten(0, 1)


def unfilled(weight: Tensor, n: int, parts: int = 1) -> Tensor:
    """Inverse of `filled`, for parts of n channels."""
    return weight.view(parts, -1, *weight.shape[1:])[:, :n].flatten(0, 1)


def by_pixel(x: Tensor) -> tuple[Tensor, int]:
    """x (b, h, w, c), copied if need be, so that its pixels are evenly far apart, and how far."""
    step = x.stride(2)
    even = x.stride(3) == 1 and x.stride(1) == x.shape[2] * step and x.stride(0) == x.shape[1] * x.stride(1)
    return (x, step) if even else (x.contiguous(), x.shape[3])


class Halves:
    """How the channels of gate and values lie: what is not convolved and what is, each in planes of its own."""

    def __init__(self, hidden: int, convolved: int) -> None:
        self.plain, self.convolved = hidden - convolved, convolved
        self.planes = up(self.plain) // lanes(), up(convolved) // lanes()

    def filled(self, weight: Tensor, parts: int) -> Tensor:
        """(parts * n, ...) → (parts * channels of the planes, ...)."""
        split = weight.view(parts, self.plain + self.convolved, *weight.shape[1:])
        pieces = split[:, : self.plain], split[:, self.plain :]
        if self.plain == 0:
            return filled(weight, parts)
        filled_up = [filled(x.flatten(0, 1), parts).view(parts, -1, *weight.shape[1:]) for x in pieces]
        return torch.cat(filled_up, 1).flatten(0, 1)

    def unfilled(self, weight: Tensor, parts: int) -> Tensor:
        """Inverse of `filled`."""
        split = weight.view(parts, -1, *weight.shape[1:])
        first = lanes() * self.planes[0]
        return torch.cat((split[:, : self.plain], split[:, first : first + self.convolved]), 1).flatten(0, 1)


def kernel_planes(kernels: Tensor) -> Tensor:
    """(b, m, 7, 7) → (b, planes, 49, lanes)."""
    batch, count = kernels.shape[:2]
    wide = F.pad(kernels.flatten(2), (0, 0, 0, up(count) - count))
    return wide.view(batch, -1, lanes(), wide.shape[2]).transpose(2, 3).contiguous()
