"""Sums over all pixels of an image in Triton: the Gram matrix of its channels, and their mean and variance.

Each program adds up one chunk of pixels in fp32; the sums of the chunks are added in order. No fp32 copy of the map
and no normalised q or k is written.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mirage.kernels.maps import with_pixel_stride

CHUNK = 512
"""Pixels that one program adds up."""

STEP = 32
"""Pixels that a program reads at a time."""


def gram(x: Tensor) -> Tensor:
    """Return inner products of channels over pixels, x (b, n, c) → (b, c, c) in fp32."""
    batch, pixels, channels = x.shape
    x, stride = _rows(x)
    chunks = triton.cdiv(pixels, CHUNK)
    partial = torch.empty((batch, chunks, channels, channels), dtype=torch.float32, device=x.device)
    block = _block_size(channels)
    blocks = triton.cdiv(channels, block)
    with torch.cuda.device_of(x):
        _gram[(batch * chunks, blocks * blocks)](
            x, partial, pixels, channels, stride, chunks, blocks, CHUNK=CHUNK, STEP=STEP, CHANNELS=block
        )
    return partial.sum(1)


def gram_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Return the gradient with respect to x (b, n, c): `x (G + G')`, computed in fp32, in the dtype of x."""
    batch, pixels, channels = x.shape
    x, stride = _rows(x)
    symmetric = (grad + grad.mT).float().contiguous()
    out = torch.empty((batch, pixels, channels), dtype=x.dtype, device=x.device)
    block = _block_size(channels)
    pieces = triton.cdiv(pixels, STEP)
    with torch.cuda.device_of(x):
        _gram_gradient[(batch * pieces, triton.cdiv(channels, block))](
            x, symmetric, out, pixels, channels, stride, pieces, STEP=STEP, CHANNELS=block
        )
    return out


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image's mean and sum of squared deviations, x (b, h, w, c) → (b, c) each in fp32."""
    batch, height, width, channels = x.shape
    x, stride = with_pixel_stride(x)
    pixels = height * width
    chunks = triton.cdiv(pixels, CHUNK)
    mean, squares = (
        torch.empty((batch, chunks, channels), dtype=torch.float32, device=x.device) for _ in range(2)
    )
    block = min(triton.next_power_of_2(channels), 32)
    with torch.cuda.device_of(x):
        _moments[(batch * chunks, triton.cdiv(channels, block))](
            x, mean, squares, pixels, channels, stride, chunks, CHUNK=CHUNK, STEP=STEP, CHANNELS=block
        )
    counts = torch.full((chunks, 1), float(CHUNK), device=x.device)
    counts[-1] = pixels - (chunks - 1) * CHUNK
    image_mean = (mean * counts).sum(1) / pixels
    between = ((mean - image_mean[:, None]).square() * counts).sum(1)
    return image_mean, squares.sum(1) + between


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """Return x (b, n, c) and the distance between its rows, in elements."""
    folded, stride = with_pixel_stride(x[:, None])
    return folded[:, 0], stride


def _block_size(channels: int) -> int:
    """Return the channels of one block of a matrix product, at least 16."""
    return min(max(int(triton.next_power_of_2(channels)), 16), 64)


@triton.jit
def _gram(
    x,
    partial,
    pixels,
    channels,
    stride,
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
        here = (image * pixels + pixel) * stride
        valid = pixel < pixels
        left = tl.load(
            x + here[None, :] + a[:, None], mask=valid[None, :] & (a < channels)[:, None], other=0.0
        )
        right = tl.load(
            x + here[:, None] + b[None, :], mask=valid[:, None] & (b < channels)[None, :], other=0.0
        )
        total += tl.dot(left, right, input_precision="ieee")

    row = (tl.program_id(0).to(tl.int64) * channels + a) * channels
    mask = (a < channels)[:, None] & (b < channels)[None, :]
    tl.store(partial + row[:, None] + b[None, :], total, mask=mask)


@triton.jit
def _gram_gradient(
    x,
    symmetric,
    out,
    pixels,
    channels,
    stride,
    pieces,
    STEP: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    image = (tl.program_id(0) // pieces).to(tl.int64)
    pixel = (tl.program_id(0) % pieces) * STEP + tl.arange(0, STEP)
    valid = pixel < pixels
    pixel = image * pixels + pixel
    b = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)

    total = tl.zeros([STEP, CHANNELS], dtype=tl.float32)
    for start in range(0, channels, CHANNELS):
        a = start + tl.arange(0, CHANNELS)
        left = tl.load(
            x + pixel[:, None] * stride + a[None, :], mask=valid[:, None] & (a < channels)[None, :], other=0.0
        )
        right = tl.load(
            symmetric + (image * channels + a)[:, None] * channels + b[None, :],
            mask=(a < channels)[:, None] & (b < channels)[None, :],
            other=0.0,
        )
        total += tl.dot(left.to(tl.float32), right, input_precision="ieee")

    mask = valid[:, None] & (b < channels)[None, :]
    tl.store(out + pixel[:, None] * channels + b[None, :], total, mask=mask)


@triton.jit
def _moments(
    x,
    means,
    squares,
    pixels,
    channels,
    stride,
    chunks,
    CHUNK: tl.constexpr,
    STEP: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    image = (tl.program_id(0) // chunks).to(tl.int64)
    first = (tl.program_id(0) % chunks) * CHUNK
    last = tl.minimum(first + CHUNK, pixels)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    in_range = channel < channels

    # Two passes over the chunk, the second one from cache: sums of squares would cancel far from zero.
    total = tl.zeros([STEP, CHANNELS], dtype=tl.float32)
    for start in range(0, CHUNK, STEP):
        pixel = first + start + tl.arange(0, STEP)
        mask = (pixel < last)[:, None] & in_range[None, :]
        here = (image * pixels + pixel) * stride
        total += tl.load(x + here[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / (last - first)

    spread = tl.zeros([STEP, CHANNELS], dtype=tl.float32)
    for start in range(0, CHUNK, STEP):
        pixel = first + start + tl.arange(0, STEP)
        mask = (pixel < last)[:, None] & in_range[None, :]
        here = (image * pixels + pixel) * stride
        value = tl.load(x + here[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        deviation = tl.where(mask, value - mean[None, :], 0.0)
        spread += deviation * deviation

    row = tl.program_id(0).to(tl.int64) * channels
    tl.store(means + row + channel, mean, mask=in_range)
    tl.store(squares + row + channel, tl.sum(spread, axis=0), mask=in_range)
