"""Regions of a block as one operator each: they keep their inputs alone and compute the rest again for the gradient.

Most of what a block computes is cheap to compute and dear to keep: a page of memory that a training step asks for
anew costs more than the products that fill it. An operator takes its images in groups small enough that the wide
maps between its input and its output stay in the cache, and are written over by the next group.

Each equals its namesake in `reference.py`. Inside is plain PyTorch, which runs on any device, or the C of
`native_regions.py` where there is a compiler.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mirage.kernels.cpu import fused_c, library
from mirage.kernels.cpu.operators import conv, conv_backward, narrow, wide
from mirage.kernels.custom_op import Operator
from mirage.kernels.reference import NORM_EPS, at_least_fp32

GROUP_BYTES = 16 * 2**20
"""Size of the widest map of a group of images; a few of them are alive at a time."""

P = ParamSpec("P")
R = TypeVar("R")
aten = torch.ops.aten


def _in_its_own_type(function: Callable[P, R]) -> Callable[P, R]:
    """Without autocast: the caller chose the types."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args, **kwargs)

    return run


def _groups(x: Tensor, widest: int) -> Iterator[slice]:
    """Images of x (b, h, w, c) that are taken together, where the widest map has so many channels."""
    batch, height, width, _ = x.shape
    size = max(1, GROUP_BYTES // (height * width * widest * x.element_size()))
    for start in range(0, batch, size):
        yield slice(start, min(start + size, batch))


def _rows(x: Tensor) -> Tensor:
    """(b, h, w, c) → (b * h * w, c)."""
    return x.flatten(0, 2)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(_rows(x), weight, bias).view(*x.shape[:3], weight.shape[0])


def _write(target: Tensor, x: Tensor, weight: Tensor) -> None:
    """`target = linear(x, weight)` in place."""
    torch.mm(_rows(x), weight.mT, out=_rows(target))


def _sum_like(weight: Tensor) -> Tensor:
    """Zeros to add a weight's gradient up in, group by group."""
    return at_least_fp32(weight).new_zeros(weight.shape)


def _add_product(total: Tensor, grad: Tensor, x: Tensor) -> None:
    """`total += grad^T x` over the pixels: what a group adds to the gradient of a matrix."""
    if total.dtype == x.dtype:
        total.addmm_(_rows(grad).mT, _rows(x))
    else:
        total += _rows(grad).mT @ _rows(x)


def _normed(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    normed, mean, rstd = aten.native_layer_norm(at_least_fp32(x), (x.shape[3],), scale, shift, NORM_EPS)
    return normed, mean, rstd


def _dynamic(x: Tensor, kernels: Tensor) -> Tensor:
    return narrow(conv(wide(x), kernels.flatten(0, 1)), x.shape[0])


# Feed-forward network


@Operator
@_in_its_own_type
def feed_forward(
    x: Tensor, scale: Tensor, shift: Tensor, expand: Tensor, taps: Tensor, contract: Tensor
) -> Tensor:
    """x (b, h, w, c), expand (2n, c), taps (2n, 3, 3), contract (c, n) → (b, h, w, c)."""
    if library.serves(x, scale, shift, expand, taps, contract):
        return fused_c.feed_forward(x, scale, shift, expand, taps, contract)
    out = contract.new_empty(*x.shape[:3], contract.shape[0])
    for group in _groups(x, expand.shape[0]):
        normed = _normed(x[group], scale, shift)[0].to(expand.dtype)
        gate, values = conv(aten.gelu_(_linear(normed, expand)), taps).chunk(2, dim=3)
        _write(out[group], F.gelu(gate).mul_(values), contract)
    return out


@torch.library.custom_op("mirage::feed_forward_backward", mutates_args=())
@_in_its_own_type
def feed_forward_backward(
    grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, expand: Tensor, taps: Tensor, contract: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to all inputs."""
    if library.serves(grad, x, scale, shift, expand, taps, contract):
        return fused_c.feed_forward_backward(grad, x, scale, shift, expand, taps, contract)
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    sums = [_sum_like(weight) for weight in (scale, shift, expand, taps, contract)]
    grad_scale, grad_shift, grad_expand, grad_taps, grad_contract = sums
    for group in _groups(x, expand.shape[0]):
        part, above = x[group], grad[group]
        normed_fp32, mean, rstd = _normed(part, scale, shift)
        normed = normed_fp32.to(expand.dtype)
        hidden = _linear(normed, expand)
        active = F.gelu(hidden)
        gate, values = conv(active, taps).chunk(2, dim=3)
        opened = F.gelu(gate)
        _add_product(grad_contract, above, opened * values)
        to_product = _linear(above, contract.mT)
        to_windows = torch.cat(
            (aten.gelu_backward(values * to_product, gate), opened.mul_(to_product)), dim=3
        )
        to_active, to_taps = conv_backward(to_windows, active, taps)
        to_hidden = aten.gelu_backward(to_active, hidden)
        _add_product(grad_expand, to_hidden, normed)
        grad_taps += to_taps
        grad_normed = _linear(to_hidden, expand.mT)
        to_x, to_scale, to_shift = aten.native_layer_norm_backward(
            grad_normed.to(normed_fp32.dtype),
            at_least_fp32(part),
            (x.shape[3],),
            mean,
            rstd,
            scale,
            shift,
            [True, True, True],
        )
        grad_x[group] = to_x
        grad_scale += to_scale
        grad_shift += to_shift
    return (grad_x, *_like(sums, (scale, shift, expand, taps, contract)))  # type: ignore[return-value]


# Attention's input


@Operator
@_in_its_own_type
def attention_input(x: Tensor, matrix: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """x (b, h, w, c), matrix (3a, c), taps (3a, 3, 3) → v (b, h, w, a), Gram matrix of q and k (b, 2a, 2a)."""
    if library.serves(x, matrix, taps):
        return fused_c.attention_input(x, matrix, taps)
    batch, width = x.shape[0], matrix.shape[0] // 3
    v = matrix.new_empty(*x.shape[:3], width)
    gram = at_least_fp32(matrix).new_empty(batch, 2 * width, 2 * width)
    for group in _groups(x, 3 * width):
        qkv = conv(_linear(x[group], matrix), taps)
        v[group] = qkv[..., 2 * width :]
        qk = at_least_fp32(qkv[..., : 2 * width]).flatten(1, 2)
        torch.bmm(qk.mT, qk, out=gram[group])
    return v, gram


@torch.library.custom_op("mirage::attention_input_backward", mutates_args=())
@_in_its_own_type
def attention_input_backward(
    grad_v: Tensor, grad_gram: Tensor, x: Tensor, matrix: Tensor, taps: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to all inputs."""
    if library.serves(grad_v, grad_gram, x, matrix, taps):
        return fused_c.attention_input_backward(grad_v, grad_gram, x, matrix, taps)
    width = matrix.shape[0] // 3
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    grad_matrix, grad_taps = sums = [_sum_like(weight) for weight in (matrix, taps)]
    for group in _groups(x, 3 * width):
        qkv = _linear(x[group], matrix)
        qk = at_least_fp32(conv(qkv[..., : 2 * width].contiguous(), taps[: 2 * width])).flatten(1, 2)
        above = torch.empty_like(qkv)
        to_qk = qk @ (grad_gram[group] + grad_gram[group].mT)
        above[..., : 2 * width] = to_qk.view(*qkv.shape[:3], 2 * width)
        above[..., 2 * width :] = grad_v[group]
        to_qkv, to_taps = conv_backward(above, qkv, taps)
        grad_taps += to_taps
        _add_product(grad_matrix, to_qkv, x[group])
        _write(grad_x[group], to_qkv, matrix.mT)
    return (grad_x, *_like(sums, (matrix, taps)))  # type: ignore[return-value]


# Gated convolution


def _gated_natively(*tensors: Tensor) -> bool:
    *_, kernels, _ = tensors
    return library.serves(*tensors) and kernels.shape[2:] == (7, 7)


@Operator
@_in_its_own_type
def gated_unit(x: Tensor, weight: Tensor, bias: Tensor, kernels: Tensor, contract: Tensor) -> Tensor:
    """x (b, h, w, c), weight (2n, c), bias (2n), kernels (b, m, k, k), contract (c, n) → (b, h, w, c)."""
    if _gated_natively(x, weight, bias, kernels, contract):
        return fused_c.gated_unit(x, weight, bias, kernels, contract)
    out = contract.new_empty(*x.shape[:3], contract.shape[0])
    hidden, convolved = contract.shape[1], kernels.shape[1]
    for group in _groups(x, 2 * hidden):
        gate = aten.gelu_(_linear(x[group], weight[:hidden], bias[:hidden]))
        values = _linear(x[group], weight[hidden:], bias[hidden:])
        values[..., -convolved:] = _dynamic(values[..., -convolved:], kernels[group])
        _write(out[group], gate.mul_(values), contract)
    return out


@torch.library.custom_op("mirage::gated_unit_backward", mutates_args=())
@_in_its_own_type
def gated_unit_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, kernels: Tensor, contract: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to all inputs."""
    if _gated_natively(x, grad, weight, bias, kernels, contract):
        return fused_c.gated_unit_backward(grad, x, weight, bias, kernels, contract)
    hidden, convolved = contract.shape[1], kernels.shape[1]
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    grad_kernels = torch.empty_like(kernels)
    grad_weight, grad_bias, grad_contract = sums = [_sum_like(w) for w in (weight, bias, contract)]
    for group in _groups(x, 2 * hidden):
        gate = _linear(x[group], weight[:hidden], bias[:hidden])
        values = _linear(x[group], weight[hidden:], bias[hidden:])
        unconvolved = wide(values[..., -convolved:].clone())  # what stands there is written over
        flat = kernels[group].flatten(0, 1)
        values[..., -convolved:] = narrow(conv(unconvolved, flat), gate.shape[0])
        opened = F.gelu(gate)
        _add_product(grad_contract, grad[group], opened * values)
        to_product = _linear(grad[group], contract.mT)
        to_gate = aten.gelu_backward(values.mul_(to_product), gate)
        to_values = opened.mul_(to_product)
        to_wide, to_kernels = conv_backward(wide(to_values[..., -convolved:]), unconvolved, flat)
        to_values[..., -convolved:] = narrow(to_wide, gate.shape[0])
        grad_kernels[group] = to_kernels.view_as(kernels[group])
        for half, to_half in ((slice(hidden), to_gate), (slice(hidden, None), to_values)):
            _add_product(grad_weight[half], to_half, x[group])
            grad_bias[half] += _rows(to_half).sum(0, dtype=grad_bias.dtype)
        _write(grad_x[group], to_gate, weight[:hidden].mT)
        _rows(grad_x[group]).addmm_(_rows(to_values), weight[hidden:])
    to_weight, to_bias, to_contract = _like(sums, (weight, bias, contract))
    return grad_x, to_weight, to_bias, grad_kernels, to_contract


# Channel MLP


@Operator
@_in_its_own_type
def channel_mlp(x: Tensor, expand: Tensor, contract: Tensor) -> Tensor:
    """x (b, h, w, c), expand (n, c), contract (c, n) → (b, h, w, c)."""
    if library.serves(x, expand, contract):
        return fused_c.channel_mlp(x, expand, contract)
    out = contract.new_empty(*x.shape[:3], contract.shape[0])
    for group in _groups(x, expand.shape[0]):
        _write(out[group], aten.gelu_(_linear(x[group], expand)), contract)
    return out


@torch.library.custom_op("mirage::channel_mlp_backward", mutates_args=())
@_in_its_own_type
def channel_mlp_backward(
    grad: Tensor, x: Tensor, expand: Tensor, contract: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to all inputs."""
    if library.serves(grad, x, expand, contract):
        return fused_c.channel_mlp_backward(grad, x, expand, contract)
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    grad_expand, grad_contract = sums = [_sum_like(weight) for weight in (expand, contract)]
    for group in _groups(x, expand.shape[0]):
        hidden = _linear(x[group], expand)
        _add_product(grad_contract, grad[group], F.gelu(hidden))
        to_hidden = aten.gelu_backward(_linear(grad[group], contract.mT), hidden)
        _add_product(grad_expand, to_hidden, x[group])
        _write(grad_x[group], to_hidden, expand.mT)
    return (grad_x, *_like(sums, (expand, contract)))  # type: ignore[return-value]


# Fusion of equally wide branches


def _others(i: int, branches: list[Tensor]) -> Tensor:
    terms = [x for j, x in enumerate(branches) if j != i]
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]


@Operator
@_in_its_own_type
def fused_product(branches: list[Tensor], scales: Tensor, weight: Tensor) -> Tensor:
    """Branches (b, h, w, c) each, scales (branches,), weight (o, branches * c) → (b, h, w, o)."""
    if library.serves(*branches, scales, weight):
        return fused_c.fused_product(branches, scales, weight)
    out = weight.new_empty(*branches[0].shape[:3], weight.shape[0])
    for group in _groups(out, weight.shape[1]):
        parts = [branch[group] for branch in branches]
        fused = [torch.addcmul(x, scales[i], _others(i, parts).sigmoid()) for i, x in enumerate(parts)]
        _write(out[group], torch.cat(fused, dim=3), weight)
    return out


@torch.library.custom_op("mirage::fused_product_backward", mutates_args=())
@_in_its_own_type
def fused_product_backward(
    grad: Tensor, branches: list[Tensor], scales: Tensor, weight: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Gradients with respect to all inputs."""
    if library.serves(grad, *branches, scales, weight):
        return fused_c.fused_product_backward(grad, branches, scales, weight)
    grad_branches = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in branches]
    grad_scales, grad_weight = sums = [_sum_like(w) for w in (scales, weight)]
    for group in _groups(grad, weight.shape[1]):
        parts = [branch[group] for branch in branches]
        gates = [
            _others(i, parts).sigmoid_() if len(parts) > 2 else _others(i, parts).sigmoid()
            for i in range(len(parts))
        ]
        fused = [
            torch.addcmul(x, scales[i], gate) for i, (x, gate) in enumerate(zip(parts, gates, strict=True))
        ]
        _add_product(grad_weight, grad[group], torch.cat(fused, dim=3))
        to_fused = _linear(grad[group], weight.mT).chunk(len(parts), dim=3)
        to_others = []
        for i, (gate, above) in enumerate(zip(gates, to_fused, strict=True)):
            grad_scales[i] += (gate * above).sum(dtype=grad_scales.dtype)
            to_others.append(aten.sigmoid_backward(above * scales[i], gate))
        for i, above in enumerate(to_fused):
            torch.add(above, _others(i, to_others), out=grad_branches[i][group])
    to_scales, to_weight = _like(sums, (scales, weight))
    return grad_branches, to_scales, to_weight


def _like(sums: list[Tensor], weights: tuple[Tensor, ...]) -> list[Tensor]:
    return [total.to(weight.dtype) for total, weight in zip(sums, weights, strict=True)]


# What torch.compile and autograd need to know


def _same(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors)


@feed_forward.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor, expand: Tensor, taps: Tensor, contract: Tensor) -> Tensor:
    return contract.new_empty(*x.shape[:3], contract.shape[0])


@attention_input.register_fake
def _(x: Tensor, matrix: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    width = matrix.shape[0] // 3
    gram = at_least_fp32(matrix).new_empty(x.shape[0], 2 * width, 2 * width)
    return matrix.new_empty(*x.shape[:3], width), gram


@gated_unit.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, kernels: Tensor, contract: Tensor) -> Tensor:
    return contract.new_empty(*x.shape[:3], contract.shape[0])


@channel_mlp.register_fake
def _(x: Tensor, expand: Tensor, contract: Tensor) -> Tensor:
    return contract.new_empty(*x.shape[:3], contract.shape[0])


@fused_product.register_fake
def _(branches: list[Tensor], scales: Tensor, weight: Tensor) -> Tensor:
    return weight.new_empty(*branches[0].shape[:3], weight.shape[0])


@feed_forward_backward.register_fake
@gated_unit_backward.register_fake
@channel_mlp_backward.register_fake
def _(grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return _same(*inputs)


@attention_input_backward.register_fake
def _(grad_v: Tensor, grad_gram: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return _same(*inputs)


@fused_product_backward.register_fake
def _(
    grad: Tensor, branches: list[Tensor], scales: Tensor, weight: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    return list(_same(*branches)), torch.empty_like(scales), torch.empty_like(weight)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _save_branches(ctx: Any, inputs: tuple[list[Tensor], Tensor, Tensor], output: Tensor) -> None:
    branches, scales, weight = inputs
    ctx.save_for_backward(scales, weight, *branches)


def _fused_gradient(ctx: Any, grad: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    scales, weight, *branches = ctx.saved_tensors
    found: tuple[list[Tensor], Tensor, Tensor] = fused_product_backward(grad, branches, scales, weight)
    return found


for _forward, _backward in (
    (feed_forward, feed_forward_backward),
    (attention_input, attention_input_backward),
    (gated_unit, gated_unit_backward),
    (channel_mlp, channel_mlp_backward),
):
    _forward.register_autograd(
        lambda ctx, *grads, _backward=_backward: _backward(*grads, *ctx.saved_tensors), setup_context=_save
    )
fused_product.register_autograd(_fused_gradient, setup_context=_save_branches)
