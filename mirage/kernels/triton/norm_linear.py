"""Layer norm and the product that follows it in one Triton kernel: the normalised map is not written.

Mean and spread of each pixel are kept for the gradient, which makes the normalised map again, once, for the gradient of
the product's matrix.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mirage.kernels.triton.tiling import pixel_step

CHUNK = 256
"""Pixels that one program of the gradient works on."""


def norm_linear(
    x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """x (b, h, w, c), scale and shift (c,), weight (n, c) → product (b, h, w, n) in weight's type, mean, 1 / spread.

    The last two are (b * h * w,) in fp32.
    """
    batch, height, width, channels = x.shape
    pixels, outputs = batch * height * width, weight.shape[0]
    x, step = pixel_step(x)
    out = torch.empty((batch, height, width, outputs), dtype=weight.dtype, device=x.device)
    mean, inverse = (torch.empty(pixels, dtype=torch.float32, device=x.device) for _ in range(2))
    across = max(triton.next_power_of_2(channels), 16)
    rows = 64 if across <= 64 else 32 if across <= 256 else 16
    with torch.cuda.device_of(x):
        _norm_linear[(triton.cdiv(pixels, rows),)](
            x,
            scale.contiguous(),
            shift.contiguous(),
            weight.contiguous(),
            out,
            mean,
            inverse,
            pixels,
            channels,
            outputs,
            step,
            eps,
            PRECISION="tf32" if _fast_fp32() else "ieee",
            ROWS=rows,
            ACROSS=across,
            OUTPUTS=32 if across <= 256 else 16,
            num_stages=2,
        )
    return out, mean, inverse


def norm_linear_gradient(
    grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to x, scale, shift and weight."""
    channels = x.shape[3]
    x, step = pixel_step(x)
    grad = grad.reshape(-1, weight.shape[0])
    pixels = grad.shape[0]
    normed_grad = grad @ weight  # (pixels, c)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    normed = torch.empty((pixels, channels), dtype=weight.dtype, device=x.device)
    programs = triton.cdiv(pixels, CHUNK)
    partial = torch.empty((programs, 2, channels), dtype=torch.float32, device=x.device)
    across = triton.next_power_of_2(channels)
    with torch.cuda.device_of(x):
        _norm_gradient[(programs,)](
            normed_grad,
            x,
            scale.contiguous(),
            shift.contiguous(),
            mean,
            inverse,
            out,
            normed,
            partial,
            pixels,
            channels,
            step,
            CHUNK=CHUNK,
            ROWS=max(min(1024 // across, CHUNK), 1),
            ACROSS=across,
        )
    by_scale, by_shift = (part.sum(0) for part in partial.unbind(1))
    return out, by_scale.to(scale.dtype), by_shift.to(shift.dtype), grad.mT @ normed


def _fast_fp32() -> bool:
    """Whether products of fp32 matrices may round their factors to TF32, as torch's own do then."""
    return torch.get_float32_matmul_precision() != "highest"


@triton.jit
def _norm_linear(
    x,
    scale,
    shift,
    weight,
    out,
    means,
    inverses,
    pixels,
    channels,
    outputs,
    step,
    eps,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    known = pixel < pixels
    channel = tl.arange(0, ACROSS)
    present = channel < channels
    mask = known[:, None] & present[None, :]
    value = tl.load(x + pixel[:, None] * step + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(value, axis=1) / channels
    apart = tl.where(present[None, :], value - mean[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(apart * apart, axis=1) / channels + eps)
    tl.store(means + pixel, mean, mask=known)
    tl.store(inverses + pixel, inverse, mask=known)

    gain = tl.load(scale + channel, mask=present, other=0.0).to(tl.float32)
    offset = tl.load(shift + channel, mask=present, other=0.0).to(tl.float32)
    normed = apart * inverse[:, None] * gain[None, :] + offset[None, :]
    normed = normed.to(weight.dtype.element_ty)
    for start in range(0, outputs, OUTPUTS):
        output = start + tl.arange(0, OUTPUTS)
        matrix = tl.load(
            weight + output[None, :] * channels + channel[:, None],
            mask=(output < outputs)[None, :] & present[:, None],
            other=0.0,
        )
        product = tl.dot(normed, matrix, input_precision=PRECISION)
        tl.store(
            out + pixel[:, None] * outputs + output[None, :],
            product,
            mask=known[:, None] & (output < outputs)[None, :],
        )


@triton.jit
def _norm_gradient(
    grad,
    x,
    scale,
    shift,
    means,
    inverses,
    out,
    normed,
    partial,
    pixels,
    channels,
    step,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
):
    channel = tl.arange(0, ACROSS)
    present = channel < channels
    gain = tl.load(scale + channel, mask=present, other=0.0).to(tl.float32)
    offset = tl.load(shift + channel, mask=present, other=0.0).to(tl.float32)
    by_scale = tl.zeros([ROWS, ACROSS], dtype=tl.float32)
    by_shift = tl.zeros([ROWS, ACROSS], dtype=tl.float32)
    for start in range(0, CHUNK, ROWS):
        pixel = tl.program_id(0).to(tl.int64) * CHUNK + start + tl.arange(0, ROWS)
        known = pixel < pixels
        mask = known[:, None] & present[None, :]
        value = tl.load(x + pixel[:, None] * step + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(means + pixel, mask=known, other=0.0)
        inverse = tl.load(inverses + pixel, mask=known, other=0.0)
        g = tl.load(grad + pixel[:, None] * channels + channel[None, :], mask=mask, other=0.0)
        g = g.to(tl.float32)
        standard = tl.where(mask, (value - mean[:, None]) * inverse[:, None], 0.0)
        by_scale += g * standard
        by_shift += g

        scaled = g * gain[None, :]
        level = tl.sum(scaled, axis=1) / channels
        along = tl.sum(scaled * standard, axis=1) / channels
        passed = (scaled - level[:, None] - standard * along[:, None]) * inverse[:, None]
        tl.store(out + pixel[:, None] * channels + channel[None, :], passed, mask=mask)
        again = standard * gain[None, :] + offset[None, :]
        tl.store(normed + pixel[:, None] * channels + channel[None, :], again, mask=mask)

    row = tl.program_id(0) * 2 * channels
    tl.store(partial + row + channel, tl.sum(by_scale, axis=0), mask=present)
    tl.store(partial + row + channels + channel, tl.sum(by_shift, axis=0), mask=present)
