"""Gated units around a depthwise convolution in Triton: half of the channels is multiplied by the GELU of the other.

The convolved map stays in registers, and in the feed-forward network (`gated_depthwise`) the product too: its kernels
hold the linear layer after it. Backward computes both again. `run_values` is the middle of the gated convolution.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mirage.kernels.maps import with_pixel_stride
from mirage.kernels.triton.convolution import neighbours, store_taps, tap_shares
from mirage.kernels.triton.matrices import matrix_precision, padded, stretches
from mirage.kernels.triton.tiling import gelu, gelu_derivative, tile


def gated_depthwise(active: Tensor, filters: Tensor, contract: Tensor, shortcut: Tensor | None) -> Tensor:
    """Apply prepared filters (3, 3, 2n), the gate and a linear layer (c, n) to active (b, h, w, 2n), add the shortcut.

    The kernel that writes `active` applies the GELU before the convolution: here it would be evaluated for every tap.
    """
    batch, height, width, both = active.shape
    channels = contract.shape[0]
    out = active.new_empty(batch, height, width, channels)
    across = padded(channels)
    pixels = min(padded(width), 32 if across <= 64 else 16)
    pieces = triton.cdiv(width, pixels)
    with torch.cuda.device_of(active):
        _gated_depthwise[(batch * height * pieces,)](
            active,
            filters,
            contract,
            out if shortcut is None else shortcut,
            out,
            height,
            width,
            both // 2,
            channels,
            pieces,
            SHORTCUT=shortcut is not None,
            PRECISION=matrix_precision(),
            PIXELS=pixels,
            CHANNELS=32,
            ACROSS=across,
            num_warps=8,
        )
    return out


def gated_depthwise_gradient(
    grad: Tensor, contract: Tensor, active: Tensor, filters: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the convolved map (b, h, w, 2n) and, in fp32, of contract (c, n) and filters (2n, 3, 3).

    grad (b, h, w, c): of what `contract` makes of the gated map.
    """
    batch, height, width, _ = active.shape
    channels, half = contract.shape
    out = torch.empty_like(active)
    across, pixels = padded(channels), 16
    block = 32 if across <= 128 else 16
    pieces, blocks = triton.cdiv(width, pixels), triton.cdiv(half, block)
    programs, each = stretches(batch * height * pieces, contract, filters)
    of_contract, of_filters = (
        torch.empty((programs, *shape), dtype=torch.float32, device=active.device)
        for shape in ((channels, half), (2 * half, 3, 3))
    )
    with torch.cuda.device_of(active):
        _gated_depthwise_gradient[(blocks, programs)](
            active,
            filters,
            grad,
            contract,
            out,
            of_contract,
            of_filters,
            batch * height,
            height,
            width,
            half,
            channels,
            pieces,
            each,
            PRECISION=matrix_precision(),
            PIXELS=pixels,
            CHANNELS=block,
            ACROSS=across,
            num_warps=4 if across <= 64 else 8,
            num_stages=1,
        )
    return out, of_contract.sum(0), of_filters.sum(0)


def run_values(
    hidden: Tensor,
    filters: Tensor,
    out: Tensor,
    convolved: Tensor,
    scale: Tensor | None,
    grad: Tensor | None = None,
    contract: Tensor | None = None,
) -> None:
    """Apply prepared filters (b, k, k, m) and the gate to hidden (b, h, w, 2n); write (b, h, w, n) to out.

    The first n channels are the gates; of the others the last m are convolved. scale (b,): a factor for each image.
    With the gradient of a linear layer `contract` (c, n) after the gate, write the gradient of hidden to out, except
    for what is convolved: its gradient after the convolution goes to `convolved` (b, h, w, m).
    """
    batch, height, width, both = hidden.shape
    wide, size = filters.shape[-1], filters.shape[-2]
    hidden, stride = with_pixel_stride(hidden)
    pixels, block = tile(width, both // 2)
    if grad is not None:  # a matrix product takes at least 16 rows and columns
        pixels, block = 16, min(max(block, 16), 32)
    pieces = triton.cdiv(width, pixels)
    with torch.cuda.device_of(hidden):
        _gated_values[(batch * height * pieces, triton.cdiv(both // 2, block))](
            hidden,
            filters,
            hidden if grad is None else grad,
            hidden if contract is None else contract,
            hidden if scale is None else scale,
            out,
            convolved,
            height,
            width,
            both // 2,
            wide,
            stride,
            0 if grad is None else grad.shape[-1],
            pieces,
            SIZE=size,
            BACKWARD=grad is not None,
            PRECISION=matrix_precision(),
            STEP=32,
            SCALED=scale is not None,
            PIXELS=pixels,
            CHANNELS=block,
        )


@triton.jit
def _through_linear(
    grad,
    contract,
    pixel,
    valid,
    channel,
    half,
    channels,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Return the gradient of the gated map at some pixels and channels, for that of a linear layer (c, n) after it."""
    g = tl.zeros([PIXELS, CHANNELS], dtype=tl.float32)
    for start in range(0, channels, STEP):
        inner = start + tl.arange(0, STEP)
        within = inner < channels
        upstream = tl.load(
            grad + pixel[:, None] * channels + inner[None, :],
            mask=valid[:, None] & within[None, :],
            other=0.0,
        )
        matrix = tl.load(
            contract + inner[:, None] * half + channel[None, :],
            mask=within[:, None] & (channel < half)[None, :],
            other=0.0,
        )
        g += tl.dot(upstream, matrix.to(upstream.dtype), input_precision=PRECISION)
    return g


@triton.jit
def _convolved(active, filters, row, y, height, width, column, channel, half):
    """Return gates and values at some pixels of row y after the 3x3 convolution, in fp32. row: of all images."""
    present = channel < half
    gate = tl.zeros([column.shape[0], channel.shape[0]], dtype=tl.float32)
    value = tl.zeros([column.shape[0], channel.shape[0]], dtype=tl.float32)
    for dy in range(3):
        for dx in tl.static_range(3):
            tap = filters + (dy * 3 + dx) * 2 * half + channel
            before = neighbours(
                active, row, y, dy - 1, dx - 1, height, width, column, channel, half, 2 * half
            )
            gate += before * tl.load(tap, mask=present, other=0.0).to(tl.float32)[None, :]
            before = neighbours(
                active + half, row, y, dy - 1, dx - 1, height, width, column, channel, half, 2 * half
            )
            value += before * tl.load(tap + half, mask=present, other=0.0).to(tl.float32)[None, :]
    return gate, value


@triton.jit
def _gated_depthwise(
    active,
    filters,
    contract,
    shortcut,
    out,
    height,
    width,
    half,
    channels,
    pieces,
    SHORTCUT: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACROSS: tl.constexpr,
):
    row = tl.program_id(0) // pieces  # over all images
    column = (tl.program_id(0) % pieces) * PIXELS + tl.arange(0, PIXELS)
    output = tl.arange(0, ACROSS)
    here = (row.to(tl.int64) * width + column)[:, None] * channels + output[None, :]
    mask = (column < width)[:, None] & (output < channels)[None, :]
    total = tl.zeros([PIXELS, ACROSS], dtype=tl.float32)
    if SHORTCUT:
        total += tl.load(shortcut + here, mask=mask, other=0.0).to(tl.float32)
    for first in range(0, half, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        gate, value = _convolved(active, filters, row, row % height, height, width, column, channel, half)
        gated = (gelu(gate) * value).to(out.dtype.element_ty)
        matrix = tl.load(
            contract + output[None, :] * half + channel[:, None],
            mask=(channel < half)[:, None] & (output < channels)[None, :],
            other=0.0,
        )
        total += tl.dot(gated, matrix.to(gated.dtype), input_precision=PRECISION)
    tl.store(out + here, total, mask=mask)


@triton.jit
def _gated_depthwise_gradient(
    active,
    filters,
    grad,
    contract,
    out,
    of_contract,
    of_filters,
    rows,
    height,
    width,
    half,
    channels,
    pieces,
    tiles,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACROSS: tl.constexpr,
):
    # The blocks of channels of the same pixels run side by side, so that they read the gradient from cache.
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    output = tl.arange(0, ACROSS)
    present, wanted = channel < half, output < channels
    matrix = tl.load(
        contract + output[:, None] * half + channel[None, :],
        mask=wanted[:, None] & present[None, :],
        other=0.0,
    ).to(active.dtype.element_ty)
    weight_sum = tl.zeros([ACROSS, CHANNELS], dtype=tl.float32)
    gate_taps = tl.zeros([16, CHANNELS], dtype=tl.float32)
    value_taps = tl.zeros([16, CHANNELS], dtype=tl.float32)
    for index in range(tiles):
        tile = tl.program_id(1) * tiles + index
        row = tile // pieces  # over all images
        column = (tile % pieces) * PIXELS + tl.arange(0, PIXELS)
        valid = column < tl.where(row < rows, width, 0)
        y = tl.where(row < rows, row % height, 2 * height)  # no pixels are near
        pixel = row.to(tl.int64) * width + column
        gate, value = _convolved(active, filters, row, y, height, width, column, channel, half)
        upstream = tl.load(
            grad + pixel[:, None] * channels + output[None, :],
            mask=valid[:, None] & wanted[None, :],
            other=0.0,
        )
        g = tl.dot(upstream, matrix, input_precision=PRECISION)
        opened = gelu(gate)
        gated = (opened * value).to(upstream.dtype)
        weight_sum += tl.dot(tl.trans(upstream), gated, input_precision=PRECISION)
        gate, value = g * value * gelu_derivative(gate), g * opened  # from here on their gradients
        target = out + pixel[:, None] * 2 * half + channel[None, :]
        mask = valid[:, None] & present[None, :]
        tl.store(target, gate, mask=mask)
        tl.store(target + half, value, mask=mask)
        gate_taps += tap_shares(gate, active, row, y, height, width, column, channel, half, 2 * half)
        value_taps += tap_shares(value, active + half, row, y, height, width, column, channel, half, 2 * half)
    target = of_filters + tl.program_id(1).to(tl.int64) * 2 * half * 9
    store_taps(target, gate_taps, channel, half, REVERSE=False)
    store_taps(target + half * 9, value_taps, channel, half, REVERSE=False)
    target = (
        of_contract + (tl.program_id(1).to(tl.int64) * channels + output[:, None]) * half + channel[None, :]
    )
    tl.store(target, weight_sum, mask=wanted[:, None] & present[None, :])


@triton.jit
def _gated_values(
    hidden,
    filters,
    grad,
    contract,
    scale,
    out,
    convolved,
    height,
    width,
    half,
    wide,
    stride,
    channels,
    pieces,
    SIZE: tl.constexpr,
    BACKWARD: tl.constexpr,
    PRECISION: tl.constexpr,
    STEP: tl.constexpr,
    SCALED: tl.constexpr,
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

    factor = 1.0
    if SCALED:
        factor = tl.load(scale + image).to(tl.float32)
    if BACKWARD:
        g = _through_linear(
            grad, contract, pixel, column < width, channel, half, channels, PRECISION, PIXELS, CHANNELS, STEP
        )
        g *= factor
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
        tl.store(out + pixel[:, None] * half + channel[None, :], gelu(gate) * value * factor, mask=mask)
