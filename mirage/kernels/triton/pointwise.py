"""Fused operators that work on each pixel by itself, in Triton: what lies between their layers is not written."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mirage.kernels.maps import with_pixel_stride
from mirage.kernels.triton.matrices import matrix_precision, weight_gradient
from mirage.kernels.triton.tiling import gelu, gelu_derivative

STEP = 32
"""Hidden values or outputs that a program computes at a time."""


def linear(x: Tensor, weight: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """Apply weight (n, c) to x (b, h, w, c), and add the shortcut (b, h, w, n).

    torch's own product if the dtypes are equal; otherwise one kernel that casts the weight as it reads it.
    """
    if weight.dtype == x.dtype:
        out = (x.flatten(0, 2) @ weight.mT).view(*x.shape[:3], weight.shape[0])
        return out if shortcut is None else out.add_(shortcut)
    x, stride = with_pixel_stride(x)
    pixels, channels, outputs = x.shape[:3].numel(), x.shape[3], weight.shape[0]
    out = x.new_empty(*x.shape[:3], outputs)
    around, shortcut_stride = (out, 0) if shortcut is None else with_pixel_stride(shortcut)
    block = min(max(triton.next_power_of_2(outputs), 16), 64)
    with torch.cuda.device_of(x):
        _linear[(triton.cdiv(pixels, 64), triton.cdiv(outputs, block))](
            x,
            weight,
            around,
            out,
            pixels,
            channels,
            outputs,
            stride,
            *weight.stride(),
            shortcut_stride,
            PRECISION=matrix_precision(),
            SHORTCUT=shortcut is not None,
            ROWS=64,
            STEP=STEP,
            OUTPUTS=block,
        )
    return out


def channel_mlp(x: Tensor, expand: Tensor, contract: Tensor) -> Tensor:
    """Apply two linear layers with a GELU between them to x (b, h, w, c); expand (n, c), contract (o, n)."""
    x, stride = with_pixel_stride(x)
    pixels, channels, hidden, outputs = x.shape[:3].numel(), x.shape[3], expand.shape[0], contract.shape[0]
    out = x.new_empty(*x.shape[:3], outputs)
    across, wide = (max(triton.next_power_of_2(n), 16) for n in (channels, outputs))
    rows = _rows(max(across, wide))
    with torch.cuda.device_of(x):
        _channel_mlp[(triton.cdiv(pixels, rows),)](
            x,
            expand,
            contract,
            out,
            pixels,
            channels,
            hidden,
            outputs,
            stride,
            PRECISION=matrix_precision(),
            ROWS=rows,
            ACROSS=across,
            WIDE=wide,
            STEP=STEP,
        )
    return out


def channel_mlp_gradient(
    grad: Tensor, x: Tensor, expand: Tensor, contract: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients with respect to x, expand and contract."""
    grad, (rows, stride) = grad.contiguous(), with_pixel_stride(x)
    pixels, channels, hidden = x.shape[:3].numel(), x.shape[3], expand.shape[0]
    outputs = contract.shape[0]
    active, grad_hidden = (x.new_empty(*x.shape[:3], hidden) for _ in range(2))
    across, wide = (max(triton.next_power_of_2(n), 16) for n in (channels, outputs))
    tall = _rows(max(across, wide))
    with torch.cuda.device_of(x):
        _channel_mlp_gradient[(triton.cdiv(pixels, tall),)](
            grad,
            rows,
            expand,
            contract,
            active,
            grad_hidden,
            pixels,
            channels,
            hidden,
            outputs,
            stride,
            PRECISION=matrix_precision(),
            ROWS=tall,
            ACROSS=across,
            WIDE=wide,
            STEP=STEP,
        )
    return (
        linear(grad_hidden, expand.mT),
        weight_gradient(grad_hidden.flatten(0, 2), x.flatten(0, 2), expand.dtype),
        weight_gradient(grad.flatten(0, 2), active.flatten(0, 2), contract.dtype),
    )


def fusion_linear(branches: list[Tensor], scales: Tensor, weight: Tensor, shortcut: Tensor | None) -> Tensor:
    """Gate two or three branches (b, h, w, c) by each other, project them (o, branches * c) and add the shortcut."""
    branches = [x.contiguous() for x in branches]
    first, count = branches[0], len(branches)
    pixels, channels, outputs = first.shape[:3].numel(), first.shape[3], weight.shape[0]
    out = first.new_empty(*first.shape[:3], outputs)
    around, stride = (out, 0) if shortcut is None else with_pixel_stride(shortcut)
    across = max(triton.next_power_of_2(channels), 16)
    rows = _rows(across)
    with torch.cuda.device_of(first):
        _fusion_linear[(triton.cdiv(pixels, rows),)](
            *(*branches, first)[:3],
            scales,
            weight,
            around,
            out,
            pixels,
            channels,
            outputs,
            stride,
            PRECISION=matrix_precision(),
            COUNT=count,
            SHORTCUT=shortcut is not None,
            ROWS=rows,
            ACROSS=across,
            STEP=STEP,
            num_stages=_stages(across),
        )
    return out


def fusion_linear_gradient(
    grad: Tensor, branches: list[Tensor], scales: Tensor, weight: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return the gradients with respect to the branches, scales and weight; that of the shortcut is `grad`."""
    branches = [x.contiguous() for x in branches]
    first, count = branches[0], len(branches)
    pixels, channels = first.shape[:3].numel(), first.shape[3]
    gated = first.new_empty(pixels, count * channels)
    grads = [torch.empty_like(x) for x in branches]
    across = max(triton.next_power_of_2(channels), 16)
    rows = _rows(across)
    programs = triton.cdiv(pixels, rows)
    partial = first.new_empty(programs, count, dtype=torch.float32)
    with torch.cuda.device_of(first):
        _fusion_gradient[(programs,)](
            *(*branches, first)[:3],
            scales,
            weight,
            grad,
            gated,
            *(*grads, first)[:3],
            partial,
            pixels,
            channels,
            weight.shape[0],
            PRECISION=matrix_precision(),
            COUNT=count,
            ROWS=rows,
            ACROSS=across,
            STEP=STEP,
            num_warps=4 if across <= 32 else 8,
            num_stages=_stages(across),
        )
    return grads, partial.sum(0).to(scales.dtype), weight_gradient(grad.flatten(0, 2), gated, weight.dtype)


def _rows(across: int) -> int:
    """Return the pixels of one program that holds this many channels of each."""
    return 64 if across <= 64 else 32 if across <= 128 else 16


def _stages(across: int) -> int:
    """Return for how many steps one program holds the weights of three branches: small GPUs have less memory."""
    return 3 if across <= 64 else 2


@triton.jit
def _linear(
    x,
    weight,
    shortcut,
    out,
    pixels,
    channels,
    outputs,
    stride,
    row_stride,
    column_stride,
    shortcut_stride,
    PRECISION: tl.constexpr,
    SHORTCUT: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = pixel < pixels
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    mask = valid[:, None] & (output < outputs)[None, :]
    total = tl.zeros([ROWS, OUTPUTS], dtype=tl.float32)
    if SHORTCUT:
        around = tl.load(shortcut + pixel[:, None] * shortcut_stride + output[None, :], mask=mask, other=0.0)
        total += around.to(tl.float32)
    for start in range(0, channels, STEP):
        channel = start + tl.arange(0, STEP)
        present = channel < channels
        value = tl.load(
            x + pixel[:, None] * stride + channel[None, :], mask=valid[:, None] & present[None, :], other=0.0
        )
        matrix = tl.load(
            weight + output[None, :] * row_stride + channel[:, None] * column_stride,
            mask=present[:, None] & (output < outputs)[None, :],
            other=0.0,
        )
        total += tl.dot(value, matrix.to(value.dtype), input_precision=PRECISION)
    tl.store(out + pixel[:, None] * outputs + output[None, :], total, mask=mask)


@triton.jit
def _channel_mlp(
    x,
    expand,
    contract,
    out,
    pixels,
    channels,
    hidden,
    outputs,
    stride,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
    WIDE: tl.constexpr,
    STEP: tl.constexpr,
):
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = pixel < pixels
    channel = tl.arange(0, ACROSS)
    present = channel < channels
    output = tl.arange(0, WIDE)
    value = tl.load(
        x + pixel[:, None] * stride + channel[None, :], mask=valid[:, None] & present[None, :], other=0.0
    )
    total = tl.zeros([ROWS, WIDE], dtype=tl.float32)
    for start in range(0, hidden, STEP):
        inner = start + tl.arange(0, STEP)
        within = inner < hidden
        matrix = tl.load(
            expand + inner[None, :] * channels + channel[:, None],
            mask=within[None, :] & present[:, None],
            other=0.0,
        )
        active = gelu(tl.dot(value, matrix.to(value.dtype), input_precision=PRECISION))
        matrix = tl.load(
            contract + output[None, :] * hidden + inner[:, None],
            mask=within[:, None] & (output < outputs)[None, :],
            other=0.0,
        )
        total += tl.dot(active.to(value.dtype), matrix.to(value.dtype), input_precision=PRECISION)
    tl.store(
        out + pixel[:, None] * outputs + output[None, :],
        total,
        mask=valid[:, None] & (output < outputs)[None, :],
    )


@triton.jit
def _channel_mlp_gradient(
    grad,
    x,
    expand,
    contract,
    active,
    grad_hidden,
    pixels,
    channels,
    hidden,
    outputs,
    stride,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
    WIDE: tl.constexpr,
    STEP: tl.constexpr,
):
    """Write the hidden map after its GELU once more, and the gradient of the hidden map before it."""
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = pixel < pixels
    channel = tl.arange(0, ACROSS)
    present = channel < channels
    output = tl.arange(0, WIDE)
    wanted = output < outputs
    value = tl.load(
        x + pixel[:, None] * stride + channel[None, :], mask=valid[:, None] & present[None, :], other=0.0
    )
    upstream = tl.load(
        grad + pixel[:, None] * outputs + output[None, :], mask=valid[:, None] & wanted[None, :], other=0.0
    )
    for start in range(0, hidden, STEP):
        inner = start + tl.arange(0, STEP)
        within = inner < hidden
        matrix = tl.load(
            expand + inner[None, :] * channels + channel[:, None],
            mask=within[None, :] & present[:, None],
            other=0.0,
        )
        before = tl.dot(value, matrix.to(value.dtype), input_precision=PRECISION)
        matrix = tl.load(
            contract + output[:, None] * hidden + inner[None, :],
            mask=within[None, :] & wanted[:, None],
            other=0.0,
        )
        g = tl.dot(upstream, matrix.to(value.dtype), input_precision=PRECISION)
        here = pixel[:, None] * hidden + inner[None, :]
        mask = valid[:, None] & within[None, :]
        tl.store(active + here, gelu(before), mask=mask)
        tl.store(grad_hidden + here, g * gelu_derivative(before), mask=mask)


@triton.jit
def _projected(gated, weight, output, row, outputs, channels, PRECISION: tl.constexpr, ACROSS: tl.constexpr):
    channel = tl.arange(0, ACROSS)
    matrix = tl.load(
        weight + output[None, :] * row + channel[:, None],
        mask=(output < outputs)[None, :] & (channel < channels)[:, None],
        other=0.0,
    )
    return tl.dot(gated, matrix.to(gated.dtype), input_precision=PRECISION)


@triton.jit
def _fusion_linear(
    first,
    second,
    third,
    scales,
    weight,
    shortcut,
    out,
    pixels,
    channels,
    outputs,
    stride,
    PRECISION: tl.constexpr,
    COUNT: tl.constexpr,
    SHORTCUT: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
    STEP: tl.constexpr,
):
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = pixel < pixels
    channel = tl.arange(0, ACROSS)
    here = pixel[:, None] * channels + channel[None, :]
    mask = valid[:, None] & (channel < channels)[None, :]
    dtype = out.dtype.element_ty
    a = tl.load(first + here, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(second + here, mask=mask, other=0.0).to(tl.float32)
    c = tl.zeros([ROWS, ACROSS], dtype=tl.float32)
    if COUNT == 3:
        c = tl.load(third + here, mask=mask, other=0.0).to(tl.float32)
    gated_a = (a + tl.load(scales).to(tl.float32) * tl.sigmoid(b + c)).to(dtype)
    gated_b = (b + tl.load(scales + 1).to(tl.float32) * tl.sigmoid(a + c)).to(dtype)
    row = COUNT * channels
    for start in range(0, outputs, STEP):
        output = start + tl.arange(0, STEP)
        product = _projected(gated_a, weight, output, row, outputs, channels, PRECISION, ACROSS)
        product += _projected(gated_b, weight + channels, output, row, outputs, channels, PRECISION, ACROSS)
        if COUNT == 3:
            gated_c = (c + tl.load(scales + 2).to(tl.float32) * tl.sigmoid(a + b)).to(dtype)
            product += _projected(
                gated_c, weight + 2 * channels, output, row, outputs, channels, PRECISION, ACROSS
            )
        within = valid[:, None] & (output < outputs)[None, :]
        if SHORTCUT:
            around = tl.load(shortcut + pixel[:, None] * stride + output[None, :], mask=within, other=0.0)
            product += around.to(tl.float32)
        tl.store(out + pixel[:, None] * outputs + output[None, :], product, mask=within)


@triton.jit
def _fusion_gradient(
    first,
    second,
    third,
    scales,
    weight,
    grad,
    gated,
    grad_first,
    grad_second,
    grad_third,
    partial,
    pixels,
    channels,
    outputs,
    PRECISION: tl.constexpr,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Write the gradients of the branches, the gated branches once more, and shares of the gradients of the scales."""
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, ACROSS)
    valid = pixel < pixels
    mask = valid[:, None] & (channel < channels)[None, :]
    here = pixel[:, None] * channels + channel[None, :]
    wide = pixel[:, None] * COUNT * channels + channel[None, :]
    a = tl.load(first + here, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(second + here, mask=mask, other=0.0).to(tl.float32)
    c = tl.zeros([ROWS, ACROSS], dtype=tl.float32)
    scale_a, scale_b = tl.load(scales).to(tl.float32), tl.load(scales + 1).to(tl.float32)
    if COUNT == 3:
        c = tl.load(third + here, mask=mask, other=0.0).to(tl.float32)

    gate_a, gate_b = tl.sigmoid(b + c), tl.sigmoid(a + c)
    grad_a = tl.zeros([ROWS, ACROSS], dtype=tl.float32)
    grad_b = tl.zeros([ROWS, ACROSS], dtype=tl.float32)
    grad_c = tl.zeros([ROWS, ACROSS], dtype=tl.float32)
    row = COUNT * channels
    for start in range(0, outputs, STEP):
        output = start + tl.arange(0, STEP)
        within = output < outputs
        upstream = tl.load(
            grad + pixel[:, None] * outputs + output[None, :],
            mask=valid[:, None] & within[None, :],
            other=0.0,
        )
        matrix = weight + output[:, None] * row + channel[None, :]
        inside = within[:, None] & (channel < channels)[None, :]
        of_a = tl.load(matrix, mask=inside, other=0.0).to(upstream.dtype)
        grad_a += tl.dot(upstream, of_a, input_precision=PRECISION)
        of_b = tl.load(matrix + channels, mask=inside, other=0.0).to(upstream.dtype)
        grad_b += tl.dot(upstream, of_b, input_precision=PRECISION)
        if COUNT == 3:
            of_c = tl.load(matrix + 2 * channels, mask=inside, other=0.0).to(upstream.dtype)
            grad_c += tl.dot(upstream, of_c, input_precision=PRECISION)
    tl.store(gated + wide, a + scale_a * gate_a, mask=mask)
    tl.store(gated + channels + wide, b + scale_b * gate_b, mask=mask)
    shares = partial + tl.program_id(0) * COUNT
    tl.store(shares, tl.sum(tl.sum(grad_a * gate_a, axis=1), axis=0))
    tl.store(shares + 1, tl.sum(tl.sum(grad_b * gate_b, axis=1), axis=0))
    through_a = scale_a * grad_a * gate_a * (1.0 - gate_a)
    through_b = scale_b * grad_b * gate_b * (1.0 - gate_b)
    if COUNT == 3:
        gate_c = tl.sigmoid(a + b)
        scale_c = tl.load(scales + 2).to(tl.float32)
        tl.store(gated + 2 * channels + wide, c + scale_c * gate_c, mask=mask)
        tl.store(shares + 2, tl.sum(tl.sum(grad_c * gate_c, axis=1), axis=0))
        through_c = scale_c * grad_c * gate_c * (1.0 - gate_c)
        tl.store(grad_third + here, grad_c + through_a + through_b, mask=mask)
        grad_a += through_c
        grad_b += through_c
    tl.store(grad_first + here, grad_a + through_b, mask=mask)
    tl.store(grad_second + here, grad_b + through_a, mask=mask)
