"""Regions in C: a few rows of an image at a time, so that all maps between input and output stay in the cache.

What this module does is lay weights out for `c/` in planes, share rows among threads, and take gradients back to
weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mirage.kernels.cpu import library
from mirage.kernels.cpu.layout import (
    Halves,
    by_pixel,
    filled,
    from_planes,
    kernel_planes,
    planes,
    unfilled,
    up,
)
from mirage.kernels.cpu.library import Rows, lanes

HELD_PIXELS = 128
"""What regions without windows take at once; the gradient of a matrix is summed over so many first."""


def _sum(totals: list[list[Tensor]]) -> list[Tensor]:
    """Of what each thread added up, in their order."""
    first, *others = totals
    for other in others:
        for total, part in zip(first, other, strict=True):
            total += part
    return first


def _contiguous(*gradients: Tensor) -> list[Tensor]:
    """As torch.compile was told that they are."""
    return [gradient.contiguous() for gradient in gradients]


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
            sizes = height, width, channels, half // lanes(), start, stop
            library.call("feed_forward", x[image], out[image], *weights, *sizes, scratch=scratch)

    library.in_threads(task, library.shares(batch, height))
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
    scratch = 18 * half * (width + 2) + (1 + held) * width * (3 * half + channels + lanes())

    def task(work: list[Rows]) -> list[Tensor]:
        sums = [torch.zeros_like(weight) for weight in weights]
        for image, start, stop in work:
            maps = x[image], grad[image], grad_x[image]
            sizes = height, width, channels, half // lanes(), start, stop, held
            library.call("feed_forward_backward", *maps, *weights, back, *sums, *sizes, scratch=scratch)
        return sums

    sums = _sum(library.in_threads(task, library.shares(batch, height)))
    to_matrix = unfilled(from_planes(sums[0]).mT, n, 2)
    to_bias = unfilled(sums[1], n, 2)
    to_expand = torch.addcmul(to_bias[:, None] * shift, to_matrix, scale)
    to_taps = unfilled(from_planes(sums[2]).mT, n, 2).reshape(taps.shape)
    to_contract = from_planes(sums[3])[:, :n].contiguous()
    to_scale, to_shift = (to_matrix * expand).sum(0), to_bias @ expand
    return grad_x, to_scale, to_shift, *_contiguous(to_expand, to_taps, to_contract)  # type: ignore[return-value]


# Attention's input


def attention_input(x: Tensor, matrix: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """x (b, h, w, c), matrix (3a, c), taps (3a, 3, 3) → v (b, h, w, a), Gram matrix of q and k (b, 2a, 2a)."""
    x, step = by_pixel(x)
    batch, height, width, channels = x.shape
    values = matrix.shape[0] // 3
    wide = up(values)
    weights = planes(filled(matrix, 3).mT), planes(filled(taps, 3).flatten(1).mT)
    v = x.new_empty(batch, height, width, values)
    held = max(1, HELD_PIXELS // width)
    scratch = 9 * wide * (width + 2) + held * width * 2 * wide + width * lanes()

    def task(work: list[Rows]) -> list[Tensor]:
        gram = x.new_zeros(batch, 2 * wide // lanes(), 2 * wide, lanes())
        for image, *rows in work:
            sizes = height, width, step, channels, values, wide // lanes(), *rows, held
            library.call(
                "attention_input", x[image], v[image], gram[image], *weights, *sizes, scratch=scratch
            )
        return [gram]

    (gram,) = _sum(library.in_threads(task, library.shares(batch, height)))
    square = gram.transpose(1, 2).reshape(batch, 2, wide, 2, wide)[:, :, :values, :, :values]
    return v, square.reshape(batch, 2 * values, 2 * values)


def attention_input_backward(
    grad_v: Tensor, grad_gram: Tensor, x: Tensor, matrix: Tensor, taps: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to all inputs."""
    (x, step), grad_v = by_pixel(x), grad_v.contiguous()
    batch, height, width, channels = x.shape
    values = matrix.shape[0] // 3
    wide = up(values)
    rows_of_matrix = filled(matrix, 3)
    weights = planes(rows_of_matrix.mT), planes(filled(taps, 3).flatten(1).mT)
    back = planes(rows_of_matrix)
    square = F.pad(
        (grad_gram + grad_gram.mT).view(batch, 2, values, 2, values),
        (0, wide - values, 0, 0, 0, wide - values),
    ).view(batch, 2 * wide, -1, lanes())
    to_qk = square.transpose(1, 2).contiguous()
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    held = max(1, HELD_PIXELS // width)
    scratch = 18 * wide * (width + 2) + width * 2 * wide + held * width * 3 * wide

    def task(work: list[Rows]) -> list[Tensor]:
        sums = [torch.zeros_like(weight) for weight in weights]
        for image, *rows in work:
            maps = x[image], grad_v[image], grad_x[image]
            sizes = height, width, step, channels, values, wide // lanes(), *rows, held
            library.call(
                "attention_input_backward",
                *maps,
                *weights,
                to_qk[image],
                back,
                *sums,
                *sizes,
                scratch=scratch,
            )
        return sums

    to_matrix, to_taps = _sum(library.in_threads(task, library.shares(batch, height)))
    found = unfilled(from_planes(to_matrix).mT, values, 3), unfilled(from_planes(to_taps).mT, values, 3)
    return grad_x, *_contiguous(found[0], found[1].reshape(taps.shape))  # type: ignore[return-value]


# Gated convolution


def gated_unit(x: Tensor, weight: Tensor, bias: Tensor, kernels: Tensor, contract: Tensor) -> Tensor:
    """x (b, h, w, c), weight (2n, c), bias (2n), kernels (b, m, k, k), contract (o, n) → (b, h, w, o)."""
    x, step = by_pixel(x)
    batch, height, width, channels = x.shape
    halves = Halves(contract.shape[1], kernels.shape[1])
    expand, windows = planes(halves.filled(weight, 2).mT), kernel_planes(kernels)
    start, back = halves.filled(bias.contiguous(), 2), planes(halves.filled(contract.mT, 1))
    out = x.new_empty(batch, height, width, contract.shape[0])
    hidden = lanes() * (2 * halves.planes[0] + halves.planes[1])
    scratch = 7 * lanes() * halves.planes[1] * (width + 6) + width * (hidden + lanes())

    def task(work: list[Rows]) -> None:
        for image, *rows in work:
            sizes = height, width, step, channels, out.shape[3], *halves.planes, *rows
            maps = x[image], out[image]
            library.call("gated_unit", *maps, expand, start, windows[image], back, *sizes, scratch=scratch)

    library.in_threads(task, library.shares(batch, height))
    return out


def gated_unit_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, kernels: Tensor, contract: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to all inputs."""
    (x, step), grad = by_pixel(x), grad.contiguous()
    batch, height, width, channels = x.shape
    halves = Halves(contract.shape[1], kernels.shape[1])
    matrix, windows = halves.filled(weight, 2), kernel_planes(kernels)
    expand, start, back = planes(matrix.mT), halves.filled(bias.contiguous(), 2), planes(matrix)
    down = planes(halves.filled(contract.mT, 1).mT)
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    held = max(1, HELD_PIXELS // width)
    half, convolved = lanes() * sum(halves.planes), lanes() * halves.planes[1]
    scratch = 14 * convolved * (width + 6) + width * (3 * half + lanes() + held * (3 * half))

    def task(work: list[Rows]) -> list[Tensor]:
        to_expand, to_bias, to_windows, to_contract = sums = [
            torch.zeros_like(total) for total in (expand, start, windows, down)
        ]
        for image, *rows in work:
            sizes = height, width, step, channels, grad.shape[3], *halves.planes, *rows, held
            library.call(
                "gated_unit_backward",
                *(x[image], grad[image], grad_x[image]),
                *(expand, start, windows[image], down, back),
                *(to_expand, to_bias, to_windows[image], to_contract),
                *sizes,
                scratch=scratch,
            )
        return sums

    sums = _sum(library.in_threads(task, library.shares(batch, height)))
    to_weight = halves.unfilled(from_planes(sums[0]).mT, 2)
    to_kernels = sums[2].transpose(2, 3).flatten(1, 2)[:, : kernels.shape[1]].reshape(kernels.shape)
    to_contract = halves.unfilled(from_planes(sums[3]).mT, 1).mT.contiguous()
    to_bias = halves.unfilled(sums[1], 2)
    return grad_x, *_contiguous(to_weight, to_bias, to_kernels, to_contract)  # type: ignore[return-value]


# Channel MLP


def channel_mlp(x: Tensor, expand: Tensor, contract: Tensor) -> Tensor:
    """x (b, h, w, c), expand (n, c), contract (o, n) → (b, h, w, o)."""
    x, step = by_pixel(x)
    weights = planes(filled(expand).mT), planes(filled(contract.mT))
    sizes = step, x.shape[3], contract.shape[0], up(expand.shape[0]) // lanes()
    out = x.new_empty(*x.shape[:3], contract.shape[0])

    def task(work: list[Rows]) -> None:
        for rows in work:
            maps = _pixels(rows, step, x, out)
            library.call("channel_mlp", *maps, *weights, rows.stop - rows.start, *sizes, scratch=scratch)

    scratch = HELD_PIXELS * up(expand.shape[0])
    library.in_threads(task, _pixel_shares(x))
    return out


def channel_mlp_backward(
    grad: Tensor, x: Tensor, expand: Tensor, contract: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to all inputs."""
    (x, step), grad = by_pixel(x), grad.contiguous()
    hidden = up(expand.shape[0])
    weights = planes(filled(expand).mT), planes(filled(contract.mT).mT)
    back, scratch = planes(filled(expand)), 2 * HELD_PIXELS * hidden
    sizes = step, x.shape[3], contract.shape[0], hidden // lanes()
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)

    def task(work: list[Rows]) -> list[Tensor]:
        sums = [torch.zeros_like(weight) for weight in weights]
        for rows in work:
            maps, count = _pixels(rows, step, x, grad, grad_x), rows.stop - rows.start
            library.call("channel_mlp_backward", *maps, *weights, back, *sums, count, *sizes, scratch=scratch)
        return sums

    to_expand, to_contract = _sum(library.in_threads(task, _pixel_shares(x)))
    n = expand.shape[0]
    return grad_x, from_planes(to_expand).mT[:n].contiguous(), from_planes(to_contract)[:, :n].contiguous()


def _pixel_shares(x: Tensor) -> list[list[Rows]]:
    """Pixels of all images as rows of one."""
    return library.shares(1, x.shape[0] * x.shape[1] * x.shape[2])


def _pixels(rows: Rows, step: int, first: Tensor, *others: Tensor) -> list[Tensor]:
    """Maps (b, h, w, c) from the first of these pixels on; `first` has so many floats a pixel, others are contiguous.

    Strides do not say how far apart pixels are where a map is one pixel wide.
    """
    steps = step, *(x.shape[3] for x in others)
    return [
        x.as_strided(x.shape[3:], (1,), x.storage_offset() + rows.start * one)
        for x, one in zip((first, *others), steps, strict=True)
    ]


# Fusion of equally wide branches


def fused_product(branches: list[Tensor], scales: Tensor, weight: Tensor) -> Tensor:
    """Two or three branches (b, h, w, c), scales (branches,), weight (o, branches * c) → (b, h, w, o)."""
    branches = [x.contiguous() for x in branches]
    scales, first, count = scales.contiguous(), branches[0], len(branches)
    matrix = planes(filled(weight.mT, count))
    out = first.new_empty(*first.shape[:3], weight.shape[0])
    three, sizes = [*branches, first][:3], (first.shape[3], weight.shape[0], count)

    def task(work: list[Rows]) -> None:
        for rows in work:
            maps = _pixels(rows, first.shape[3], *three, out)
            library.call(
                "fused_product", *maps, scales, matrix, rows.stop - rows.start, *sizes, scratch=scratch
            )

    scratch = HELD_PIXELS * count * up(first.shape[3])
    library.in_threads(task, _pixel_shares(first))
    return out


def fused_product_backward(
    grad: Tensor, branches: list[Tensor], scales: Tensor, weight: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Gradients with respect to all inputs."""
    grad, branches = grad.contiguous(), [x.contiguous() for x in branches]
    scales, first, count = scales.contiguous(), branches[0], len(branches)
    matrix = planes(filled(weight.mT, count).mT)
    grads = [torch.empty_like(x) for x in branches]
    three, three_grads = [*branches, first][:3], [*grads, grads[0]][:3]
    sizes = first.shape[3], weight.shape[0], count

    def task(work: list[Rows]) -> list[Tensor]:
        sums = [torch.zeros_like(scales), torch.zeros_like(matrix)]
        for rows in work:
            maps = _pixels(rows, first.shape[3], *three, grad, *three_grads)
            pixels = rows.stop - rows.start
            library.call(
                "fused_product_backward", *maps, scales, matrix, *sums, pixels, *sizes, scratch=scratch
            )
        return sums

    scratch = HELD_PIXELS * count * up(first.shape[3])
    to_scales, to_matrix = _sum(library.in_threads(task, _pixel_shares(first)))
    to_weight = unfilled(from_planes(to_matrix).mT, first.shape[3], count).mT.contiguous()
    return grads, to_scales, to_weight
