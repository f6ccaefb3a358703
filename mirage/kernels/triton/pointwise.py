"""Fused operators that work on each pixel by itself, in Triton: what lies between their layers is not written."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mirage.kernels.maps import with_pixel_stride
from mirage.kernels.triton.convolution import move_filters
from mirage.kernels.triton.matrices import fits, matrix_precision, padded, stretches, weight_gradient
from mirage.kernels.triton.tiling import gelu, gelu_derivative

STEP = 32
"""Hidden values or outputs that a program computes at a time."""


def linear(
    x: Tensor, weight: Tensor, shortcut: Tensor | None = None, move: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Apply weight (n, c) to x (b, h, w, c), and add the shortcut (b, h, w, n).

    torch's own product if the dtypes are equal; otherwise one kernel that casts the weight as it reads it. move: 3x3
    filters, and where to write them `prepared`.
    """
    if weight.dtype == x.dtype:
        if move is not None:
            move[1].copy_(move[0].movedim(-3, -1))
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
            *(move or (out, out)),
            pixels,
            channels,
            outputs,
            0 if move is None else move[0].shape[0],
            stride,
            *weight.stride(),
            shortcut_stride,
            PRECISION=matrix_precision(),
            SHORTCUT=shortcut is not None,
            MOVE=move is not None,
            ROWS=64,
            STEP=STEP,
            OUTPUTS=block,
        )
    return out


def linear_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, added: Tensor | None = None, bias: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a linear layer with respect to x, and in fp32 to its weight (n, c) and its `bias` (n,).

    grad (b, h, w, n): of the result. x (b, h, w, c). added: a map (b, h, w, c) that is added to the first. One kernel
    that reads each map once, if the weight `fits`; otherwise PyTorch's products.
    """
    if not fits(weight):
        rows = grad.flatten(0, 2)
        of_weight = weight_gradient(rows, x.flatten(0, 2), torch.float32)
        of_bias = rows.sum(0, dtype=torch.float32) if bias else rows.new_empty(0)
        return linear(grad, weight.mT, added), of_weight, of_bias
    x, stride = with_pixel_stride(x)
    pixels, channels, outputs = x.shape[:3].numel(), x.shape[3], weight.shape[0]
    out = x.new_empty(x.shape)
    tall, across = padded(outputs), padded(channels)
    tile = _tile(x)
    programs, each = stretches(triton.cdiv(pixels, tile), weight)
    of_weight, of_bias = (
        torch.empty((programs, *shape), dtype=torch.float32, device=x.device)
        for shape in ((outputs, channels), (outputs,))
    )
    with torch.cuda.device_of(x):
        _linear_gradient[(programs,)](
            grad,
            x,
            weight,
            out if added is None else added,
            out,
            of_weight,
            of_bias,
            pixels,
            channels,
            outputs,
            stride,
            each,
            ADDED=added is not None,
            PRECISION=matrix_precision(),
            ROWS=tile,
            OUTPUTS=tall,
            ACROSS=across,
            num_warps=8,
        )
    return out, of_weight.sum(0), of_bias.sum(0)


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
    grad, (x, stride) = grad.contiguous(), with_pixel_stride(x)
    if not fits(expand):
        before = linear(x, expand)
        grad_active, grad_contract, _ = linear_gradient(grad, torch.nn.functional.gelu(before), contract)
        grad_hidden = torch.ops.aten.gelu_backward(grad_active, before)
        grad_x, grad_expand, _ = linear_gradient(grad_hidden, x, expand)
        return grad_x, grad_expand.to(expand.dtype), grad_contract.to(contract.dtype)
    pixels, channels, hidden, outputs = x.shape[:3].numel(), x.shape[3], expand.shape[0], contract.shape[0]
    out = x.new_empty(x.shape)
    tall, across, wide = padded(hidden), padded(channels), padded(outputs)
    rows = _tile(x) if expand.numel() < 2048 else 16
    programs, each = stretches(triton.cdiv(pixels, rows), expand, contract)
    of_expand, of_contract = (
        torch.empty((programs, *weight.shape), dtype=torch.float32, device=x.device)
        for weight in (expand, contract)
    )
    with torch.cuda.device_of(x):
        _channel_mlp_gradient[(programs,)](
            grad,
            x,
            expand,
            contract,
            out,
            of_expand,
            of_contract,
            pixels,
            channels,
            hidden,
            outputs,
            stride,
            each,
            PRECISION=matrix_precision(),
            ROWS=rows,
            ACROSS=across,
            WIDE=wide,
            HIDDEN=tall,
            num_warps=8,
        )
    return out, of_expand.sum(0).to(expand.dtype), of_contract.sum(0).to(contract.dtype)


def fusion_linear(
    branches: list[Tensor],
    scales: list[Tensor],
    weight: Tensor,
    shortcut: Tensor | None,
    mlp: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Gate two or three branches (b, h, w, c) by each other, project them (o, branches * c) and add the shortcut.

    mlp: the matrices (n, c) and (c, n) of a `channel_mlp`, which is first applied to the third branch.
    """
    count = len(branches)
    assert mlp is None or count == 3, "only a third branch can have an MLP"
    last, last_stride = with_pixel_stride(branches[-1])
    branches = [*(x.contiguous() for x in branches[:-1]), branches[-1].contiguous() if mlp is None else last]
    first = branches[0]
    pixels, channels, outputs = first.shape[:3].numel(), first.shape[3], weight.shape[0]
    out = first.new_empty(*first.shape[:3], outputs)
    around, stride = (out, 0) if shortcut is None else with_pixel_stride(shortcut)
    across = max(triton.next_power_of_2(channels), 16)
    rows = _rows(across) if mlp is None else min(_rows(across), 2048 // across)
    with torch.cuda.device_of(first):
        _fusion_linear[(triton.cdiv(pixels, rows),)](
            *(*branches, first)[:3],
            *(*scales, scales[0])[:3],
            *(mlp or (weight, weight)),
            weight,
            around,
            out,
            pixels,
            channels,
            outputs,
            0 if mlp is None else mlp[0].shape[0],
            channels if mlp is None else last_stride,
            stride,
            PRECISION=matrix_precision(),
            COUNT=count,
            MLP=mlp is not None,
            SHORTCUT=shortcut is not None,
            ROWS=rows,
            ACROSS=across,
            STEP=STEP,
            num_stages=_stages(across),
        )
    return out


def fusion_linear_gradient(
    grad: Tensor, branches: list[Tensor], scales: list[Tensor], weight: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return the gradients of the branches, scales (branches,) and weight; that of the shortcut is `grad`."""
    branches = [x.contiguous() for x in branches]
    first, count = branches[0], len(branches)
    pixels, channels = first.shape[:3].numel(), first.shape[3]
    inside = fits(
        weight
    )  # then the kernel adds up the gradient of the weight, and does not write the gated branches
    gated = first.new_empty(0 if inside else pixels, count * channels)
    grads = [torch.empty_like(x) for x in branches]
    across, wide = padded(channels), padded(weight.shape[0])
    rows = _rows(across) if first.element_size() == 2 else 32 if across <= 32 else 16
    programs, each = stretches(triton.cdiv(pixels, rows), weight)
    of_scales, of_weight = (
        torch.empty((programs, *shape), dtype=torch.float32, device=first.device)
        for shape in ((count,), weight.shape if inside else (0,))
    )
    with torch.cuda.device_of(first):
        _fusion_gradient[(programs,)](
            *(*branches, first)[:3],
            *(*scales, scales[0])[:3],
            weight,
            grad,
            gated,
            *(*grads, first)[:3],
            of_scales,
            of_weight,
            pixels,
            channels,
            weight.shape[0],
            each,
            PRECISION=matrix_precision(),
            COUNT=count,
            WEIGHT=inside,
            ROWS=rows,
            ACROSS=across,
            STEP=wide if inside else STEP,
            num_warps=8,
            num_stages=_stages(across),
        )
    of_matrix = of_weight.sum(0) if inside else weight_gradient(grad.flatten(0, 2), gated, weight.dtype)
    return grads, of_scales.sum(0).to(scales[0].dtype), of_matrix.to(weight.dtype)


def _rows(across: int) -> int:
    """Return the pixels of one program that holds this many channels of each."""
    return 64 if across <= 64 else 32 if across <= 128 else 16


def _tile(x: Tensor) -> int:
    """Return the pixels whose shares of a weight's gradient a program adds up at a time: in fp32 more do not fit."""
    return 16 if x.dtype == torch.float32 else 32


def _stages(across: int) -> int:
    """Return for how many steps one program holds the weights of three branches: small GPUs have less memory."""
    return 3 if across <= 64 else 2


@triton.jit
def _linear(
    x,
    weight,
    shortcut,
    out,
    filters,
    moved,
    pixels,
    channels,
    outputs,
    count,
    stride,
    row_stride,
    column_stride,
    shortcut_stride,
    PRECISION: tl.constexpr,
    SHORTCUT: tl.constexpr,
    MOVE: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    if MOVE:
        move_filters(filters, moved, count, SHARE=128)
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
def _linear_gradient(
    grad,
    x,
    weight,
    added,
    out,
    of_weight,
    of_bias,
    pixels,
    channels,
    outputs,
    stride,
    tiles,
    ADDED: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ACROSS: tl.constexpr,
):
    channel, output = tl.arange(0, ACROSS), tl.arange(0, OUTPUTS)
    present, wanted = channel < channels, output < outputs
    matrix = tl.load(
        weight + output[:, None] * channels + channel[None, :],
        mask=wanted[:, None] & present[None, :],
        other=0.0,
    ).to(out.dtype.element_ty)
    weight_sum = tl.zeros([OUTPUTS, ACROSS], dtype=tl.float32)
    bias_sum = tl.zeros([OUTPUTS], dtype=tl.float32)
    for index in range(tiles):
        pixel = (tl.program_id(0).to(tl.int64) * tiles + index) * ROWS + tl.arange(0, ROWS)
        valid = (pixel < pixels)[:, None]
        mask = valid & present[None, :]
        value = tl.load(x + pixel[:, None] * stride + channel[None, :], mask=mask, other=0.0)
        upstream = tl.load(
            grad + pixel[:, None] * outputs + output[None, :], mask=valid & wanted[None, :], other=0.0
        )
        weight_sum += tl.dot(tl.trans(upstream), value, input_precision=PRECISION)
        bias_sum += tl.sum(upstream.to(tl.float32), axis=0)
        g = tl.dot(upstream, matrix, input_precision=PRECISION)
        here = pixel[:, None] * channels + channel[None, :]
        if ADDED:
            g += tl.load(added + here, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + here, g, mask=mask)
    program = tl.program_id(0).to(tl.int64)
    target = of_weight + (program * outputs + output[:, None]) * channels + channel[None, :]
    tl.store(target, weight_sum, mask=wanted[:, None] & present[None, :])
    tl.store(of_bias + program * outputs + output, bias_sum, mask=wanted)


@triton.jit
def _two_layers(
    value,
    expand,
    contract,
    channels,
    hidden,
    outputs,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
    WIDE: tl.constexpr,
    STEP: tl.constexpr,
):
    """Return what two linear layers with a GELU between them make of some pixels, in fp32."""
    channel, output = tl.arange(0, ACROSS), tl.arange(0, WIDE)
    total = tl.zeros([ROWS, WIDE], dtype=tl.float32)
    for start in range(0, hidden, STEP):
        inner = start + tl.arange(0, STEP)
        within = inner < hidden
        matrix = tl.load(
            expand + inner[None, :] * channels + channel[:, None],
            mask=within[None, :] & (channel < channels)[:, None],
            other=0.0,
        )
        active = gelu(tl.dot(value, matrix.to(value.dtype), input_precision=PRECISION))
        matrix = tl.load(
            contract + output[None, :] * hidden + inner[:, None],
            mask=within[:, None] & (output < outputs)[None, :],
            other=0.0,
        )
        total += tl.dot(active.to(value.dtype), matrix.to(value.dtype), input_precision=PRECISION)
    return total


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
    total = _two_layers(
        value, expand, contract, channels, hidden, outputs, PRECISION, ROWS, ACROSS, WIDE, STEP
    )
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
    out,
    of_expand,
    of_contract,
    pixels,
    channels,
    hidden,
    outputs,
    stride,
    tiles,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
    WIDE: tl.constexpr,
    HIDDEN: tl.constexpr,
):
    """Compute the hidden map once more; write the gradient of x, and add up those of the weights."""
    channel, output, inner = tl.arange(0, ACROSS), tl.arange(0, WIDE), tl.arange(0, HIDDEN)
    present, wanted, within = channel < channels, output < outputs, inner < hidden
    of_first = inner[:, None] * channels + channel[None, :]
    of_second = output[:, None] * hidden + inner[None, :]
    first = tl.load(expand + of_first, mask=within[:, None] & present[None, :], other=0.0)
    first = first.to(out.dtype.element_ty)
    second = tl.load(contract + of_second, mask=wanted[:, None] & within[None, :], other=0.0)
    second = second.to(out.dtype.element_ty)
    first_sum = tl.zeros([HIDDEN, ACROSS], dtype=tl.float32)
    second_sum = tl.zeros([WIDE, HIDDEN], dtype=tl.float32)
    for index in range(tiles):
        pixel = (tl.program_id(0).to(tl.int64) * tiles + index) * ROWS + tl.arange(0, ROWS)
        valid = (pixel < pixels)[:, None]
        mask = valid & present[None, :]
        value = tl.load(x + pixel[:, None] * stride + channel[None, :], mask=mask, other=0.0)
        upstream = tl.load(
            grad + pixel[:, None] * outputs + output[None, :], mask=valid & wanted[None, :], other=0.0
        )
        before = tl.dot(value, tl.trans(first), input_precision=PRECISION)
        active = gelu(before).to(value.dtype)
        second_sum += tl.dot(tl.trans(upstream), active, input_precision=PRECISION)
        g = tl.dot(upstream, second, input_precision=PRECISION)
        g = (g * gelu_derivative(before)).to(value.dtype)
        first_sum += tl.dot(tl.trans(g), value, input_precision=PRECISION)
        here = pixel[:, None] * channels + channel[None, :]
        tl.store(out + here, tl.dot(g, first, input_precision=PRECISION), mask=mask)
    program = tl.program_id(0).to(tl.int64)
    target = of_expand + program * hidden * channels + of_first
    tl.store(target, first_sum, mask=within[:, None] & present[None, :])
    target = of_contract + program * outputs * hidden + of_second
    tl.store(target, second_sum, mask=wanted[:, None] & within[None, :])


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
    scale_a,
    scale_b,
    scale_c,
    expand,
    contract,
    weight,
    shortcut,
    out,
    pixels,
    channels,
    outputs,
    hidden,
    third_stride,
    stride,
    PRECISION: tl.constexpr,
    COUNT: tl.constexpr,
    MLP: tl.constexpr,
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
        value = tl.load(third + pixel[:, None] * third_stride + channel[None, :], mask=mask, other=0.0)
        if MLP:
            value = _two_layers(
                value, expand, contract, channels, hidden, channels, PRECISION, ROWS, ACROSS, ACROSS, STEP
            ).to(dtype)
        c = value.to(tl.float32)
    gated_a = (a + tl.load(scale_a).to(tl.float32) * tl.sigmoid(b + c)).to(dtype)
    gated_b = (b + tl.load(scale_b).to(tl.float32) * tl.sigmoid(a + c)).to(dtype)
    row = COUNT * channels
    for start in range(0, outputs, STEP):
        output = start + tl.arange(0, STEP)
        product = _projected(gated_a, weight, output, row, outputs, channels, PRECISION, ACROSS)
        product += _projected(gated_b, weight + channels, output, row, outputs, channels, PRECISION, ACROSS)
        if COUNT == 3:
            gated_c = (c + tl.load(scale_c).to(tl.float32) * tl.sigmoid(a + b)).to(dtype)
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
    first_scale,
    second_scale,
    third_scale,
    weight,
    grad,
    gated,
    grad_first,
    grad_second,
    grad_third,
    of_scales,
    of_weight,
    pixels,
    channels,
    outputs,
    tiles,
    PRECISION: tl.constexpr,
    COUNT: tl.constexpr,
    WEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Write the gradients of the branches, and add up those of the scales.

    WEIGHT: that of the weight as well, in one step over its rows. Otherwise write the gated branches once more.
    """
    channel = tl.arange(0, ACROSS)
    present = channel < channels
    row = COUNT * channels
    scale_a, scale_b = tl.load(first_scale).to(tl.float32), tl.load(second_scale).to(tl.float32)
    scale_c = 0.0
    if COUNT == 3:
        scale_c = tl.load(third_scale).to(tl.float32)
    share_a = 0.0
    share_b = 0.0
    share_c = 0.0
    weight_a = tl.zeros([STEP, ACROSS], dtype=tl.float32)
    weight_b = tl.zeros([STEP, ACROSS], dtype=tl.float32)
    weight_c = tl.zeros([STEP, ACROSS], dtype=tl.float32)
    for index in range(tiles):
        pixel = (tl.program_id(0).to(tl.int64) * tiles + index) * ROWS + tl.arange(0, ROWS)
        valid = pixel < pixels
        mask = valid[:, None] & present[None, :]
        here = pixel[:, None] * channels + channel[None, :]
        a = tl.load(first + here, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(second + here, mask=mask, other=0.0).to(tl.float32)
        c = tl.zeros([ROWS, ACROSS], dtype=tl.float32)
        if COUNT == 3:
            c = tl.load(third + here, mask=mask, other=0.0).to(tl.float32)
        gate_a, gate_b, gate_c = tl.sigmoid(b + c), tl.sigmoid(a + c), tl.sigmoid(a + b)
        dtype = grad_first.dtype.element_ty
        gated_a, gated_b = (a + scale_a * gate_a).to(dtype), (b + scale_b * gate_b).to(dtype)
        gated_c = (c + scale_c * gate_c).to(dtype)
        if not WEIGHT:
            wide = pixel[:, None] * row + channel[None, :]
            tl.store(gated + wide, gated_a, mask=mask)
            tl.store(gated + channels + wide, gated_b, mask=mask)
            if COUNT == 3:
                tl.store(gated + 2 * channels + wide, gated_c, mask=mask)

        grad_a = tl.zeros([ROWS, ACROSS], dtype=tl.float32)
        grad_b = tl.zeros([ROWS, ACROSS], dtype=tl.float32)
        grad_c = tl.zeros([ROWS, ACROSS], dtype=tl.float32)
        for start in range(0, outputs, STEP):
            output = start + tl.arange(0, STEP)
            within = output < outputs
            upstream = tl.load(
                grad + pixel[:, None] * outputs + output[None, :],
                mask=valid[:, None] & within[None, :],
                other=0.0,
            )
            matrix = weight + output[:, None] * row + channel[None, :]
            inside = within[:, None] & present[None, :]
            of_a = tl.load(matrix, mask=inside, other=0.0).to(upstream.dtype)
            grad_a += tl.dot(upstream, of_a, input_precision=PRECISION)
            of_b = tl.load(matrix + channels, mask=inside, other=0.0).to(upstream.dtype)
            grad_b += tl.dot(upstream, of_b, input_precision=PRECISION)
            if COUNT == 3:
                of_c = tl.load(matrix + 2 * channels, mask=inside, other=0.0).to(upstream.dtype)
                grad_c += tl.dot(upstream, of_c, input_precision=PRECISION)
            if WEIGHT:
                across = tl.trans(upstream)
                weight_a += tl.dot(across, gated_a, input_precision=PRECISION)
                weight_b += tl.dot(across, gated_b, input_precision=PRECISION)
                if COUNT == 3:
                    weight_c += tl.dot(across, gated_c, input_precision=PRECISION)

        share_a += tl.sum(tl.sum(grad_a * gate_a, axis=1), axis=0)
        share_b += tl.sum(tl.sum(grad_b * gate_b, axis=1), axis=0)
        through_a = scale_a * grad_a * gate_a * (1.0 - gate_a)
        through_b = scale_b * grad_b * gate_b * (1.0 - gate_b)
        if COUNT == 3:
            share_c += tl.sum(tl.sum(grad_c * gate_c, axis=1), axis=0)
            through_c = scale_c * grad_c * gate_c * (1.0 - gate_c)
            tl.store(grad_third + here, grad_c + through_a + through_b, mask=mask)
            grad_a += through_c
            grad_b += through_c
        tl.store(grad_first + here, grad_a + through_b, mask=mask)
        tl.store(grad_second + here, grad_b + through_a, mask=mask)

    program = tl.program_id(0).to(tl.int64)
    target = of_scales + program * COUNT
    tl.store(target, share_a)
    tl.store(target + 1, share_b)
    if COUNT == 3:
        tl.store(target + 2, share_c)
    if WEIGHT:
        output = tl.arange(0, STEP)
        inside = (output < outputs)[:, None] & present[None, :]
        target = of_weight + (program * outputs + output[:, None]) * row + channel[None, :]
        tl.store(target, weight_a, mask=inside)
        tl.store(target + channels, weight_b, mask=inside)
        if COUNT == 3:
            tl.store(target + 2 * channels, weight_c, mask=inside)
