"""The gradient of a linear layer and the 3x3 depthwise convolution after it, in one Triton kernel.

The map between both is computed again from the input and not written, nor is its gradient. A program goes through a
stretch of pixels with 64 of that map's channels, and adds up the gradients of the weights in registers; the sums of the
programs are added in order. What these channels give to the gradient of the input is a part by itself, which the caller
adds up.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mirage.kernels.maps import with_pixel_stride
from mirage.kernels.reference import NORM_EPS
from mirage.kernels.triton.convolution import map_gradient, store_taps, tap_shares
from mirage.kernels.triton.matrices import matrix_precision, padded, stretches
from mirage.kernels.triton.norm_linear import standardised
from mirage.kernels.triton.tiling import gelu_derivative


def fits(x: Tensor) -> bool:
    """Return whether a program holds all channels of x, and the parts are few."""
    return x.shape[3] <= 64


def linear_convolution_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, filters: Tensor, norm: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `convolution(weight x)`, or with a norm of `convolution(GELU(weight norm(x)))`.

    The first is that of x or of its norm, in parts (parts, b, h, w, c) that are to be added. The others are those of
    the weight (n, c) and, without a norm, of the filters (n, 3, 3), in fp32; with a norm it is empty.

    grad (b, h, w, n): of the result. x (b, h, w, c), weight (n, c), `prepared` filters (3, 3, n). norm: scale and shift
    (c,) of a layer norm. Only for an x that `fits`.
    """
    batch, height, width, channels = x.shape
    hidden = weight.shape[0]
    x, stride = with_pixel_stride(x)
    across = padded(channels)
    block = min(padded(hidden), 64)
    blocks = triton.cdiv(hidden, block)
    pixels = min(padded(width), max(1024 // block, 16))
    pieces = triton.cdiv(width, pixels)
    programs, each = stretches(batch * height * pieces, weight, *([filters] if norm is None else []))
    out = torch.empty((blocks, *x.shape), dtype=x.dtype, device=x.device)
    shapes = (hidden, channels), (hidden, 3, 3) if norm is None else (0,)
    of_weight, of_filters = (
        torch.empty((programs, *shape), dtype=torch.float32, device=x.device) for shape in shapes
    )
    with torch.cuda.device_of(x):
        _linear_convolution_gradient[(blocks, programs)](
            grad,
            x,
            weight if norm is None else norm[0],
            weight if norm is None else norm[1],
            weight,
            filters,
            out,
            of_weight,
            of_filters,
            batch * height,
            height,
            width,
            channels,
            hidden,
            stride,
            pieces,
            each,
            NORM_EPS,
            NORM=norm is not None,
            PRECISION=matrix_precision(),
            PIXELS=pixels,
            HIDDEN=block,
            ACROSS=across,
            num_warps=8,
            num_stages=1,
        )
    return out, of_weight.sum(0), of_filters.sum(0) if norm is None else of_filters


@triton.jit
def _linear_convolution_gradient(
    grad,
    x,
    scale,
    shift,
    weight,
    filters,
    out,
    of_weight,
    of_filters,
    rows,
    height,
    width,
    channels,
    hidden,
    stride,
    pieces,
    tiles,
    eps,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    ACROSS: tl.constexpr,
):
    channel = tl.arange(0, ACROSS)
    inner = tl.program_id(0) * HIDDEN + tl.arange(0, HIDDEN)
    present, within = channel < channels, inner < hidden
    both = within[:, None] & present[None, :]
    weight_sum = tl.zeros([HIDDEN, ACROSS], dtype=tl.float32)
    taps = tl.zeros([16, HIDDEN], dtype=tl.float32)
    for index in range(tiles):
        tile = tl.program_id(1) * tiles + index
        row = tile // pieces  # over all images
        y = tl.where(row < rows, row % height, 2 * height)  # past the last row no pixels are near
        column = (tile % pieces) * PIXELS + tl.arange(0, PIXELS)
        valid = column < tl.where(row < rows, width, 0)
        pixel = row.to(tl.int64) * width + column
        mask = valid[:, None] & present[None, :]
        value = tl.load(x + pixel[:, None] * stride + channel[None, :], mask=mask, other=0.0)
        if NORM:
            standard, _ = standardised(value.to(tl.float32), mask, channels, eps)
            norm_scale = tl.load(scale + channel, mask=present, other=0.0).to(tl.float32)
            norm_shift = tl.load(shift + channel, mask=present, other=0.0).to(tl.float32)
            value = (standard * norm_scale[None, :] + norm_shift[None, :]).to(value.dtype)
        matrix = tl.load(weight + inner[:, None] * channels + channel[None, :], mask=both, other=0.0)
        matrix = matrix.to(value.dtype)
        before = tl.dot(value, tl.trans(matrix), input_precision=PRECISION).to(value.dtype).to(tl.float32)
        total = map_gradient(grad, filters, row, y, height, width, column, inner, hidden)
        if NORM:
            total *= gelu_derivative(before)
        else:
            before = tl.where(valid[:, None], before, 0.0)
            taps += tap_shares(before, grad, row, y, height, width, column, inner, hidden, hidden)
        grad_hidden = tl.where(valid[:, None], total, 0.0).to(value.dtype)
        weight_sum += tl.dot(tl.trans(grad_hidden), value, input_precision=PRECISION)
        here = (tl.program_id(0) * rows.to(tl.int64) * width + pixel)[:, None] * channels + channel[None, :]
        tl.store(out + here, tl.dot(grad_hidden, matrix, input_precision=PRECISION), mask=mask)

    program = tl.program_id(1).to(tl.int64)
    target = of_weight + (program * hidden + inner[:, None]) * channels + channel[None, :]
    tl.store(target, weight_sum, mask=both)
    if not NORM:  # what reached a neighbour went through the tap opposite to it
        store_taps(of_filters + program * hidden * 9, taps, inner, hidden, REVERSE=True)
