"""Layer norm in Triton, by itself or with the linear layer and the GELU after it: the normalised map is not written.

The gradient reads whole pixels, so it computes their mean and deviation again. For the gradient of the weight it writes
the normalised map.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mirage.kernels.maps import with_pixel_stride
from mirage.kernels.triton.convolution import move_filters
from mirage.kernels.triton.matrices import matrix_precision
from mirage.kernels.triton.tiling import gelu

CHUNK = 256
"""Pixels of one program of the gradient."""


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Normalise the channels of x (b, h, w, c)."""
    channels, pixels = x.shape[3], x.shape[:3].numel()
    x, stride = with_pixel_stride(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    across = triton.next_power_of_2(channels)
    rows = max(2048 // across, 1)
    with torch.cuda.device_of(x):
        _layer_norm[(triton.cdiv(pixels, rows),)](
            x, scale, shift, out, pixels, channels, stride, eps, ROWS=rows, ACROSS=across
        )
    return out


def norm_linear(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    eps: float,
    with_hidden: bool = False,
    move: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Apply layer norm, weight (n, c) and GELU to x (b, h, w, c).

    Return the result, and with_hidden what the GELU takes, otherwise the result once more. move: 3x3 filters, and
    where to write them `prepared`.
    """
    channels, pixels, outputs = x.shape[3], x.shape[:3].numel(), weight.shape[0]
    x, stride = with_pixel_stride(x)
    active = x.new_empty(*x.shape[:3], outputs)
    hidden = torch.empty_like(active) if with_hidden else active
    across = max(triton.next_power_of_2(channels), 16)
    rows = 64 if across <= 64 else 32 if across <= 256 else 16
    with torch.cuda.device_of(x):
        _norm_linear[(triton.cdiv(pixels, rows),)](
            x,
            scale,
            shift,
            weight,
            hidden,
            active,
            *(move or (active, active)),
            pixels,
            channels,
            outputs,
            0 if move is None else move[0].shape[0],
            stride,
            eps,
            HIDDEN=with_hidden,
            MOVE=move is not None,
            PRECISION=matrix_precision(),
            ROWS=rows,
            ACROSS=across,
            OUTPUTS=32 if across <= 256 else 16,
            num_stages=2,
        )
    return active, hidden


def norm_gradient(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    weight: Tensor | None = None,
    shortcut: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients with respect to x, and scale and shift (2, c), and the normalised map (pixels, c).

    grad: of the normalised map, in parts (parts, b, h, w, c) that are added; or of what weight (n, c) makes of that
    map, in one part. Without weight the third is empty. shortcut: a gradient that is added to that of x.
    """
    channels = x.shape[3]
    x, stride = with_pixel_stride(x)
    grad = grad.contiguous()
    pixels = x.shape[:3].numel()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    normed = out.new_empty((0 if weight is None else pixels, channels))
    around = out if shortcut is None else shortcut.contiguous()
    across = triton.next_power_of_2(channels)
    rows, chunk = max(min(1024 // across, CHUNK), 1), CHUNK
    if weight is not None:
        across = max(across, 16)
        rows = 64 if across <= 64 else 32 if across <= 128 else 16
        chunk = max(CHUNK, rows)
    programs = triton.cdiv(pixels, chunk)
    partial = torch.empty((programs, 2, channels), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _norm_gradient[(programs,)](
            grad,
            x,
            scale,
            shift,
            scale if weight is None else weight,
            around,
            out,
            normed,
            partial,
            pixels,
            channels,
            0 if weight is None else weight.shape[0],
            grad.shape[0],
            stride,
            eps,
            LINEAR=weight is not None,
            SHORTCUT=shortcut is not None,
            PRECISION=matrix_precision(),
            CHUNK=chunk,
            ROWS=rows,
            ACROSS=across,
            STEP=32,
            num_warps=4 if across <= 128 else 8,
        )
    return out, partial.sum(0).to(scale.dtype), normed


@triton.jit
def standardised(value, mask, channels, eps):
    """Return the channels of some pixels with mean 0 and deviation 1, and 1 / deviation of each pixel."""
    mean = tl.sum(value, axis=1) / channels
    centred = tl.where(mask, value - mean[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / channels + eps)
    return centred * inverse[:, None], inverse


@triton.jit
def through_norm(grad, standard, inverse, channels):
    """Return the gradient of what `standardised` takes, for that of its result; both are 0 outside the channels."""
    mean = tl.sum(grad, axis=1) / channels
    projection = tl.sum(grad * standard, axis=1) / channels
    return (grad - mean[:, None] - standard * projection[:, None]) * inverse[:, None]


@triton.jit
def _layer_norm(
    x,
    scale,
    shift,
    out,
    pixels,
    channels,
    stride,
    eps,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
):
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = pixel < pixels
    channel = tl.arange(0, ACROSS)
    present = channel < channels
    mask = valid[:, None] & present[None, :]
    value = tl.load(x + pixel[:, None] * stride + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    standard, _ = standardised(value, mask, channels, eps)
    norm_scale = tl.load(scale + channel, mask=present, other=0.0).to(tl.float32)
    norm_shift = tl.load(shift + channel, mask=present, other=0.0).to(tl.float32)
    normed = standard * norm_scale[None, :] + norm_shift[None, :]
    tl.store(out + pixel[:, None] * channels + channel[None, :], normed, mask=mask)


@triton.jit
def _norm_linear(
    x,
    scale,
    shift,
    weight,
    out,
    active,
    filters,
    moved,
    pixels,
    channels,
    outputs,
    count,
    stride,
    eps,
    HIDDEN: tl.constexpr,
    MOVE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    if MOVE:
        move_filters(filters, moved, count, SHARE=128)
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = pixel < pixels
    channel = tl.arange(0, ACROSS)
    present = channel < channels
    mask = valid[:, None] & present[None, :]
    value = tl.load(x + pixel[:, None] * stride + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    standard, _ = standardised(value, mask, channels, eps)

    norm_scale = tl.load(scale + channel, mask=present, other=0.0).to(tl.float32)
    norm_shift = tl.load(shift + channel, mask=present, other=0.0).to(tl.float32)
    normed = standard * norm_scale[None, :] + norm_shift[None, :]
    normed = normed.to(out.dtype.element_ty)
    for start in range(0, outputs, OUTPUTS):
        output = start + tl.arange(0, OUTPUTS)
        matrix = tl.load(
            weight + output[None, :] * channels + channel[:, None],
            mask=(output < outputs)[None, :] & present[:, None],
            other=0.0,
        )
        product = tl.dot(normed, matrix.to(normed.dtype), input_precision=PRECISION).to(normed.dtype)
        here = pixel[:, None] * outputs + output[None, :]
        inside = valid[:, None] & (output < outputs)[None, :]
        if HIDDEN:
            tl.store(out + here, product, mask=inside)
        tl.store(active + here, gelu(product.to(tl.float32)), mask=inside)


@triton.jit
def _norm_gradient(
    grad,
    x,
    scale,
    shift,
    weight,
    shortcut,
    out,
    normed,
    partial,
    pixels,
    channels,
    outputs,
    parts,
    stride,
    eps,
    LINEAR: tl.constexpr,
    SHORTCUT: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
    STEP: tl.constexpr,
):
    channel = tl.arange(0, ACROSS)
    present = channel < channels
    norm_scale = tl.load(scale + channel, mask=present, other=0.0).to(tl.float32)
    norm_shift = tl.load(shift + channel, mask=present, other=0.0).to(tl.float32)
    grad_scale = tl.zeros([ACROSS], dtype=tl.float32)
    grad_shift = tl.zeros([ACROSS], dtype=tl.float32)
    for start in range(0, CHUNK, ROWS):
        pixel = tl.program_id(0).to(tl.int64) * CHUNK + start + tl.arange(0, ROWS)
        valid = pixel < pixels
        mask = valid[:, None] & present[None, :]
        value = tl.load(x + pixel[:, None] * stride + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        standard, inverse = standardised(value, mask, channels, eps)
        g = tl.zeros([ROWS, ACROSS], dtype=tl.float32)
        if LINEAR:
            for first in range(0, outputs, STEP):
                output = first + tl.arange(0, STEP)
                within = output < outputs
                upstream = tl.load(
                    grad + pixel[:, None] * outputs + output[None, :],
                    mask=valid[:, None] & within[None, :],
                    other=0.0,
                )
                matrix = tl.load(
                    weight + output[:, None] * channels + channel[None, :],
                    mask=within[:, None] & present[None, :],
                    other=0.0,
                )
                g += tl.dot(upstream, matrix.to(upstream.dtype), input_precision=PRECISION)
        else:
            for part in range(parts):
                place = (tl.cast(part, tl.int64) * pixels + pixel)[:, None] * channels + channel[None, :]
                piece = tl.load(grad + place, mask=mask, other=0.0)
                g += piece.to(tl.float32)
        grad_scale += tl.sum(g * standard, axis=0)
        grad_shift += tl.sum(g, axis=0)

        grad_x = through_norm(g * norm_scale[None, :], standard, inverse, channels)
        here = pixel[:, None] * channels + channel[None, :]
        if SHORTCUT:
            grad_x += tl.load(shortcut + here, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + here, grad_x, mask=mask)
        if LINEAR:
            tl.store(normed + here, standard * norm_scale[None, :] + norm_shift[None, :], mask=mask)

    row = tl.program_id(0) * 2 * channels
    tl.store(partial + row + channel, grad_scale, mask=present)
    tl.store(partial + row + channels + channel, grad_shift, mask=present)
