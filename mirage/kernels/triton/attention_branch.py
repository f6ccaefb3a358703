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

from mirage.kernels.triton.convolution import convolve, gradients, unfilled
from mirage.kernels.triton.linear_convolution import fits, linear_convolution_gradient
from mirage.kernels.triton.matrices import weight_gradient
from mirage.kernels.triton.pointwise import linear
from mirage.kernels.triton.reductions import gram_gradient, partial_gram

ROWS = 16
"""Rows of the attention matrix that a program processes at a time."""


def attention(x: Tensor, matrix: Tensor, filters: Tensor, temperature: Tensor) -> tuple[Tensor, ...]:
    """Apply attention to x (b, h, w, c); matrix (3a, c), filters (3a, 3, 3), temperature (heads,).

    Return the result (b, h, w, a) and what the gradient needs: q, k and v after their convolution, the inner products
    of q and k (b, a, a), their norms (b, 2a), the attention weights (b, a, a), and the prepared filters.
    """
    batch, height, width, _ = x.shape
    low_filters = unfilled(filters, x.dtype)
    convolved = convolve(linear(x, matrix, move=(filters.contiguous(), low_filters)), low_filters)
    values = matrix.shape[0] // 3
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
    v = convolved[..., 2 * values :].flatten(1, 2)
    out = torch.bmm(v, weights.mT).view(batch, height, width, values)
    return out, convolved, dots, norms, weights, low_filters


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
