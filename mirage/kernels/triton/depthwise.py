"""Depthwise convolutions of channels-last maps in Triton: learned kernels or one per image, any odd size.

Forward: one program per piece of a row and block of channels; a tap is one load, the neighbours' come from cache. The
gradient of the map is the same convolution with the taps in reverse. The gradient of the taps is a sum over all pixels:
each program adds up a strip of rows for one row of taps, and the strips' sums are added in order.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mirage.kernels.triton.tiling import gelu_slope, pixel_step, side_by_side, tile

STRIP = 16
"""Rows that one program of the taps' gradient adds up."""


def convolve(
    x: Tensor,
    taps: Tensor,
    *,
    reverse: bool = False,
    before_gelu: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Correlate x (b, h, w, c) with taps (c, k, k) or (b, c, k, k), zero padding.

    reverse: with the taps turned by 180 degrees, which gives the gradient of the map.
    before_gelu: multiply by GELU's slope there, the gradient of a GELU before the convolution.
    out: where to write, a slice of a wider map perhaps; a new map by default.
    """
    batch, height, width, channels = x.shape
    size = taps.shape[-1]
    x, x_step = pixel_step(x)
    taps = side_by_side(taps)
    before, before_step = (x, 0) if before_gelu is None else pixel_step(before_gelu)
    if out is None:
        out = torch.empty((batch, height, width, channels), dtype=x.dtype, device=x.device)
    target, out_step = pixel_step(out)
    assert target is out, "evenly spaced pixels"
    pixels, wide = tile(width, channels)
    pieces = triton.cdiv(width, pixels)
    with torch.cuda.device_of(x):
        _convolve[(batch * height * pieces, triton.cdiv(channels, wide))](
            x,
            taps,
            before,
            out,
            height,
            width,
            channels,
            x_step,
            before_step,
            out_step,
            size * size * channels if taps.dim() == 4 else 0,
            pieces,
            SIZE=size,
            REVERSE=reverse,
            SLOPE=before_gelu is not None,
            PIXELS=pixels,
            CHANNELS=wide,
        )
    return out


def taps_gradient(grad: Tensor, x: Tensor, taps: Tensor) -> Tensor:
    """Gradient of `convolve` with respect to its taps, in their shape and type; grad and x (b, h, w, c)."""
    batch, height, width, channels = x.shape
    size = taps.shape[-1]
    grad, grad_step = pixel_step(grad)
    x, x_step = pixel_step(x)
    strips = triton.cdiv(height, STRIP)
    partial = torch.empty((batch, strips, size, size, channels), dtype=torch.float32, device=x.device)
    wide = min(triton.next_power_of_2(channels), 16)
    pixels = min(triton.next_power_of_2(width), 256 // wide)
    with torch.cuda.device_of(x):
        _taps_gradient[(batch * strips * size, triton.cdiv(channels, wide))](
            grad,
            x,
            partial,
            height,
            width,
            channels,
            grad_step,
            x_step,
            strips,
            triton.cdiv(width, pixels),
            SIZE=size,
            ACROSS=triton.next_power_of_2(size),
            STRIP=STRIP,
            PIXELS=pixels,
            CHANNELS=wide,
        )
    total = partial.sum(1) if taps.dim() == 4 else partial.sum((0, 1))
    return total.movedim(-1, -3).to(taps.dtype).contiguous()


@triton.jit
def _convolve(
    x,
    taps,
    before,
    out,
    height,
    width,
    channels,
    x_step,
    before_step,
    out_step,
    image_taps,
    pieces,
    SIZE: tl.constexpr,
    REVERSE: tl.constexpr,
    SLOPE: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    row = tl.program_id(0) // pieces  # of all images
    image = row // height
    y = row % height
    column = (tl.program_id(0) % pieces) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    present = channel < channels
    mine = taps + image.to(tl.int64) * image_taps

    total = tl.zeros([PIXELS, CHANNELS], dtype=tl.float32)
    for dy in range(SIZE):  # not unrolled: 49 taps of code would not fit the instruction cache
        there = y + dy - SIZE // 2
        start = x + (image.to(tl.int64) * height + there) * width * x_step
        end = tl.where((there >= 0) & (there < height), width, 0)  # of the row; above and below there is none
        for dx in tl.static_range(SIZE):
            at = column + dx - SIZE // 2
            inside = (at >= 0) & (at < end)
            mask = inside[:, None] & present[None, :]
            value = tl.load(start + at[:, None] * x_step + channel[None, :], mask=mask, other=0.0)
            number = dy * SIZE + dx
            if REVERSE:
                number = SIZE * SIZE - 1 - number
            tap = tl.load(mine + number * channels + channel, mask=present, other=0.0)
            total += value.to(tl.float32) * tap.to(tl.float32)[None, :]

    pixel = row.to(tl.int64) * width + column
    mask = (column < width)[:, None] & present[None, :]
    if SLOPE:
        u = tl.load(before + pixel[:, None] * before_step + channel[None, :], mask=mask, other=0.0)
        total *= gelu_slope(u.to(tl.float32))
    tl.store(out + pixel[:, None] * out_step + channel[None, :], total, mask=mask)


@triton.jit
def _taps_gradient(
    grad,
    x,
    partial,
    height,
    width,
    channels,
    grad_step,
    x_step,
    strips,
    pieces,
    SIZE: tl.constexpr,
    ACROSS: tl.constexpr,
    STRIP: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    dy = tl.program_id(0) % SIZE
    strip = tl.program_id(0) // SIZE % strips
    image = (tl.program_id(0) // SIZE // strips).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    present = channel < channels
    dx = tl.arange(0, ACROSS)

    total = tl.zeros([ACROSS, PIXELS, CHANNELS], dtype=tl.float32)
    for piece in range(STRIP * pieces):
        y = strip * STRIP + piece // pieces
        there = y + dy - SIZE // 2
        column = (piece % pieces) * PIXELS + tl.arange(0, PIXELS)
        at = column[None, :] + dx[:, None] - SIZE // 2
        known = column < tl.where(y < height, width, 0)
        pixel = (image * height + y) * width + column
        mask = known[:, None] & present[None, :]
        g = tl.load(grad + pixel[:, None] * grad_step + channel[None, :], mask=mask, other=0.0)

        end = tl.where((there >= 0) & (there < height), width, 0)
        inside = (at >= 0) & (at < end) & (dx < SIZE)[:, None] & known[None, :]
        pixel_there = (image * height + there) * width + at
        value = tl.load(
            x + pixel_there[:, :, None] * x_step + channel[None, None, :],
            mask=inside[:, :, None] & present[None, None, :],
            other=0.0,
        )
        total += value.to(tl.float32) * g.to(tl.float32)[None, :, :]

    row = ((image * strips + strip) * SIZE + dy) * SIZE + dx
    mask = (dx < SIZE)[:, None] & present[None, :]
    tl.store(partial + row[:, None] * channels + channel[None, :], tl.sum(total, axis=1), mask=mask)
