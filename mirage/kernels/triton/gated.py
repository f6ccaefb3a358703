"""Gated units around a depthwise convolution in Triton: half of the channels is multiplied by the GELU of the other.

The convolved map stays in registers: forward writes the product; backward computes the convolution again and writes the
gradients. `gated_depthwise` is the middle of the feed-forward network, `gated_values` that of the gated convolution.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mirage.kernels.maps import with_pixel_stride
from mirage.kernels.triton.convolution import convolve, filter_gradient
from mirage.kernels.triton.tiling import channels_last, gelu, gelu_derivative, tile


def gated_depthwise(hidden: Tensor, filters: Tensor) -> Tensor:
    """Apply GELU, filters (2n, 3, 3) and the gate: hidden (b, h, w, 2n) → (b, h, w, n).

    GELU is a separate pass: inside the convolution it would be evaluated for every tap.
    """
    out = hidden.new_empty((*hidden.shape[:3], hidden.shape[3] // 2))
    _run_depthwise(F.gelu(hidden), filters, out, grad=None)
    return out


def gated_depthwise_gradient(grad: Tensor, hidden: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients with respect to hidden and filters."""
    active = F.gelu(hidden)
    convolved = hidden.new_empty(hidden.shape)  # gradient of the convolved map
    _run_depthwise(active, filters, convolved, grad=grad)
    grad_hidden = convolve(convolved, filters, reverse=True, before_gelu=hidden)
    return grad_hidden, filter_gradient(convolved, active, filters)


def gated_values(hidden: Tensor, filters: Tensor) -> Tensor:
    """Apply filters (b, m, k, k) and the gate: hidden (b, h, w, 2n) → (b, h, w, n).

    The first n channels are the gates; of the others the last m are convolved, with filters for each image.
    """
    out = hidden.new_empty((*hidden.shape[:3], hidden.shape[3] // 2))
    _run_values(hidden, filters, out, out, grad=None)
    return out


def gated_values_gradient(grad: Tensor, hidden: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients with respect to hidden and filters."""
    wide = filters.shape[1]
    out = hidden.new_empty(hidden.shape)
    convolved = hidden.new_empty((*hidden.shape[:3], wide))  # gradient of the convolved map
    _run_values(hidden, filters, out, convolved, grad=grad)
    convolve(convolved, filters, reverse=True, out=out[..., -wide:])
    return out, filter_gradient(convolved, hidden[..., -wide:], filters)


def _run_depthwise(active: Tensor, filters: Tensor, out: Tensor, grad: Tensor | None) -> None:
    batch, height, width, both = active.shape
    size = filters.shape[-1]
    active, stride = with_pixel_stride(active)
    upstream, grad_stride = (active, 0) if grad is None else with_pixel_stride(grad)
    pixels, wide = tile(width, both // 2)
    pieces = triton.cdiv(width, pixels)
    with torch.cuda.device_of(active):
        _gated_depthwise[(batch * height * pieces, triton.cdiv(both // 2, wide))](
            active,
            channels_last(filters),
            upstream,
            out,
            height,
            width,
            both // 2,
            stride,
            grad_stride,
            pieces,
            SIZE=size,
            BACKWARD=grad is not None,
            PIXELS=pixels,
            CHANNELS=wide,
        )


def _run_values(hidden: Tensor, filters: Tensor, out: Tensor, convolved: Tensor, grad: Tensor | None) -> None:
    batch, height, width, both = hidden.shape
    wide, size = filters.shape[1], filters.shape[-1]
    hidden, stride = with_pixel_stride(hidden)
    upstream, grad_stride = (hidden, 0) if grad is None else with_pixel_stride(grad)
    pixels, block = tile(width, both // 2)
    pieces = triton.cdiv(width, pixels)
    with torch.cuda.device_of(hidden):
        _gated_values[(batch * height * pieces, triton.cdiv(both // 2, block))](
            hidden,
            channels_last(filters),
            upstream,
            out,
            convolved,
            height,
            width,
            both // 2,
            wide,
            stride,
            grad_stride,
            pieces,
            SIZE=size,
            BACKWARD=grad is not None,
            PIXELS=pixels,
            CHANNELS=block,
        )


@triton.jit
def _gated_depthwise(
    active,
    filters,
    grad,
    out,
    height,
    width,
    half,
    stride,
    grad_stride,
    pieces,
    SIZE: tl.constexpr,
    BACKWARD: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    row = tl.program_id(0) // pieces  # over all images
    image = row // height
    y = row % height
    column = (tl.program_id(0) % pieces) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    present = channel < half

    gate = tl.zeros([PIXELS, CHANNELS], dtype=tl.float32)
    value = tl.zeros([PIXELS, CHANNELS], dtype=tl.float32)
    for dy in range(SIZE):
        source_y = y + dy - SIZE // 2
        start = active + (image.to(tl.int64) * height + source_y) * width * stride
        end = tl.where((source_y >= 0) & (source_y < height), width, 0)
        for dx in tl.static_range(SIZE):
            source_x = column + dx - SIZE // 2
            mask = ((source_x >= 0) & (source_x < end))[:, None] & present[None, :]
            here = start + source_x[:, None] * stride + channel[None, :]
            tap = filters + (dy * SIZE + dx) * 2 * half + channel
            gate += (
                tl.load(here, mask=mask, other=0.0).to(tl.float32)
                * tl.load(tap, mask=present, other=0.0).to(tl.float32)[None, :]
            )
            value += (
                tl.load(here + half, mask=mask, other=0.0).to(tl.float32)
                * tl.load(tap + half, mask=present, other=0.0).to(tl.float32)[None, :]
            )

    pixel = row.to(tl.int64) * width + column
    mask = (column < width)[:, None] & present[None, :]
    if BACKWARD:
        g = tl.load(grad + pixel[:, None] * grad_stride + channel[None, :], mask=mask, other=0.0)
        g = g.to(tl.float32)
        target = out + pixel[:, None] * 2 * half + channel[None, :]
        tl.store(target, g * value * gelu_derivative(gate), mask=mask)
        tl.store(target + half, g * gelu(gate), mask=mask)
    else:
        tl.store(out + pixel[:, None] * half + channel[None, :], gelu(gate) * value, mask=mask)


@triton.jit
def _gated_values(
    hidden,
    filters,
    grad,
    out,
    convolved,
    height,
    width,
    half,
    wide,
    stride,
    grad_stride,
    pieces,
    SIZE: tl.constexpr,
    BACKWARD: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    row = tl.program_id(0) // pieces  # over all images
    image = row // height
    y = row % height
    column = (tl.program_id(0) % pieces) * PIXELS + tl.arange(0, PIXELS)
    first = tl.program_id(1) * CHANNELS
    channel = first + tl.arange(0, CHANNELS)
    plain = half - wide  # values below this channel are not convolved
    convolved_channel = (channel >= plain) & (channel < half)

    pixel = row.to(tl.int64) * width + column
    here = hidden + pixel[:, None] * stride + channel[None, :]
    within = (column < width)[:, None]
    mask = within & (channel < half)[None, :]
    gate = tl.load(here, mask=mask, other=0.0).to(tl.float32)
    value = tl.load(here + half, mask=within & (channel < plain)[None, :], other=0.0).to(tl.float32)
    if first + CHANNELS > plain:
        image_filters = filters + image.to(tl.int64) * SIZE * SIZE * wide + channel - plain
        for dy in range(SIZE):
            source_y = y + dy - SIZE // 2
            start = hidden + (image.to(tl.int64) * height + source_y) * width * stride
            end = tl.where((source_y >= 0) & (source_y < height), width, 0)
            for dx in tl.static_range(SIZE):
                source_x = column + dx - SIZE // 2
                inside = ((source_x >= 0) & (source_x < end))[:, None] & convolved_channel[None, :]
                neighbour = tl.load(
                    start + source_x[:, None] * stride + channel[None, :] + half, mask=inside, other=0.0
                )
                tap = tl.load(image_filters + (dy * SIZE + dx) * wide, mask=convolved_channel, other=0.0)
                value += neighbour.to(tl.float32) * tap.to(tl.float32)[None, :]

    if BACKWARD:
        g = tl.load(grad + pixel[:, None] * grad_stride + channel[None, :], mask=mask, other=0.0)
        g = g.to(tl.float32)
        target = out + pixel[:, None] * 2 * half + channel[None, :]
        tl.store(target, g * value * gelu_derivative(gate), mask=mask)
        grad_value = g * gelu(gate)
        tl.store(target + half, grad_value, mask=within & (channel < plain)[None, :])
        tl.store(
            convolved + pixel[:, None] * wide + (channel - plain)[None, :],
            grad_value,
            mask=within & convolved_channel[None, :],
        )
    else:
        tl.store(out + pixel[:, None] * half + channel[None, :], gelu(gate) * value, mask=mask)
