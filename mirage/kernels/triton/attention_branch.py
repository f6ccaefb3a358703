"""Channel attention in Triton: the whole branch, forward and backward.

The algebra on the Gram matrix (norms, temperature, softmax within each head) is one kernel in each direction, one
program per image.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mirage.kernels.triton import reductions
from mirage.kernels.triton.convolution import convolve, gradients, neighbours, unfilled
from mirage.kernels.triton.linear_convolution import fits, linear_convolution_gradient
from mirage.kernels.triton.matrices import padded, weight_gradient
from mirage.kernels.triton.pointwise import linear
from mirage.kernels.triton.reductions import gram_gradient, partial_gram

MAX_VALUES = 64
"""Most channels of v for which one kernel convolves and adds up the Gram matrix, which it holds in registers."""

ROWS = 16
"""Rows of the attention matrix that a program processes at a time."""


def attention(
    x: Tensor, matrix: Tensor, filters: Tensor, temperature: Tensor, keep: bool = True
) -> tuple[Tensor, ...]:
    """Apply attention to x (b, h, w, c); matrix (3a, c), filters (3a, 3, 3), temperature (heads,).

    Return the result (b, h, w, a) and with `keep` what the gradient needs, otherwise empty tensors: q, k and v after
    their convolution, the inner products of q and k (b, a, a), their norms (b, 2a), the attention weights (b, a, a),
    and the prepared filters.
    """
    batch, height, width, _ = x.shape
    low_filters = unfilled(filters, x.dtype)
    qkv = linear(x, matrix, move=(filters.contiguous(), low_filters))
    values = matrix.shape[0] // 3
    if not keep and values <= MAX_VALUES:
        convolved, partial = _convolve_gram(qkv, low_filters)
    else:
        convolved = convolve(qkv, low_filters)
        partial = partial_gram(convolved[..., : 2 * values].flatten(1, 2))
    heads = temperature.shape[0]

    weights = x.new_empty(batch, values, values)
    dots = x.new_empty(batch, values, values, dtype=torch.float32)
    norms = x.new_empty(batch, 2 * values, dtype=torch.float32)
    with torch.cuda.device_of(x):
        _attention_weights[(batch, triton.cdiv(values, ROWS))](
            partial,
            temperature,
            weights,
            dots,
            norms,
            values,
            values // heads,
            partial.shape[1],
            ROWS=ROWS,
            ACROSS=triton.next_power_of_2(values),
        )
    v = convolved[..., -values:].flatten(1, 2)
    out = torch.bmm(v, weights.mT).view(batch, height, width, values)
    kept = convolved, dots, norms, weights, low_filters
    return out, *(kept if keep else (tensor.new_empty(0) for tensor in kept))


def _convolve_gram(qkv: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return v (b, h, w, a) after the 3x3 convolution of qkv, and inner products as `partial_gram` does.

    Of q and k only sums over pixels are written. `filters`: prepared.
    """
    batch, height, width, both = qkv.shape
    values = both // 3
    across = padded(values)
    pixels = min(padded(width), 32 if across <= 32 else 16)
    pieces = triton.cdiv(width, pixels)
    tiles = max(reductions.CHUNK // pixels, 1)
    chunks = triton.cdiv(height * pieces, tiles)
    v = qkv.new_empty(batch, height, width, values)
    partial = qkv.new_empty(batch, chunks, 2 * values, 2 * values, dtype=torch.float32)
    with torch.cuda.device_of(qkv):
        _convolve_and_gram[(batch * chunks,)](
            qkv,
            filters,
            v,
            partial,
            height,
            width,
            values,
            pieces,
            chunks,
            tiles,
            PIXELS=pixels,
            ACROSS=across,
            num_warps=4 if across <= 32 else 8,
        )
    return v, partial


def attention_gradient(
    grad: Tensor,
    x: Tensor,
    matrix: Tensor,
    filters: Tensor,
    temperature: Tensor,
    convolved: Tensor,
    dots: Tensor,
    norms: Tensor,
    weights: Tensor,
    low_filters: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients with respect to x, matrix, filters and temperature."""
    batch, values = weights.shape[:2]
    rows = grad.flatten(1, 2)
    v = convolved[..., 2 * values :].flatten(1, 2)
    grad_weights = torch.bmm(rows.mT, v)
    grad_convolved = torch.empty_like(convolved)
    torch.bmm(rows, weights, out=grad_convolved[..., 2 * values :].flatten(1, 2))

    symmetric = dots.new_empty(batch, 2 * values, 2 * values)
    row_sums = dots.new_empty(batch, values)
    heads = temperature.shape[0]
    across = triton.next_power_of_2(values)
    with torch.cuda.device_of(x):
        _attention_gradient[(batch,)](
            grad_weights,
            dots,
            norms,
            temperature,
            symmetric,
            row_sums,
            values,
            values // heads,
            ROWS=ROWS,
            ACROSS=across,
            num_warps=4 if across <= 64 else 8,
        )
    qk = slice(0, 2 * values)
    gram_gradient(symmetric, convolved[..., qk].flatten(1, 2), out=grad_convolved[..., qk].flatten(1, 2))

    if fits(x):
        parts, grad_matrix, grad_filters = linear_convolution_gradient(grad_convolved, x, matrix, low_filters)
        grad_x = parts[0] if len(parts) == 1 else parts.sum(0)
    else:
        grad_qkv, grad_filters = gradients(grad_convolved, linear(x, matrix), low_filters)
        grad_x = linear(grad_qkv, matrix.mT)
        grad_matrix = weight_gradient(grad_qkv.flatten(0, 2), x.flatten(0, 2), matrix.dtype)
    return (
        grad_x,
        grad_matrix.to(matrix.dtype),
        grad_filters.to(filters.dtype),
        row_sums.view(batch, heads, -1).sum((0, 2)).to(temperature.dtype),
    )


@triton.jit
def _convolved(qkv, filters, row, y, height, width, column, channel, channels):
    """Return one of q, k and v at some pixels of row y after the 3x3 convolution, in fp32. row: of all images."""
    total = tl.zeros([column.shape[0], channel.shape[0]], dtype=tl.float32)
    for dy in range(3):
        for dx in tl.static_range(3):
            tap = tl.load(
                filters + (dy * 3 + dx) * 3 * channels + channel, mask=channel < channels, other=0.0
            )
            before = neighbours(
                qkv, row, y, dy - 1, dx - 1, height, width, column, channel, channels, 3 * channels
            )
            total += before * tap.to(tl.float32)[None, :]
    return total


@triton.jit
def _convolve_and_gram(
    qkv,
    filters,
    out,
    partial,
    height,
    width,
    channels,
    pieces,
    chunks,
    tiles,
    PIXELS: tl.constexpr,
    ACROSS: tl.constexpr,
):
    image, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    channel = tl.arange(0, ACROSS)
    present = channel < channels
    dot = tl.zeros([ACROSS, ACROSS], dtype=tl.float32)
    q_square = tl.zeros([ACROSS], dtype=tl.float32)
    k_square = tl.zeros([ACROSS], dtype=tl.float32)
    for index in range(tiles):
        tile = chunk * tiles + index
        line = tile // pieces
        y = tl.where(line < height, line, 2 * height)  # past the last row no pixels are near
        row = image * height + line
        column = (tile % pieces) * PIXELS + tl.arange(0, PIXELS)
        mask = (column < tl.where(line < height, width, 0))[:, None] & present[None, :]
        # Rounded as the map that training writes; `partial_gram` multiplies it in fp32.
        q = _convolved(qkv, filters, row, y, height, width, column, channel, channels)
        q = tl.where(mask, q, 0.0).to(out.dtype.element_ty)
        k = _convolved(qkv + channels, filters + channels, row, y, height, width, column, channel, channels)
        k = tl.where(mask, k, 0.0).to(out.dtype.element_ty)
        dot += tl.dot(tl.trans(q), k, input_precision="ieee")
        q, k = q.to(tl.float32), k.to(tl.float32)
        q_square += tl.sum(q * q, axis=0)
        k_square += tl.sum(k * k, axis=0)
        v = _convolved(
            qkv + 2 * channels, filters + 2 * channels, row, y, height, width, column, channel, channels
        )
        pixel = row.to(tl.int64) * width + column
        tl.store(out + pixel[:, None] * channels + channel[None, :], v, mask=mask)

    # Of a Gram matrix of q and k only what `_attention_weights` reads: q'k, and the diagonal.
    both = 2 * channels
    target = partial + tl.program_id(0).to(tl.int64) * both * both
    tl.store(
        target + channel[:, None] * both + channels + channel[None, :],
        dot,
        mask=present[:, None] & present[None, :],
    )
    tl.store(target + channel * (both + 1), q_square, mask=present)
    tl.store(target + (channels + channel) * (both + 1), k_square, mask=present)


@triton.jit
def _attention_weights(
    partial,
    temperature,
    weights,
    dots,
    norms,
    channels,
    head_width,
    chunks,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, ACROSS)
    in_row, in_column = row < channels, column < channels
    mask = in_row[:, None] & in_column[None, :]
    both = 2 * channels

    dot = tl.zeros([ROWS, ACROSS], dtype=tl.float32)
    q = tl.zeros([ROWS], dtype=tl.float32)
    k = tl.zeros([ACROSS], dtype=tl.float32)
    for chunk in range(chunks):
        gram = partial + (image * chunks + chunk) * both * both
        dot += tl.load(gram + row[:, None] * both + channels + column[None, :], mask=mask, other=0.0)
        q += tl.load(gram + row * (both + 1), mask=in_row, other=0.0)
        k += tl.load(gram + (channels + column) * (both + 1), mask=in_column, other=0.0)
    q = tl.sqrt(tl.maximum(q, 1e-24))
    k = tl.sqrt(tl.maximum(k, 1e-24))

    factor = tl.load(temperature + row // head_width, mask=in_row, other=0.0).to(tl.float32)
    same = mask & ((row // head_width)[:, None] == (column // head_width)[None, :])
    logits = dot / (q[:, None] * k[None, :]) * factor[:, None]
    logits = tl.where(same, logits, tl.where(in_row[:, None], -float("inf"), 0.0))
    share = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    share = share / tl.sum(share, axis=1)[:, None]

    here = (image * channels + row)[:, None] * channels + column[None, :]
    tl.store(weights + here, share, mask=mask)
    tl.store(dots + here, dot, mask=mask)
    tl.store(norms + image * both + row, q, mask=in_row)
    if tl.program_id(1) == 0:
        tl.store(norms + image * both + channels + column, k, mask=in_column)


@triton.jit
def _attention_gradient(
    grad,
    dots,
    norms,
    temperature,
    symmetric,
    row_sums,
    channels,
    head_width,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
):
    """Write `G + G'` for the gradient G of the Gram matrix, and each row's share of the temperature's gradient."""
    image = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, ACROSS)
    in_column = column < channels
    both = 2 * channels
    target = symmetric + image * both * both
    k = tl.load(norms + image * both + channels + column, mask=in_column, other=1.0)
    k_total = tl.zeros([ACROSS], dtype=tl.float32)
    for start in range(0, channels, ROWS):
        row = start + tl.arange(0, ROWS)
        in_row = row < channels
        mask = in_row[:, None] & in_column[None, :]
        here = (image * channels + row)[:, None] * channels + column[None, :]
        q = tl.load(norms + image * both + row, mask=in_row, other=1.0)
        factor = tl.load(temperature + row // head_width, mask=in_row, other=0.0).to(tl.float32)
        same = mask & ((row // head_width)[:, None] == (column // head_width)[None, :])
        scale = q[:, None] * k[None, :]
        cosine = tl.load(dots + here, mask=mask, other=0.0) / scale
        logits = tl.where(same, cosine * factor[:, None], tl.where(in_row[:, None], -float("inf"), 0.0))
        share = tl.exp(logits - tl.max(logits, axis=1)[:, None])
        share = share / tl.sum(share, axis=1)[:, None]

        g = tl.load(grad + here, mask=same, other=0.0).to(tl.float32)
        grad_logits = tl.where(same, share * (g - tl.sum(share * g, axis=1)[:, None]), 0.0)
        tl.store(row_sums + image * channels + row, tl.sum(grad_logits * cosine, axis=1), mask=in_row)
        grad_cosine = grad_logits * factor[:, None]
        product = grad_cosine * cosine
        k_total += tl.sum(product, axis=0)

        grad_dot = grad_cosine / scale
        tl.store(target + row[:, None] * both + channels + column[None, :], grad_dot, mask=mask)
        tl.store(target + (channels + column)[None, :] * both + row[:, None], grad_dot, mask=mask)
        q_diagonal = -tl.sum(product, axis=1) / (q * q)
        diagonal = tl.where(row[:, None] == column[None, :], q_diagonal[:, None], 0.0)
        tl.store(target + row[:, None] * both + column[None, :], diagonal, mask=mask)

    k_diagonal = -k_total / (k * k)
    for start in range(0, channels, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < channels)[:, None] & in_column[None, :]
        diagonal = tl.where(row[:, None] == column[None, :], k_diagonal[None, :], 0.0)
        tl.store(target + (channels + row)[:, None] * both + channels + column[None, :], diagonal, mask=mask)
