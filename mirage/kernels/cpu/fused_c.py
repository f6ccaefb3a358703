"""Fused operators in C: a few rows of an image at a time, so that the maps between input and output stay in the cache.

This module converts weights to the blocked layout of `c/`, splits rows among threads, and converts gradients back.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mirage.kernels.cpu import library
from mirage.kernels.cpu.layout import (
    GatedParts,
    filters_to_blocks,
    from_blocks,
    pad_parts,
    round_up,
    to_blocks,
    unpad_parts,
)
from mirage.kernels.cpu.library import RowRange, lanes
from mirage.kernels.custom_op import CustomOperator, save_inputs
from mirage.kernels.maps import with_pixel_stride

PIXELS = 128
"""Pixels that pointwise operators take at once; the gradient of a matrix is first summed over as many."""


def _sum_in_order(totals: list[list[Tensor]]) -> list[Tensor]:
    """Add up what each thread accumulated, in a fixed order."""
    first, *others = totals
    for other in others:
        for total, part in zip(first, other, strict=True):
            total += part
    return first


def _contiguous(*gradients: Tensor) -> list[Tensor]:
    """Return contiguous gradients, as the fake implementations declare them."""
    return [gradient.contiguous() for gradient in gradients]


# Feed-forward network


def _fold_norm(scale: Tensor, shift: Tensor, expand: Tensor) -> tuple[Tensor, Tensor]:
    """Fold the norm's affine map into the next layer, `expand (scale x + shift)`: padded matrix and bias."""
    return pad_parts(expand * scale, 2), pad_parts(expand @ shift, 2)


@CustomOperator
def feed_forward(
    x: Tensor, scale: Tensor, shift: Tensor, expand: Tensor, filters: Tensor, contract: Tensor
) -> Tensor:
    """Apply norm and feed-forward network to x (b, h, w, c); expand (2n, c), filters (2n, 3, 3), contract (c, n)."""
    x = x.contiguous()
    batch, height, width, channels = x.shape
    matrix, bias = _fold_norm(scale, shift, expand)
    half = matrix.shape[0] // 2
    weights = (
        to_blocks(matrix.mT),
        bias,
        to_blocks(pad_parts(filters, 2).flatten(1).mT),
        to_blocks(pad_parts(contract.mT)),
    )
    out = torch.empty_like(x)
    scratch = width * channels + 7 * half * (width + 2)

    def task(work: list[RowRange]) -> None:
        for image, start, stop in work:
            sizes = height, width, channels, half // lanes(), start, stop
            library.call("feed_forward", x[image], out[image], *weights, *sizes, scratch=scratch)

    library.run_in_threads(task, library.split_rows(batch, height))
    return out


@CustomOperator
def feed_forward_backward(
    grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, expand: Tensor, filters: Tensor, contract: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients with respect to all inputs."""
    x, grad = x.contiguous(), grad.contiguous()
    batch, height, width, channels = x.shape
    matrix, bias = _fold_norm(scale, shift, expand)
    half, n = matrix.shape[0] // 2, contract.shape[1]
    weights = [
        to_blocks(matrix.mT),
        bias,
        to_blocks(pad_parts(filters, 2).flatten(1).mT),
        to_blocks(contract),
    ]
    transposed, grad_x = to_blocks(matrix), torch.empty_like(x)
    rows = max(1, PIXELS // width)
    scratch = 18 * half * (width + 2) + (1 + rows) * width * (3 * half + channels + lanes())

    def task(work: list[RowRange]) -> list[Tensor]:
        sums = [torch.zeros_like(weight) for weight in weights]
        for image, start, stop in work:
            maps = x[image], grad[image], grad_x[image]
            sizes = height, width, channels, half // lanes(), start, stop, rows
            library.call("feed_forward_backward", *maps, *weights, transposed, *sums, *sizes, scratch=scratch)
        return sums

    sums = _sum_in_order(library.run_in_threads(task, library.split_rows(batch, height)))
    grad_matrix = unpad_parts(from_blocks(sums[0]).mT, n, 2)
    grad_bias = unpad_parts(sums[1], n, 2)
    grad_expand = torch.addcmul(grad_bias[:, None] * shift, grad_matrix, scale)
    grad_filters = unpad_parts(from_blocks(sums[2]).mT, n, 2).reshape(filters.shape)
    grad_contract = from_blocks(sums[3])[:, :n].contiguous()
    grad_scale, grad_shift = (grad_matrix * expand).sum(0), grad_bias @ expand
    return grad_x, grad_scale, grad_shift, *_contiguous(grad_expand, grad_filters, grad_contract)  # type: ignore[return-value]


# Input of channel attention


@CustomOperator
def attention_input(x: Tensor, matrix: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return v (b, h, w, a) and the Gram matrix (b, 2a, 2a); x (b, h, w, c), matrix (3a, c), filters (3a, 3, 3)."""
    x, stride = with_pixel_stride(x)
    batch, height, width, channels = x.shape
    values = matrix.shape[0] // 3
    padded = round_up(values)
    weights = to_blocks(pad_parts(matrix, 3).mT), to_blocks(pad_parts(filters, 3).flatten(1).mT)
    v = x.new_empty(batch, height, width, values)
    rows = max(1, PIXELS // width)
    scratch = 9 * padded * (width + 2) + rows * width * 2 * padded + width * lanes()

    def task(work: list[RowRange]) -> list[Tensor]:
        gram = x.new_zeros(batch, 2 * padded // lanes(), 2 * padded, lanes())
        for image, *bounds in work:
            sizes = height, width, stride, channels, values, padded // lanes(), *bounds, rows
            library.call(
                "attention_input", x[image], v[image], gram[image], *weights, *sizes, scratch=scratch
            )
        return [gram]

    (gram,) = _sum_in_order(library.run_in_threads(task, library.split_rows(batch, height)))
    square = gram.transpose(1, 2).reshape(batch, 2, padded, 2, padded)[:, :, :values, :, :values]
    return v, square.reshape(batch, 2 * values, 2 * values)


@CustomOperator
def attention_input_backward(
    grad_v: Tensor, grad_gram: Tensor, x: Tensor, matrix: Tensor, filters: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients with respect to x, matrix and filters."""
    (x, stride), grad_v = with_pixel_stride(x), grad_v.contiguous()
    batch, height, width, channels = x.shape
    values = matrix.shape[0] // 3
    padded = round_up(values)
    padded_matrix = pad_parts(matrix, 3)
    weights = to_blocks(padded_matrix.mT), to_blocks(pad_parts(filters, 3).flatten(1).mT)
    transposed = to_blocks(padded_matrix)
    square = F.pad(
        (grad_gram + grad_gram.mT).view(batch, 2, values, 2, values),
        (0, padded - values, 0, 0, 0, padded - values),
    ).view(batch, 2 * padded, -1, lanes())
    grad_qk = square.transpose(1, 2).contiguous()
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows = max(1, PIXELS // width)
    scratch = 18 * padded * (width + 2) + width * 2 * padded + rows * width * 3 * padded

    def task(work: list[RowRange]) -> list[Tensor]:
        sums = [torch.zeros_like(weight) for weight in weights]
        for image, *bounds in work:
            maps = x[image], grad_v[image], grad_x[image]
            sizes = height, width, stride, channels, values, padded // lanes(), *bounds, rows
            library.call(
                "attention_input_backward",
                *maps,
                *weights,
                grad_qk[image],
                transposed,
                *sums,
                *sizes,
                scratch=scratch,
            )
        return sums

    sums = _sum_in_order(library.run_in_threads(task, library.split_rows(batch, height)))
    grad_matrix, grad_filters = (unpad_parts(from_blocks(total).mT, values, 3) for total in sums)
    return grad_x, *_contiguous(grad_matrix, grad_filters.reshape(filters.shape))  # type: ignore[return-value]


# Gated convolution


@CustomOperator
def gated_unit(x: Tensor, weight: Tensor, bias: Tensor, filters: Tensor, contract: Tensor) -> Tensor:
    """Apply the gated unit to x (b, h, w, c); weight (2n, c), bias (2n,), filters (b, m, 7, 7), contract (o, n)."""
    x, stride = with_pixel_stride(x)
    batch, height, width, channels = x.shape
    parts = GatedParts(contract.shape[1], filters.shape[1])
    expand, blocked_filters = to_blocks(parts.pad(weight, 2).mT), filters_to_blocks(filters)
    padded_bias, down = parts.pad(bias.contiguous(), 2), to_blocks(parts.pad(contract.mT, 1))
    out = x.new_empty(batch, height, width, contract.shape[0])
    hidden = lanes() * (2 * parts.blocks[0] + parts.blocks[1])
    scratch = 7 * lanes() * parts.blocks[1] * (width + 6) + width * (hidden + lanes())

    def task(work: list[RowRange]) -> None:
        for image, *bounds in work:
            sizes = height, width, stride, channels, out.shape[3], *parts.blocks, *bounds
            weights = expand, padded_bias, blocked_filters[image], down
            library.call("gated_unit", x[image], out[image], *weights, *sizes, scratch=scratch)

    library.run_in_threads(task, library.split_rows(batch, height))
    return out


@CustomOperator
def gated_unit_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, filters: Tensor, contract: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients with respect to all inputs."""
    (x, stride), grad = with_pixel_stride(x), grad.contiguous()
    batch, height, width, channels = x.shape
    parts = GatedParts(contract.shape[1], filters.shape[1])
    matrix, blocked_filters = parts.pad(weight, 2), filters_to_blocks(filters)
    expand, padded_bias = to_blocks(matrix.mT), parts.pad(bias.contiguous(), 2)
    transposed, down = to_blocks(matrix), to_blocks(parts.pad(contract.mT, 1).mT)
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows = max(1, PIXELS // width)
    half, convolved = lanes() * sum(parts.blocks), lanes() * parts.blocks[1]
    scratch = 14 * convolved * (width + 6) + width * (3 * half + lanes() + rows * (3 * half))

    def task(work: list[RowRange]) -> list[Tensor]:
        sums = [torch.zeros_like(total) for total in (expand, padded_bias, blocked_filters, down)]
        sum_expand, sum_bias, sum_filters, sum_down = sums
        for image, *bounds in work:
            sizes = height, width, stride, channels, grad.shape[3], *parts.blocks, *bounds, rows
            library.call(
                "gated_unit_backward",
                *(x[image], grad[image], grad_x[image]),
                *(expand, padded_bias, blocked_filters[image], down, transposed),
                *(sum_expand, sum_bias, sum_filters[image], sum_down),
                *sizes,
                scratch=scratch,
            )
        return sums

    sums = _sum_in_order(library.run_in_threads(task, library.split_rows(batch, height)))
    grad_weight = parts.unpad(from_blocks(sums[0]).mT, 2)
    grad_filters = sums[2].transpose(2, 3).flatten(1, 2)[:, : filters.shape[1]].reshape(filters.shape)
    grad_contract = parts.unpad(from_blocks(sums[3]).mT, 1).mT.contiguous()
    grad_bias = parts.unpad(sums[1], 2)
    return grad_x, *_contiguous(grad_weight, grad_bias, grad_filters, grad_contract)  # type: ignore[return-value]


# Channel MLP


@CustomOperator
def channel_mlp(x: Tensor, expand: Tensor, contract: Tensor) -> Tensor:
    """Apply two linear layers with a GELU between them to x (b, h, w, c); expand (n, c), contract (o, n)."""
    x, stride = with_pixel_stride(x)
    weights = to_blocks(pad_parts(expand).mT), to_blocks(pad_parts(contract.mT))
    sizes = stride, x.shape[3], contract.shape[0], round_up(expand.shape[0]) // lanes()
    out = x.new_empty(*x.shape[:3], contract.shape[0])
    scratch = PIXELS * round_up(expand.shape[0])

    def task(work: list[RowRange]) -> None:
        for rows in work:
            maps = _first_pixel(rows, stride, x, out)
            library.call("channel_mlp", *maps, *weights, rows.stop - rows.start, *sizes, scratch=scratch)

    library.run_in_threads(task, _split_pixels(x))
    return out


@CustomOperator
def channel_mlp_backward(
    grad: Tensor, x: Tensor, expand: Tensor, contract: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients with respect to all inputs."""
    (x, stride), grad = with_pixel_stride(x), grad.contiguous()
    hidden = round_up(expand.shape[0])
    weights = to_blocks(pad_parts(expand).mT), to_blocks(pad_parts(contract.mT).mT)
    transposed, scratch = to_blocks(pad_parts(expand)), 2 * PIXELS * hidden
    sizes = stride, x.shape[3], contract.shape[0], hidden // lanes()
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)

    def task(work: list[RowRange]) -> list[Tensor]:
        sums = [torch.zeros_like(weight) for weight in weights]
        for rows in work:
            maps, count = _first_pixel(rows, stride, x, grad, grad_x), rows.stop - rows.start
            library.call(
                "channel_mlp_backward", *maps, *weights, transposed, *sums, count, *sizes, scratch=scratch
            )
        return sums

    grad_expand, grad_contract = _sum_in_order(library.run_in_threads(task, _split_pixels(x)))
    n = expand.shape[0]
    return grad_x, *_contiguous(from_blocks(grad_expand).mT[:n], from_blocks(grad_contract)[:, :n])  # type: ignore[return-value]


def _split_pixels(x: Tensor) -> list[list[RowRange]]:
    """Split the pixels of all images among threads, as rows of one image."""
    return library.split_rows(1, x.shape[0] * x.shape[1] * x.shape[2])


def _first_pixel(rows: RowRange, stride: int, first: Tensor, *others: Tensor) -> list[Tensor]:
    """Return each map (b, h, w, c) from its first pixel on; `first` has this pixel stride, the others are contiguous.

    Strides do not tell the distance between the pixels of a map that is one pixel wide.
    """
    strides = stride, *(x.shape[3] for x in others)
    return [
        x.as_strided(x.shape[3:], (1,), x.storage_offset() + rows.start * distance)
        for x, distance in zip((first, *others), strides, strict=True)
    ]


# Fusion of equally wide branches


@CustomOperator
def fusion_linear(branches: list[Tensor], scales: Tensor, weight: Tensor) -> Tensor:
    """Gate and project two or three branches (b, h, w, c); scales (branches,), weight (o, branches * c)."""
    branches = [x.contiguous() for x in branches]
    scales, first, count = scales.contiguous(), branches[0], len(branches)
    matrix = to_blocks(pad_parts(weight.mT, count))
    out = first.new_empty(*first.shape[:3], weight.shape[0])
    three, sizes = [*branches, first][:3], (first.shape[3], weight.shape[0], count)
    scratch = PIXELS * count * round_up(first.shape[3])

    def task(work: list[RowRange]) -> None:
        for rows in work:
            maps = _first_pixel(rows, first.shape[3], *three, out)
            library.call(
                "fusion_linear", *maps, scales, matrix, rows.stop - rows.start, *sizes, scratch=scratch
            )

    library.run_in_threads(task, _split_pixels(first))
    return out


@CustomOperator
def fusion_linear_backward(
    grad: Tensor, branches: list[Tensor], scales: Tensor, weight: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return the gradients with respect to all inputs."""
    grad, branches = grad.contiguous(), [x.contiguous() for x in branches]
    scales, first, count = scales.contiguous(), branches[0], len(branches)
    matrix = to_blocks(pad_parts(weight.mT, count).mT)
    grads = [torch.empty_like(x) for x in branches]
    three, three_grads = [*branches, first][:3], [*grads, grads[0]][:3]
    sizes = first.shape[3], weight.shape[0], count
    scratch = PIXELS * count * round_up(first.shape[3])

    def task(work: list[RowRange]) -> list[Tensor]:
        sums = [torch.zeros_like(scales), torch.zeros_like(matrix)]
        for rows in work:
            maps = _first_pixel(rows, first.shape[3], *three, grad, *three_grads)
            pixels = rows.stop - rows.start
            library.call(
                "fusion_linear_backward", *maps, scales, matrix, *sums, pixels, *sizes, scratch=scratch
            )
        return sums

    grad_scales, grad_matrix = _sum_in_order(library.run_in_threads(task, _split_pixels(first)))
    grad_weight = unpad_parts(from_blocks(grad_matrix).mT, first.shape[3], count).mT.contiguous()
    return grads, grad_scales, grad_weight


# Shapes for torch.compile, and gradients


def _contiguous_like(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors)


@feed_forward.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor, expand: Tensor, filters: Tensor, contract: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:3], contract.shape[0])


@attention_input.register_fake
def _(x: Tensor, matrix: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    values = matrix.shape[0] // 3
    return x.new_empty(*x.shape[:3], values), x.new_empty(x.shape[0], 2 * values, 2 * values)


@gated_unit.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, filters: Tensor, contract: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:3], contract.shape[0])


@channel_mlp.register_fake
def _(x: Tensor, expand: Tensor, contract: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:3], contract.shape[0])


@fusion_linear.register_fake
def _(branches: list[Tensor], scales: Tensor, weight: Tensor) -> Tensor:
    return weight.new_empty(*branches[0].shape[:3], weight.shape[0])


@feed_forward_backward.register_fake
@gated_unit_backward.register_fake
@channel_mlp_backward.register_fake
def _(grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return _contiguous_like(*inputs)


@attention_input_backward.register_fake
def _(grad_v: Tensor, grad_gram: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return _contiguous_like(*inputs)


@fusion_linear_backward.register_fake
def _(
    grad: Tensor, branches: list[Tensor], scales: Tensor, weight: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    return list(_contiguous_like(*branches)), torch.empty_like(scales), torch.empty_like(weight)


def _save_branches(ctx: Any, inputs: tuple[list[Tensor], Tensor, Tensor], output: Tensor) -> None:
    branches, scales, weight = inputs
    ctx.save_for_backward(scales, weight, *branches)


def _fusion_gradient(ctx: Any, grad: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    scales, weight, *branches = ctx.saved_tensors
    found: tuple[list[Tensor], Tensor, Tensor] = fusion_linear_backward(grad, branches, scales, weight)
    return found


for _forward, _backward in (
    (feed_forward, feed_forward_backward),
    (attention_input, attention_input_backward),
    (gated_unit, gated_unit_backward),
    (channel_mlp, channel_mlp_backward),
):
    _forward.register_autograd(
        lambda ctx, *grads, _backward=_backward: _backward(*grads, *ctx.saved_tensors),
        setup_context=save_inputs,
    )
fusion_linear.register_autograd(_fusion_gradient, setup_context=_save_branches)
