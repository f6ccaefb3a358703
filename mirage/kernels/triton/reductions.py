"""Sums over all pixels of an image in Triton: the Gram matrix of its channels, and their mean and spread.

Each program adds up one chunk of pixels in fp32; the chunks' sums are combined in order. No fp32 copy of the map is
written, and no normalised q or k.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mirage.kernels.triton.tiling import pixel_step

CHUNK = 512
"""Pixels that one program adds up."""

STEP = 32
"""Pixels that it reads at a time."""


def gram(x: Tensor) -> Tensor:
    """x (b, n, c) → inner products of channels over pixels, (b, c, c) in fp32."""
    batch, pixels, channels = x.shape
    x, step = _rows(x)
    chunks = triton.cdiv(pixels, CHUNK)
    partial = torch.empty((batch, chunks, channels, channels), dtype=torch.float32, device=x.device)
    wide = _width(channels)
    blocks = triton.cdiv(channels, wide)
    with torch.cuda.device_of(x):
        _gram[(batch * chunks, blocks * blocks)](
            x, partial, pixels, channels, step, chunks, blocks, CHUNK=CHUNK, STEP=STEP, CHANNELS=wide
        )
    return partial.sum(1)


def gram_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient with respect to x (b, n, c): `x (G + G')` in fp32, in the type of x."""
    batch, pixels, channels = x.shape
    x, step = _rows(x)
    both = (grad + grad.mT).float().contiguous()
    out = torch.empty((batch, pixels, channels), dtype=x.dtype, device=x.device)
    wide = _width(channels)
    pieces = triton.cdiv(pixels, STEP)
    with torch.cuda.device_of(x):
        _gram_gradient[(batch * pieces, triton.cdiv(channels, wide))](
            x, both, out, pixels, channels, step, pieces, STEP=STEP, CHANNELS=wide
        )
    return out


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (b, h, w, c) → per-image mean and sum of squared deviations, (b, c) each in fp32."""
    batch, height, width, channels = x.shape
    x, step = pixel_step(x)
    pixels = height * width
    chunks = triton.cdiv(pixels, CHUNK)
    mean, squares = (
        torch.empty((batch, chunks, channels), dtype=torch.float32, device=x.device) for _ in range(2)
    )
    wide = min(triton.next_power_of_2(channels), 32)
    with torch.cuda.device_of(x):
        _moments[(batch * chunks, triton.cdiv(channels, wide))](
            x, mean, squares, pixels, channels, step, chunks, CHUNK=CHUNK, STEP=STEP, CHANNELS=wide
        )
    counts = torch.full((chunks, 1), float(CHUNK), device=x.device)
    counts[-1] = pixels - (chunks - 1) * CHUNK
    whole = (mean * counts).sum(1) / pixels
    between = ((mean - whole[:, None]).square() * counts).sum(1)
    return whole, squares.sum(1) + between


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """x (b, n, c) and the distance of its rows."""
    wide, step = pixel_step(x[:, None])
    return wide[:, 0], step


def _width(channels: int) -> int:
    """Channels of one block of a matrix product, at least the 16 that it takes."""
    return min(max(int(triton.next_power_of_2(channels)), 16), 64)


@triton.jit
def _gram(
    x,
    partial,
    pixels,
    channels,
    step,
    chunks,
    blocks,
    CHUNK: tl.constexpr,
    STEP: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    image = (tl.program_id(0) // chunks).to(tl.int64)
    first = (tl.program_id(0) % chunks) * CHUNK
    a = tl.program_id(1) // blocks * CHANNELS + tl.arange(0, CHANNELS)
    b = tl.program_id(1) % blocks * CHANNELS + tl.arange(0, CHANNELS)

    total = tl.zeros([CHANNELS, CHANNELS], dtype=tl.float32)
    for start in range(0, CHUNK, STEP):
        pixel = first + start + tl.arange(0, STEP)
        here = (image * pixels + pixel) * step
        known = pixel < pixels
        left = tl.load(
            x + here[None, :] + a[:, None], mask=known[None, :] & (a < channels)[:, None], other=0.0
        )
        right = tl.load(
            x + here[:, None] + b[None, :], mask=known[:, None] & (b < channels)[None, :], other=0.0
        )
        total += tl.dot(left, right, input_precision="ieee")

    row = (tl.program_id(0).to(tl.int64) * channels + a) * channels
    mask = (a < channels)[:, None] & (b < channels)[None, :]
    tl.store(partial + row[:, None] + b[None, :], total, mask=mask)


@triton.jit
def _gram_gradient(
    x,
    both,
    out,
    pixels,
    channels,
    step,
    pieces,
    STEP: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    image = (tl.program_id(0) // pieces).to(tl.int64)
    pixel = (tl.program_id(0) % pieces) * STEP + tl.arange(0, STEP)
    known = pixel < pixels
    pixel = image * pixels + pixel
    b = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)

    total = tl.zeros([STEP, CHANNELS], dtype=tl.float32)
    for start in range(0, channels, CHANNELS):
        a = start + tl.arange(0, CHANNELS)
        left = tl.load(
            x + pixel[:, None] * step + a[None, :], mask=known[:, None] & (a < channels)[None, :], other=0.0
        )
        right = tl.load(
            both + (image * channels + a)[:, None] * channels + b[None, :],
            mask=(a < channels)[:, None] & (b < channels)[None, :],
            other=0.0,
        )
        total += tl.dot(left.to(tl.float32), right, input_precision="ieee")

    mask = known[:, None] & (b < channels)[None, :]
    tl.store(out + pixel[:, None] * channels + b[None, :], total, mask=mask)


@triton.jit
def _moments(
    x,
    means,
    squares,
    pixels,
    channels,
    step,
    chunks,
    CHUNK: tl.constexpr,
    STEP: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    image = (tl.program_id(0) // chunks).to(tl.int64)
    first = (tl.program_id(0) % chunks) * CHUNK
    last = tl.minimum(first + CHUNK, pixels)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    present = channel < channels

    # Twice over the chunk, the second time from cache: sums of squares would cancel far from zero.
    total = tl.zeros([STEP, CHANNELS], dtype=tl.float32)
    for start in range(0, CHUNK, STEP):
        pixel = first + start + tl.arange(0, STEP)
        mask = (pixel < last)[:, None] & present[None, :]
        here = (image * pixels + pixel) * step
        total += tl.load(x + here[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / (last - first)

    spread = tl.zeros([STEP, CHANNELS], dtype=tl.float32)
    for start in range(0, CHUNK, STEP):
        pixel = first + start + tl.arange(0, STEP)
        mask = (pixel < last)[:, None] & present[None, :]
        here = (image * pixels + pixel) * step
        value = tl.load(x + here[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        apart = tl.where(mask, value - mean[None, :], 0.0)
        spread += apart * apart

    row = tl.program_id(0).to(tl.int64) * channels
    tl.store(means + row + channel, mean, mask=present)
    tl.store(squares + row + channel, tl.sum(spread, axis=0), mask=present)
