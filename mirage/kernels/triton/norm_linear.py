"""Layer norm and the linear layer after it in one Triton kernel: the normalised map is not written.

Mean and deviation of each pixel are kept for the gradient, which computes the normalised map once more for the gradient
of the weight.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mirage.kernels.maps import with_pixel_stride

CHUNK = 256
"""Pixels of one program of the gradient."""


def norm_linear(
    x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply layer norm and weight (n, c) to x (b, h, w, c); return the result, means, 1 / deviations.

    scale and shift (c,). The result is (b, h, w, n) in weight's dtype; the other two are (b * h * w,) in fp32.
    """
    batch, height, width, channels = x.shape
    pixels, outputs = batch * height * width, weight.shape[0]
    x, stride = with_pixel_stride(x)
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
            stride,
            eps,
            PRECISION="tf32" if _allows_tf32() else "ieee",
            ROWS=rows,
            ACROSS=across,
            OUTPUTS=32 if across <= 256 else 16,
            num_stages=2,
        )
    return out, mean, inverse


def norm_linear_gradient(
    grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients with respect to x, scale, shift and weight."""
    channels = x.shape[3]
    x, stride = with_pixel_stride(x)
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
            stride,
            CHUNK=CHUNK,
            ROWS=max(min(1024 // across, CHUNK), 1),
            ACROSS=across,
        )
    grad_scale, grad_shift = (part.sum(0) for part in partial.unbind(1))
    return out, grad_scale.to(scale.dtype), grad_shift.to(shift.dtype), grad.mT @ normed


def _allows_tf32() -> bool:
    """Return whether torch may round factors of fp32 matrix products to TF32."""
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
    stride,
    eps,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = pixel < pixels
    channel = tl.arange(0, ACROSS)
    present = channel < channels
    mask = valid[:, None] & present[None, :]
    value = tl.load(x + pixel[:, None] * stride + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(value, axis=1) / channels
    centred = tl.where(present[None, :], value - mean[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / channels + eps)
    tl.store(means + pixel, mean, mask=valid)
    tl.store(inverses + pixel, inverse, mask=valid)

    norm_scale = tl.load(scale + channel, mask=present, other=0.0).to(tl.float32)
    norm_shift = tl.load(shift + channel, mask=present, other=0.0).to(tl.float32)
    normed = centred * inverse[:, None] * norm_scale[None, :] + norm_shift[None, :]
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
            mask=valid[:, None] & (output < outputs)[None, :],
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
    stride,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
):
    channel = tl.arange(0, ACROSS)
    present = channel < channels
    norm_scale = tl.load(scale + channel, mask=present, other=0.0).to(tl.float32)
    norm_shift = tl.load(shift + channel, mask=present, other=0.0).to(tl.float32)
    grad_scale = tl.zeros([ROWS, ACROSS], dtype=tl.float32)
    grad_shift = tl.zeros([ROWS, ACROSS], dtype=tl.float32)
    for start in range(0, CHUNK, ROWS):
        pixel = tl.program_id(0).to(tl.int64) * CHUNK + start + tl.arange(0, ROWS)
        valid = pixel < pixels
        mask = valid[:, None] & present[None, :]
        value = tl.load(x + pixel[:, None] * stride + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(means + pixel, mask=valid, other=0.0)
        inverse = tl.load(inverses + pixel, mask=valid, other=0.0)
        g = tl.load(grad + pixel[:, None] * channels + channel[None, :], mask=mask, other=0.0)
        g = g.to(tl.float32)
        standard = tl.where(mask, (value - mean[:, None]) * inverse[:, None], 0.0)
        grad_scale += g * standard
        grad_shift += g

        scaled = g * norm_scale[None, :]
        mean_grad = tl.sum(scaled, axis=1) / channels
        projection = tl.sum(scaled * standard, axis=1) / channels
        grad_x = (scaled - mean_grad[:, None] - standard * projection[:, None]) * inverse[:, None]
        tl.store(out + pixel[:, None] * channels + channel[None, :], grad_x, mask=mask)
        normalised = standard * norm_scale[None, :] + norm_shift[None, :]
        tl.store(normed + pixel[:, None] * channels + channel[None, :], normalised, mask=mask)

    row = tl.program_id(0) * 2 * channels
    tl.store(partial + row + channel, tl.sum(grad_scale, axis=0), mask=present)
    tl.store(partial + row + channels + channel, tl.sum(grad_shift, axis=0), mask=present)
