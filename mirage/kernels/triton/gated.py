"""Gated units around a depthwise convolution in Triton: half of the channels is gated by the GELU of the other.

The convolved map stays in registers: forward writes the product, backward computes the convolution again and writes
what it passes on. `gated_depthwise` is the middle of the feed-forward network, `gated_values` that of the gated
convolution.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mirage.kernels.triton.depthwise import convolve, taps_gradient
from mirage.kernels.triton.tiling import gelu, gelu_slope, pixel_step, side_by_side, tile


def gated_depthwise(hidden: Tensor, taps: Tensor) -> Tensor:
    """hidden (b, h, w, 2n) before its GELU, taps (2n, 3, 3) → (b, h, w, n).

    GELU is a pass of its own: inside the convolution it would be evaluated for every tap.
    """
    out = hidden.new_empty((*hidden.shape[:3], hidden.shape[3] // 2))
    _run_depthwise(F.gelu(hidden), taps, out, grad=None)
    return out


def gated_depthwise_gradient(grad: Tensor, hidden: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients with respect to hidden and taps, from the map before its GELU alone."""
    active = F.gelu(hidden)
    convolved = hidden.new_empty(hidden.shape)  # its gradient
    _run_depthwise(active, taps, convolved, grad=grad)
    return convolve(convolved, taps, reverse=True, before_gelu=hidden), taps_gradient(convolved, active, taps)


def gated_values(hidden: Tensor, kernels: Tensor) -> Tensor:
    """hidden (b, h, w, 2n), kernels (b, m, k, k) → (b, h, w, n).

    The first n channels are the gate; of the others the last m are convolved, each image by its own kernels.
    """
    out = hidden.new_empty((*hidden.shape[:3], hidden.shape[3] // 2))
    _run_values(hidden, kernels, out, out, grad=None)
    return out


def gated_values_gradient(grad: Tensor, hidden: Tensor, kernels: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients with respect to hidden and kernels."""
    wide = kernels.shape[1]
    out = hidden.new_empty(hidden.shape)
    convolved = hidden.new_empty((*hidden.shape[:3], wide))  # its gradient
    _run_values(hidden, kernels, out, convolved, grad=grad)
    convolve(convolved, kernels, reverse=True, out=out[..., -wide:])
    return out, taps_gradient(convolved, hidden[..., -wide:], kernels)


def _run_depthwise(active: Tensor, taps: Tensor, out: Tensor, grad: Tensor | None) -> None:
    batch, height, width, both = active.shape
    size = taps.shape[-1]
    active, step = pixel_step(active)
    upstream, grad_step = (active, 0) if grad is None else pixel_step(grad)
    pixels, wide = tile(width, both // 2)
    pieces = triton.cdiv(width, pixels)
    with torch.cuda.device_of(active):
        _gated_depthwise[(batch * height * pieces, triton.cdiv(both // 2, wide))](
            active,
            side_by_side(taps),
            upstream,
            out,
            height,
            width,
            both // 2,
            step,
            grad_step,
            pieces,
            SIZE=size,
            BACKWARD=grad is not None,
            PIXELS=pixels,
            CHANNELS=wide,
        )


def _run_values(hidden: Tensor, kernels: Tensor, out: Tensor, convolved: Tensor, grad: Tensor | None) -> None:
    batch, height, width, both = hidden.shape
    wide, size = kernels.shape[1], kernels.shape[-1]
    hidden, step = pixel_step(hidden)
    upstream, grad_step = (hidden, 0) if grad is None else pixel_step(grad)
    pixels, block = tile(width, both // 2)
    pieces = triton.cdiv(width, pixels)
    with torch.cuda.device_of(hidden):
        _gated_values[(batch * height * pieces, triton.cdiv(both // 2, block))](
            hidden,
            side_by_side(kernels),
            upstream,
            out,
            convolved,
            height,
            width,
            both // 2,
            wide,
            step,
            grad_step,
            pieces,
            SIZE=size,
            BACKWARD=grad is not None,
            PIXELS=pixels,
            CHANNELS=block,
        )


@triton.jit
def _gated_depthwise(
    active,
    taps,
    grad,
    out,
    height,
    width,
    half,
    step,
    grad_step,
    pieces,
    SIZE: tl.constexpr,
    BACKWARD: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    row = tl.program_id(0) // pieces  # of all images
    image = row // height
    y = row % height
    column = (tl.program_id(0) % pieces) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    present = channel < half

    gate = tl.zeros([PIXELS, CHANNELS], dtype=tl.float32)
    value = tl.zeros([PIXELS, CHANNELS], dtype=tl.float32)
    for dy in range(SIZE):
        there = y + dy - SIZE // 2
        start = active + (image.to(tl.int64) * height + there) * width * step
        end = tl.where((there >= 0) & (there < height), width, 0)
        for dx in tl.static_range(SIZE):
            at = column + dx - SIZE // 2
            mask = ((at >= 0) & (at < end))[:, None] & present[None, :]
            here = start + at[:, None] * step + channel[None, :]
            tap = taps + (dy * SIZE + dx) * 2 * half + channel
            gate += (
                tl.load(here, mask=mask, other=0.0).to(tl.float32)
                * tl.load(tap, mask=present, other=0.0).to(tl.float32)[None, :]
            )
            value += (
                tl.load(here + half, mask=mask, other=0.0).to(tl.float32)
                * tl.load(tap + half, mask=present, other=0.0).to(tl.float32)[None, :]
            )

    pixel = row.to(tl.int64) * width + column
    mask = (column < width)[:, None] & present[None, :]
    if BACKWARD:
        g = tl.load(grad + pixel[:, None] * grad_step + channel[None, :], mask=mask, other=0.0)
        g = g.to(tl.float32)
        target = out + pixel[:, None] * 2 * half + channel[None, :]
        tl.store(target, g * value * gelu_slope(gate), mask=mask)
        tl.store(target + half, g * gelu(gate), mask=mask)
    else:
        tl.store(out + pixel[:, None] * half + channel[None, :], gelu(gate) * value, mask=mask)


@triton.jit
def _gated_values(
    hidden,
    taps,
    grad,
    out,
    convolved,
    height,
    width,
    half,
    wide,
    step,
    grad_step,
    pieces,
    SIZE: tl.constexpr,
    BACKWARD: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    row = tl.program_id(0) // pieces  # of all images
    image = row // height
    y = row % height
    column = (tl.program_id(0) % pieces) * PIXELS + tl.arange(0, PIXELS)
    first = tl.program_id(1) * CHANNELS
    channel = first + tl.arange(0, CHANNELS)
    plain = half - wide  # values below this channel pass as they are
    window = (channel >= plain) & (channel < half)

    pixel = row.to(tl.int64) * width + column
    here = hidden + pixel[:, None] * step + channel[None, :]
    within = (column < width)[:, None]
    mask = within & (channel < half)[None, :]
    gate = tl.load(here, mask=mask, other=0.0).to(tl.float32)
    value = tl.load(here + half, mask=within & (channel < plain)[None, :], other=0.0).to(tl.float32)
    if first + CHANNELS > plain:
        mine = taps + image.to(tl.int64) * SIZE * SIZE * wide + channel - plain
        for dy in range(SIZE):
            there = y + dy - SIZE // 2
            start = hidden + (image.to(tl.int64) * height + there) * width * step
            end = tl.where((there >= 0) & (there < height), width, 0)
            for dx in tl.static_range(SIZE):
                at = column + dx - SIZE // 2
                inside = ((at >= 0) & (at < end))[:, None] & window[None, :]
                neighbour = tl.load(
                    start + at[:, None] * step + channel[None, :] + half, mask=inside, other=0.0
                )
                tap = tl.load(mine + (dy * SIZE + dx) * wide, mask=window, other=0.0)
                value += neighbour.to(tl.float32) * tap.to(tl.float32)[None, :]

    if BACKWARD:
        g = tl.load(grad + pixel[:, None] * grad_step + channel[None, :], mask=mask, other=0.0)
        g = g.to(tl.float32)
        target = out + pixel[:, None] * 2 * half + channel[None, :]
        tl.store(target, g * value * gelu_slope(gate), mask=mask)
        passed = g * gelu(gate)
        tl.store(target + half, passed, mask=within & (channel < plain)[None, :])
        tl.store(
            convolved + pixel[:, None] * wide + (channel - plain)[None, :],
            passed,
            mask=within & window[None, :],
        )
    else:
        tl.store(out + pixel[:, None] * half + channel[None, :], gelu(gate) * value, mask=mask)
