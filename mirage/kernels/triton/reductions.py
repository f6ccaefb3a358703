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
    return partial_gram(x).sum(1)


def partial_gram(x: Tensor) -> Tensor:
    """Return the inner products over each chunk of pixels, x (b, n, c) → (b, chunks, c, c) in fp32."""
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
    return partial


def gram_gradient(symmetric: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the gradient with respect to x (b, n, c): `x S` in fp32, in the dtype of x.

    symmetric: the sum S of the gradient of the Gram matrix and its transpose, fp32. out: where to write.
    """
    batch, pixels, channels = x.shape
    x, stride = _rows(x)
    if out is None:
        out = torch.empty((batch, pixels, channels), dtype=x.dtype, device=x.device)
    out_stride = out.stride(1)
    assert (out.stride(0), out.stride(2)) == (pixels * out_stride, 1), "out has uneven rows"
    block = _block_size(channels)
    pieces = triton.cdiv(pixels, STEP)
    with torch.cuda.device_of(x):
        _gram_gradient[(batch * pieces, triton.cdiv(channels, block))](
            *(x, symmetric, out, pixels, channels, stride, out_stride, pieces),
            STEP=STEP,
            CHANNELS=block,
            num_warps=8,
        )
    return out


def batch_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image's mean (b, c), and of the batch (1 + 2c,) the pixels, sums and sums of squares; x (b, h, w, c).

    The first in fp32, the second in float64: each chunk of pixels gives its mean and its squared deviations.
    """
    batch, height, width, channels = x.shape
    x, stride = with_pixel_stride(x)
    pixels = height * width
    chunks = triton.cdiv(pixels, CHUNK)
    mean, squares = (
        torch.empty((batch, chunks, channels), dtype=torch.float32, device=x.device) for _ in range(2)
    )
    image_mean = x.new_empty(batch, channels, dtype=torch.float32)
    sums = x.new_empty(1 + 2 * channels, dtype=torch.float64)
    block = min(triton.next_power_of_2(channels), 32)
    with torch.cuda.device_of(x):
        _moments[(batch * chunks, triton.cdiv(channels, block))](
            x, mean, squares, pixels, channels, stride, chunks, CHUNK=CHUNK, STEP=STEP, CHANNELS=block
        )
        _pool_moments[(triton.cdiv(channels, block),)](
            mean, squares, image_mean, sums, batch, pixels, channels, chunks, CHUNK=CHUNK, CHANNELS=block
        )
    return image_mean, sums


def batch_sums_gradient(grad_mean: Tensor, grad_sums: Tensor, x: Tensor) -> Tensor:
    """Return the gradient with respect to x (b, h, w, c)."""
    batch, height, width, channels = x.shape
    x, stride = with_pixel_stride(x)
    grad_mean, grad_sums = grad_mean.contiguous(), grad_sums.contiguous()
    pixels = height * width
    out = torch.empty((batch, height, width, channels), dtype=x.dtype, device=x.device)
    across = triton.next_power_of_2(channels)
    rows = max(1024 // across, 1)
    pieces = triton.cdiv(pixels, rows)
    with torch.cuda.device_of(x):
        _batch_sums_gradient[(batch * pieces,)](
            grad_mean, grad_sums, x, out, pixels, channels, stride, pieces, ROWS=rows, ACROSS=across
        )
    return out


def update_running(
    sums: Tensor, running_mean: Tensor, running_var: Tensor, tracked: Tensor, momentum: float
) -> None:
    """Move the running statistics (c,) towards those of a batch, except where they are not finite; count the batch."""
    channels = running_mean.shape[0]
    with torch.cuda.device_of(sums):
        _update_running[(1,)](
            sums,
            running_mean,
            running_var,
            tracked,
            channels,
            momentum,
            ACROSS=triton.next_power_of_2(channels),
        )


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
    out_stride,
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
    tl.store(out + pixel[:, None] * out_stride + b[None, :], total, mask=mask)


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


@triton.jit
def _pool_moments(
    means,
    squares,
    image_mean,
    sums,
    batch,
    pixels,
    channels,
    chunks,
    CHUNK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    in_range = channel < channels
    total = tl.zeros([CHANNELS], dtype=tl.float64)
    square = tl.zeros([CHANNELS], dtype=tl.float64)
    for image in range(batch):
        here = tl.zeros([CHANNELS], dtype=tl.float64)
        for chunk in range(chunks):
            row = (image * chunks + chunk) * channels + channel
            count = tl.minimum(pixels - chunk * CHUNK, CHUNK)
            mean = tl.load(means + row, mask=in_range, other=0.0).to(tl.float64)
            here += mean * count
            square += tl.load(squares + row, mask=in_range, other=0.0).to(tl.float64) + mean * mean * count
        tl.store(image_mean + image * channels + channel, here / pixels, mask=in_range)
        total += here
    tl.store(sums + tl.arange(0, 1), tl.zeros([1], dtype=tl.float64) + batch * pixels)
    tl.store(sums + 1 + channel, total, mask=in_range)
    tl.store(sums + 1 + channels + channel, square, mask=in_range)


@triton.jit
def _batch_sums_gradient(
    grad_mean, grad_sums, x, out, pixels, channels, stride, pieces, ROWS: tl.constexpr, ACROSS: tl.constexpr
):
    image = (tl.program_id(0) // pieces).to(tl.int64)
    pixel = (tl.program_id(0) % pieces) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, ACROSS)
    present = channel < channels
    mask = (pixel < pixels)[:, None] & present[None, :]
    constant = (
        tl.load(grad_mean + image * channels + channel, mask=present, other=0.0).to(tl.float64) / pixels
    )
    constant += tl.load(grad_sums + 1 + channel, mask=present, other=0.0).to(tl.float64)
    slope = 2.0 * tl.load(grad_sums + 1 + channels + channel, mask=present, other=0.0).to(tl.float32)
    pixel = image * pixels + pixel
    value = tl.load(x + pixel[:, None] * stride + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    gradient = constant.to(tl.float32)[None, :] + value * slope[None, :]
    tl.store(out + pixel[:, None] * channels + channel[None, :], gradient, mask=mask)


@triton.jit
def _update_running(sums, running_mean, running_var, tracked, channels, momentum, ACROSS: tl.constexpr):
    channel = tl.arange(0, ACROSS)
    present = channel < channels
    count = tl.load(sums)
    mean = tl.load(sums + 1 + channel, mask=present, other=0.0) / count
    var = tl.load(sums + 1 + channels + channel, mask=present, other=1.0) / count - mean * mean
    var = var * count / (count - 1.0)
    # A batch that is not finite must not enter the averages: the training step will be skipped.
    finite = present & (tl.abs(mean) < float("inf")) & (tl.abs(var) < float("inf"))
    old = tl.load(running_mean + channel, mask=present, other=0.0).to(tl.float32)
    tl.store(running_mean + channel, old + momentum * (mean.to(tl.float32) - old), mask=finite)
    old = tl.load(running_var + channel, mask=present, other=0.0).to(tl.float32)
    tl.store(running_var + channel, old + momentum * (var.to(tl.float32) - old), mask=finite)
    tl.store(tracked, tl.load(tracked) + 1)
