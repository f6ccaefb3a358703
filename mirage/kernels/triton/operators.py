"""The Triton kernels as operators with gradients, opaque to torch.compile. Triton is imported when the first one runs.

Each operator keeps its inputs for the gradient (`norm_linear` also two numbers per pixel) and computes the rest again.
None uses atomic additions: equal inputs give equal bits, with or without `torch.use_deterministic_algorithms`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mirage.kernels.cpu.operators import moments_backward, save_moments
from mirage.kernels.custom_op import save_inputs


@torch.library.custom_op("mirage::triton_depthwise", mutates_args=())
def depthwise(x: Tensor, filters: Tensor) -> Tensor:
    """Convolve x (b, h, w, c) with filters (c, k, k) or (b, c, k, k) → (b, h, w, c)."""
    from mirage.kernels.triton import convolution

    return convolution.convolve(x, filters)


@torch.library.custom_op("mirage::triton_depthwise_backward", mutates_args=())
def depthwise_backward(grad: Tensor, x: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients with respect to x and filters."""
    from mirage.kernels.triton import convolution

    return convolution.convolve(grad, filters, reverse=True), convolution.filter_gradient(grad, x, filters)


@torch.library.custom_op("mirage::triton_gated_depthwise", mutates_args=())
def gated_depthwise(hidden: Tensor, filters: Tensor) -> Tensor:
    """Apply GELU, filters (2n, k, k) and the gate to hidden (b, h, w, 2n) → (b, h, w, n)."""
    from mirage.kernels.triton import gated

    return gated.gated_depthwise(hidden, filters)


@torch.library.custom_op("mirage::triton_gated_depthwise_backward", mutates_args=())
def gated_depthwise_backward(grad: Tensor, hidden: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients with respect to hidden and filters."""
    from mirage.kernels.triton import gated

    return gated.gated_depthwise_gradient(grad, hidden, filters)


@torch.library.custom_op("mirage::triton_gated_values", mutates_args=())
def gated_values(hidden: Tensor, filters: Tensor) -> Tensor:
    """Convolve the last m channels with filters (b, m, k, k) and gate: hidden (b, h, w, 2n) → (b, h, w, n)."""
    from mirage.kernels.triton import gated

    return gated.gated_values(hidden, filters)


@torch.library.custom_op("mirage::triton_gated_values_backward", mutates_args=())
def gated_values_backward(grad: Tensor, hidden: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients with respect to hidden and filters."""
    from mirage.kernels.triton import gated

    return gated.gated_values_gradient(grad, hidden, filters)


@torch.library.custom_op("mirage::triton_gram", mutates_args=())
def gram(x: Tensor) -> Tensor:
    """Return inner products of channels, x (b, n, c) → (b, c, c) in fp32."""
    from mirage.kernels.triton import reductions

    return reductions.gram(x)


@torch.library.custom_op("mirage::triton_gram_backward", mutates_args=())
def gram_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Return the gradient with respect to x."""
    from mirage.kernels.triton import reductions

    return reductions.gram_gradient(grad, x)


@torch.library.custom_op("mirage::triton_moments", mutates_args=())
def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image's mean and sum of squared deviations, (b, c) each in fp32; x (b, h, w, c)."""
    from mirage.kernels.triton import reductions

    return reductions.moments(x)


@torch.library.custom_op("mirage::triton_norm_linear", mutates_args=())
def norm_linear(
    x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply layer norm and weight (n, c) to x (b, h, w, c); return the result, means, 1 / deviations.

    scale and shift (c,). The result is (b, h, w, n) in weight's dtype; the other two are (b * h * w,) in fp32.
    """
    from mirage.kernels.triton import norm_linear as kernels

    return kernels.norm_linear(x, scale, shift, weight, eps)


@torch.library.custom_op("mirage::triton_norm_linear_backward", mutates_args=())
def norm_linear_backward(
    grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients with respect to x, scale, shift and weight."""
    from mirage.kernels.triton import norm_linear as kernels

    return kernels.norm_linear_gradient(grad, x, scale, shift, weight, mean, inverse)


@depthwise.register_fake
def _(x: Tensor, filters: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@gated_depthwise.register_fake
@gated_values.register_fake
def _(hidden: Tensor, filters: Tensor) -> Tensor:
    return hidden.new_empty((*hidden.shape[:3], hidden.shape[3] // 2))


@depthwise_backward.register_fake
@gated_depthwise_backward.register_fake
@gated_values_backward.register_fake
def _(grad: Tensor, x: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), filters.new_empty(filters.shape)


@gram.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[2], x.shape[2]), dtype=torch.float32)


@gram_backward.register_fake
def _(grad: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@moments.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], x.shape[3])
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.float32)


@norm_linear.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    pixels = x.shape[0] * x.shape[1] * x.shape[2]
    mean, inverse = (x.new_empty(pixels, dtype=torch.float32) for _ in range(2))
    return weight.new_empty((*x.shape[:3], weight.shape[0])), mean, inverse


@norm_linear_backward.register_fake
def _(
    grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        scale.new_empty(scale.shape),
        shift.new_empty(shift.shape),
        weight.new_empty(weight.shape),
    )


def _save_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], *output[1:])
    ctx.mark_non_differentiable(*output[1:])


depthwise.register_autograd(
    lambda ctx, grad: depthwise_backward(grad, *ctx.saved_tensors), setup_context=save_inputs
)
gated_depthwise.register_autograd(
    lambda ctx, grad: gated_depthwise_backward(grad, *ctx.saved_tensors), setup_context=save_inputs
)
gated_values.register_autograd(
    lambda ctx, grad: gated_values_backward(grad, *ctx.saved_tensors), setup_context=save_inputs
)
gram.register_autograd(lambda ctx, grad: gram_backward(grad, *ctx.saved_tensors), setup_context=save_inputs)
moments.register_autograd(
    lambda ctx, grad_mean, grad_squares: moments_backward(grad_mean, grad_squares, *ctx.saved_tensors),
    setup_context=save_moments,
)
norm_linear.register_autograd(
    lambda ctx, grad, *_: (*norm_linear_backward(grad, *ctx.saved_tensors), None), setup_context=_save_norm
)
