"""Gated units around a depthwise convolution in Triton: half of the channels is multiplied by the GELU of the other.

The convolved map stays in registers: forward writes the product; backward computes the convolution again and writes the
gradients. `gated_depthwise` is the middle of the feed-forward network, `gated_values` that of the gated convolution.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mirage.kernels.maps import with_pixel_stride
from mirage.kernels.triton.matrices import matrix_precision
from mirage.kernels.triton.tiling import gelu, gelu_derivative, tile


def gated_depthwise(active: Tensor, filters: Tensor) -> Tensor:
    """Apply prepared filters (3, 3, 2n) and the gate to active (b, h, w, 2n) → (b, h, w, n).

    The kernel that writes `active` applies the GELU before the convolution: here it would be evaluated for every tap.
    """
    out = active.new_empty(*active.shape[:3], active.shape[3] // 2)
    _run_depthwise(active, filters, out)
    return out


def gated_depthwise_gradient(grad: Tensor, contract: Tensor, active: Tensor, filters: Tensor) -> Tensor:
    """Return the gradient of the convolved map (b, h, w, 2n); grad is that of a linear layer (c, n) after the gate."""
    out = torch.empty_like(active)
    _run_depthwise(active, filters, out, grad, contract)
    return out


def _run_depthwise(
    active: Tensor, filters: Tensor, out: Tensor, grad: Tensor | None = None, contract: Tensor | None = None
) -> None:
    batch, height, width, both = active.shape
    pixels, block = tile(width, both // 2)
    if grad is not None:  # a matrix product takes at least 16 rows and columns
        pixels, block = 16, min(max(block, 16), 32)
    pieces = triton.cdiv(width, pixels)
    with torch.cuda.device_of(active):
        _gated_depthwise[(batch * height * pieces, triton.cdiv(both // 2, block))](
            active,
            filters,
            active if grad is None else grad,
            active if contract is None else contract,
            out,
            height,
            width,
            both // 2,
            0 if grad is None else grad.shape[3],
            pieces,
            SIZE=filters.shape[0],
            BACKWARD=grad is not None,
            PRECISION=matrix_precision(),
            PIXELS=pixels,
            CHANNELS=block,
            STEP=32,
        )


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
def _gated_depthwise(
    active,
    filters,
    grad,
    contract,
    out,
    height,
    width,
    half,
    channels,
    pieces,
    SIZE: tl.constexpr,
    BACKWARD: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STEP: tl.constexpr,
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
        start = active + (image.to(tl.int64) * height + source_y) * width * 2 * half
        end = tl.where((source_y >= 0) & (source_y < height), width, 0)
        for dx in tl.static_range(SIZE):
            source_x = column + dx - SIZE // 2
            mask = ((source_x >= 0) & (source_x < end))[:, None] & present[None, :]
            here = start + source_x[:, None] * 2 * half + channel[None, :]
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
        g = _through_linear(
            grad, contract, pixel, column < width, channel, half, channels, PRECISION, PIXELS, CHANNELS, STEP
        )
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
