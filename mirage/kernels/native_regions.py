"""Regions in C: a few rows of an image at a time, so that all maps between input and output stay in the cache.

What this module does is lay weights out for `c/`, share rows among threads, and take gradients back to weights.
Channels are padded with zeros to planes of 16 there: `GELU(0) * 0` and a product with zeros change nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mirage.kernels import native
from mirage.kernels.native import Rows

LANES = 16
"""Channels of a plane."""

HELD_PIXELS = 128
"""Over which the gradient of a matrix is summed before it is added to its total."""


def up(channels: int) -> int:
    """Channels with those that fill the last plane up."""
    return -(-channels // LANES) * LANES


def planes(matrix: Tensor) -> Tensor:
    """(k, n) → (planes, k, 16), the last plane filled up with zeros."""
    rows, columns = matrix.shape
    wide = F.pad(matrix, (0, up(columns) - columns))
    return wide.view(rows, -1, LANES).permute(1, 0, 2).contiguous()


def from_planes(x: Tensor) -> Tensor:
    """(planes, k, 16) → (k, channels), with those that fill the last plane up."""
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
    even = x.stride(3) == 1 and x.stride(1) == x.shape[2] * step
    return (x, step) if even else (x.contiguous(), x.shape[3])


def _sum(totals: list[list[Tensor]]) -> list[Tensor]:
    """Of what each thread added up, in their order."""
    first, *others = totals
    for other in others:
        for total, part in zip(first, other, strict=True):
            total += part
    return first


# Feed-forward network


def _affine(scale: Tensor, shift: Tensor, expand: Tensor) -> tuple[Tensor, Tensor]:
    """Norm's scale and shift within the product that follows: `expand (scale x + shift)`; filled."""
    return filled(expand * scale, 2), filled(expand @ shift, 2)


def feed_forward(
    x: Tensor, scale: Tensor, shift: Tensor, expand: Tensor, taps: Tensor, contract: Tensor
) -> Tensor:
    """x (b, h, w, c), expand (2n, c), taps (2n, 3, 3), contract (c, n) → (b, h, w, c)."""
    x = x.contiguous()
    batch, height, width, channels = x.shape
    matrix, bias = _affine(scale, shift, expand)
    half = matrix.shape[0] // 2
    weights = planes(matrix.mT), bias, planes(filled(taps, 2).flatten(1).mT), planes(filled(contract.mT))
    out = torch.empty_like(x)
    scratch = width * channels + 7 * half * (width + 2)

    def task(work: list[Rows]) -> None:
        for image, start, stop in work:
            sizes = height, width, channels, half // LANES, start, stop
            native.call("feed_forward", x[image], out[image], *weights, *sizes, scratch=scratch)

    native.in_threads(task, native.shares(batch, height))
    return out


def feed_forward_backward(
    grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, expand: Tensor, taps: Tensor, contract: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to all inputs."""
    x, grad = x.contiguous(), grad.contiguous()
    batch, height, width, channels = x.shape
    matrix, bias = _affine(scale, shift, expand)
    half, n = matrix.shape[0] // 2, contract.shape[1]
    weights = [planes(matrix.mT), bias, planes(filled(taps, 2).flatten(1).mT), planes(contract)]
    back, grad_x = planes(matrix), torch.empty_like(x)
    held = max(1, HELD_PIXELS // width)
    scratch = 18 * half * (width + 2) + (1 + held) * width * (3 * half + channels + LANES)

    def task(work: list[Rows]) -> list[Tensor]:
        sums = [torch.zeros_like(weight) for weight in weights]
        for image, start, stop in work:
            maps = x[image], grad[image], grad_x[image]
            sizes = height, width, channels, half // LANES, start, stop, held
            native.call("feed_forward_backward", *maps, *weights, back, *sums, *sizes, scratch=scratch)
        return sums

    sums = _sum(native.in_threads(task, native.shares(batch, height)))
    to_matrix = unfilled(from_planes(sums[0]).mT, n, 2)
    to_bias = unfilled(sums[1], n, 2)
    to_expand = torch.addcmul(to_bias[:, None] * shift, to_matrix, scale)
    to_taps = unfilled(from_planes(sums[2]).mT, n, 2).reshape(taps.shape)
    to_contract = from_planes(sums[3])[:, :n].contiguous()
    return grad_x, (to_matrix * expand).sum(0), to_bias @ expand, to_expand, to_taps, to_contract


# Gated convolution


class _Halves:
    """How the channels of gate and values lie: what is not convolved and what is, each in planes of its own."""

    def __init__(self, hidden: int, convolved: int) -> None:
        self.plain, self.convolved = hidden - convolved, convolved
        self.planes = up(self.plain) // LANES, up(convolved) // LANES

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
        first = LANES * self.planes[0]
        return torch.cat((split[:, : self.plain], split[:, first : first + self.convolved]), 1).flatten(0, 1)


def _kernel_planes(kernels: Tensor) -> Tensor:
    """(b, m, 7, 7) → (b, planes, 49, 16)."""
    batch, count = kernels.shape[:2]
    wide = F.pad(kernels.flatten(2), (0, 0, 0, up(count) - count))
    return wide.view(batch, -1, LANES, wide.shape[2]).transpose(2, 3).contiguous()


def gated_unit(x: Tensor, weight: Tensor, bias: Tensor, kernels: Tensor, contract: Tensor) -> Tensor:
    """x (b, h, w, c), weight (2n, c), bias (2n), kernels (b, m, k, k), contract (o, n) → (b, h, w, o)."""
    x, step = by_pixel(x)
    batch, height, width, channels = x.shape
    halves = _Halves(contract.shape[1], kernels.shape[1])
    expand, windows = planes(halves.filled(weight, 2).mT), _kernel_planes(kernels)
    start, back = halves.filled(bias, 2), planes(halves.filled(contract.mT, 1))
    out = x.new_empty(batch, height, width, contract.shape[0])
    hidden = LANES * (2 * halves.planes[0] + halves.planes[1])
    scratch = 7 * LANES * halves.planes[1] * (width + 6) + width * (hidden + LANES)

    def task(work: list[Rows]) -> None:
        for image, *rows in work:
            sizes = height, width, step, channels, out.shape[3], *halves.planes, *rows
            maps = x[image], out[image]
            native.call("gated_unit", *maps, expand, start, windows[image], back, *sizes, scratch=scratch)

    native.in_threads(task, native.shares(batch, height))
    return out


def gated_unit_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, kernels: Tensor, contract: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to all inputs."""
    (x, step), grad = by_pixel(x), grad.contiguous()
    batch, height, width, channels = x.shape
    halves = _Halves(contract.shape[1], kernels.shape[1])
    matrix, windows = halves.filled(weight, 2), _kernel_planes(kernels)
    expand, start, back = planes(matrix.mT), halves.filled(bias, 2), planes(matrix)
    down = planes(halves.filled(contract.mT, 1).mT)
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    held = max(1, HELD_PIXELS // width)
    half, convolved = LANES * sum(halves.planes), LANES * halves.planes[1]
    scratch = 14 * convolved * (width + 6) + width * (3 * half + LANES + held * (3 * half))

    def task(work: list[Rows]) -> list[Tensor]:
        to_expand, to_bias, to_windows, to_contract = sums = [
            torch.zeros_like(total) for total in (expand, start, windows, down)
        ]
        for image, *rows in work:
            sizes = height, width, step, channels, grad.shape[3], *halves.planes, *rows, held
            native.call(
                "gated_unit_backward",
                *(x[image], grad[image], grad_x[image]),
                *(expand, start, windows[image], down, back),
                *(to_expand, to_bias, to_windows[image], to_contract),
                *sizes,
                scratch=scratch,
            )
        return sums

    sums = _sum(native.in_threads(task, native.shares(batch, height)))
    to_weight = halves.unfilled(from_planes(sums[0]).mT, 2)
    to_kernels = sums[2].transpose(2, 3).flatten(1, 2)[:, : kernels.shape[1]].reshape(kernels.shape)
    to_contract = halves.unfilled(from_planes(sums[3]).mT, 1).mT.contiguous()
    return grad_x, to_weight, halves.unfilled(sums[1], 2), to_kernels, to_contract
