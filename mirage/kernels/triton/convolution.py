"""Depthwise convolutions of channels-last maps in Triton: learned filters or one per image, any odd size.

Forward: one program per piece of a row and block of channels; each tap is one load, and neighbouring loads hit the
cache. The gradient of the map is the same convolution with reversed filters. The gradient of the filters is a sum over
all pixels: each program adds up a strip of rows for one row of the filter, and the sums of the strips are added in
order.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mirage.kernels.maps import with_pixel_stride
from mirage.kernels.triton.tiling import gelu_derivative, tile

STRIP = 16
"""Rows that one program of the filter gradient adds up."""


def prepared(filters: Tensor, dtype: torch.dtype) -> Tensor:
    """Return filters (c, k, k) or (b, c, k, k) in this dtype, with their channels last as in a map."""
    return unfilled(filters, dtype).copy_(filters.movedim(-3, -1))


def unfilled(filters: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the memory of `prepared` filters, for a kernel that runs before the convolution: see `move_filters`."""
    return torch.empty(filters.movedim(-3, -1).shape, dtype=dtype, device=filters.device)


def convolve(
    x: Tensor,
    filters: Tensor,
    *,
    reverse: bool = False,
    before_gelu: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Correlate x (b, h, w, c) with `prepared` filters (k, k, c) or (b, k, k, c), with zero padding.

    reverse: rotate the filters by 180 degrees, for the gradient of the map.
    before_gelu: a map (b, h, w, c), by whose derivative of GELU the result is multiplied.
    out: the map to write to, or a slice of its channels; by default a new map.
    """
    batch, height, width, channels = x.shape
    size = filters.shape[-2]
    x, x_stride = with_pixel_stride(x)
    if out is None:
        out = torch.empty((batch, height, width, channels), dtype=x.dtype, device=x.device)
    target, out_stride = with_pixel_stride(out)
    assert target is out, "out has an uneven pixel stride"
    pixels, block = tile(width, channels)
    pieces = triton.cdiv(width, pixels)
    with torch.cuda.device_of(x):
        _convolve[(batch * height * pieces, triton.cdiv(channels, block))](
            x,
            filters,
            x if before_gelu is None else before_gelu,
            out,
            height,
            width,
            channels,
            x_stride,
            out_stride,
            size * size * channels if filters.dim() == 4 else 0,
            pieces,
            SIZE=size,
            REVERSE=reverse,
            GELU=before_gelu is not None,
            PIXELS=pixels,
            CHANNELS=block,
        )
    return out


def gradients(grad: Tensor, x: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of a 3x3 convolution of x (b, h, w, c): of x, and of the filters (c, 3, 3) in fp32.

    grad: of the result. filters: `prepared`. One kernel, which reads each map once: what it reads again is in cache.
    """
    batch, height, width, channels = x.shape
    out = torch.empty_like(x)
    rows = 2 * STRIP
    strips = triton.cdiv(height, rows)
    pixels, block = tile(width, channels)
    pieces = triton.cdiv(width, pixels)
    partial = torch.empty((batch * strips * pieces, channels, 9), dtype=torch.float32, device=grad.device)
    with torch.cuda.device_of(grad):
        _gradients[(batch * strips * pieces, triton.cdiv(channels, block))](
            grad,
            x,
            filters,
            out,
            partial,
            height,
            width,
            channels,
            strips,
            pieces,
            STRIP=rows,
            PIXELS=pixels,
            CHANNELS=block,
            num_warps=8,
        )
    return out, partial.sum(0).view(channels, 3, 3)


def filter_gradient(grad: Tensor, x: Tensor, filters: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return the gradient of `convolve` with respect to filters (c, k, k) or (b, c, k, k), in their shape.

    grad, x (b, h, w, c). dtype: that of the result, by default that of the filters.
    """
    batch, height, width, channels = x.shape
    size = filters.shape[-1]
    grad, grad_stride = with_pixel_stride(grad)
    x, x_stride = with_pixel_stride(x)
    strips = triton.cdiv(height, STRIP)
    partial = torch.empty((batch, strips, channels, size, size), dtype=torch.float32, device=x.device)
    block = min(triton.next_power_of_2(channels), 16)
    pixels = min(triton.next_power_of_2(width), 256 // block)
    with torch.cuda.device_of(x):
        _filter_gradient[(batch * strips * size, triton.cdiv(channels, block))](
            grad,
            x,
            partial,
            height,
            width,
            channels,
            grad_stride,
            x_stride,
            strips,
            triton.cdiv(width, pixels),
            SIZE=size,
            ACROSS=triton.next_power_of_2(size),
            STRIP=STRIP,
            PIXELS=pixels,
            CHANNELS=block,
        )
    total = partial.sum(1) if filters.dim() == 4 else partial.sum((0, 1))
    return total.to(dtype or filters.dtype)


@triton.jit
def move_filters(filters, target, count, SHARE: tl.constexpr):
    """Write 3x3 filters (count, 3, 3) as `prepared` ones; the programs of a launch share them."""
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    for start in range(program * SHARE, 9 * count, tl.num_programs(0) * tl.num_programs(1) * SHARE):
        place = start + tl.arange(0, SHARE)
        within = place < 9 * count
        tap = tl.load(filters + place % count * 9 + place // count, mask=within, other=0.0)
        tl.store(target + place, tap, mask=within)


@triton.jit
def _convolve(
    x,
    filters,
    before,
    out,
    height,
    width,
    channels,
    x_stride,
    out_stride,
    image_stride,
    pieces,
    SIZE: tl.constexpr,
    REVERSE: tl.constexpr,
    GELU: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    row = tl.program_id(0) // pieces  # over all images
    image = row // height
    y = row % height
    column = (tl.program_id(0) % pieces) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    present = channel < channels
    image_filters = filters + image.to(tl.int64) * image_stride

    total = tl.zeros([PIXELS, CHANNELS], dtype=tl.float32)
    for dy in range(SIZE):  # not unrolled: 49 filters of code would not fit the instruction cache
        source_y = y + dy - SIZE // 2
        start = x + (image.to(tl.int64) * height + source_y) * width * x_stride
        # Rows outside the image have no pixels.
        end = tl.where((source_y >= 0) & (source_y < height), width, 0)
        for dx in tl.static_range(SIZE):
            source_x = column + dx - SIZE // 2
            inside = (source_x >= 0) & (source_x < end)
            mask = inside[:, None] & present[None, :]
            value = tl.load(start + source_x[:, None] * x_stride + channel[None, :], mask=mask, other=0.0)
            number = dy * SIZE + dx
            if REVERSE:
                number = SIZE * SIZE - 1 - number
            tap = tl.load(image_filters + number * channels + channel, mask=present, other=0.0)
            total += value.to(tl.float32) * tap.to(tl.float32)[None, :]

    pixel = row.to(tl.int64) * width + column
    mask = (column < width)[:, None] & present[None, :]
    if GELU:
        value = tl.load(before + pixel[:, None] * channels + channel[None, :], mask=mask, other=0.0)
        total *= gelu_derivative(value.to(tl.float32))
    tl.store(out + pixel[:, None] * out_stride + channel[None, :], total, mask=mask)


@triton.jit
def _filter_gradient(
    grad,
    x,
    partial,
    height,
    width,
    channels,
    grad_stride,
    x_stride,
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
        source_y = y + dy - SIZE // 2
        column = (piece % pieces) * PIXELS + tl.arange(0, PIXELS)
        source_x = column[None, :] + dx[:, None] - SIZE // 2
        valid = column < tl.where(y < height, width, 0)
        pixel = (image * height + y) * width + column
        mask = valid[:, None] & present[None, :]
        g = tl.load(grad + pixel[:, None] * grad_stride + channel[None, :], mask=mask, other=0.0)

        end = tl.where((source_y >= 0) & (source_y < height), width, 0)
        inside = (source_x >= 0) & (source_x < end) & (dx < SIZE)[:, None] & valid[None, :]
        source_pixel = (image * height + source_y) * width + source_x
        value = tl.load(
            x + source_pixel[:, :, None] * x_stride + channel[None, None, :],
            mask=inside[:, :, None] & present[None, None, :],
            other=0.0,
        )
        total += value.to(tl.float32) * g.to(tl.float32)[None, :, :]

    row = ((image * strips + strip) * channels + channel) * SIZE + dy
    mask = (dx < SIZE)[:, None] & present[None, :]
    tl.store(partial + row[None, :] * SIZE + dx[:, None], tl.sum(total, axis=1), mask=mask)


@triton.jit
def neighbours(x, row, y, dy, dx, height, width, column, channel, channels, stride):
    """Read x, in fp32, (dy, dx) away from some pixels of row y; 0 outside the image. row: of all images."""
    source_y, source_x = y + dy, column + dx
    inside = (source_x >= 0) & (source_x < tl.where((source_y >= 0) & (source_y < height), width, 0))
    start = x + (row + dy).to(tl.int64) * width * stride
    value = tl.load(
        start + source_x[:, None] * stride + channel[None, :],
        mask=inside[:, None] & (channel < channels)[None, :],
        other=0.0,
    )
    return value.to(tl.float32)


@triton.jit
def map_gradient(grad, filters, row, y, height, width, column, channel, channels):
    """Return the gradient of the map before a 3x3 convolution at some pixels: that with reversed filters."""
    total = tl.zeros([column.shape[0], channel.shape[0]], dtype=tl.float32)
    for dy in range(3):
        for dx in tl.static_range(3):
            g = neighbours(grad, row, y, dy - 1, dx - 1, height, width, column, channel, channels, channels)
            tap = tl.load(
                filters + (8 - dy * 3 - dx) * channels + channel, mask=channel < channels, other=0.0
            )
            total += g * tap.to(tl.float32)[None, :]
    return total


@triton.jit
def tap_shares(grad, x, row, y, height, width, column, channel, channels, stride):
    """Return what some pixels add to the gradient of each tap of a 3x3 convolution of x: nine rows of (16, channels).

    grad: of the result at these pixels, 0 outside the image.
    """
    number = tl.arange(0, 16)
    shares = tl.zeros([16, channel.shape[0]], dtype=tl.float32)
    for dy in range(3):
        for dx in tl.static_range(3):
            value = neighbours(x, row, y, dy - 1, dx - 1, height, width, column, channel, channels, stride)
            share = tl.sum(grad * value, axis=0)
            shares += tl.where((number == dy * 3 + dx)[:, None], share[None, :], 0.0)
    return shares


@triton.jit
def store_taps(target, taps, channel, channels, REVERSE: tl.constexpr):
    """Write sums of `tap_shares` as (channels, 9), or with the last tap first."""
    number = tl.arange(0, 16)
    place = 8 - number if REVERSE else number
    tl.store(
        target + channel[None, :] * 9 + place[:, None],
        taps,
        mask=(number < 9)[:, None] & (channel < channels)[None, :],
    )


@triton.jit
def _gradients(
    grad,
    x,
    filters,
    out,
    partial,
    height,
    width,
    channels,
    strips,
    pieces,
    STRIP: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    piece = tl.program_id(0) % pieces
    strip = tl.program_id(0) // pieces % strips
    image = tl.program_id(0) // pieces // strips
    column = piece * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    taps = tl.zeros([16, CHANNELS], dtype=tl.float32)
    for line in range(STRIP):
        y = strip * STRIP + line
        row = image * height + y
        here = (row.to(tl.int64) * width + column)[:, None] * channels + channel[None, :]
        mask = (column < tl.where(y < height, width, 0))[:, None] & (channel < channels)[None, :]
        g = tl.load(grad + here, mask=mask, other=0.0).to(tl.float32)
        taps += tap_shares(g, x, row, y, height, width, column, channel, channels, channels)
        total = map_gradient(grad, filters, row, y, height, width, column, channel, channels)
        tl.store(out + here, total, mask=mask)
    store_taps(partial + tl.program_id(0).to(tl.int64) * channels * 9, taps, channel, channels, REVERSE=False)
