"""Convolutions and moments with channels-last inputs, outputs and gradients, opaque to torch.compile.

oneDNN is fastest on channels-last depthwise convolutions. A compiler that sees them converts their input to NCHW and
back.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mirage.kernels.custom_op import CustomOperator, save_inputs
from mirage.kernels.reference import pool_moments


def _convolve(x: Tensor, filters: Tensor) -> Tensor:
    """Convolve x (b, h, w, c) with filters (c, k, k); the result is contiguous."""
    channels, size, _ = filters.shape
    y = F.conv2d(x.permute(0, 3, 1, 2), filters[:, None], padding=size // 2, groups=channels)
    return y.permute(0, 2, 3, 1).contiguous()


def _convolve_backward(grad: Tensor, x: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of `_convolve` with respect to x and filters."""
    channels, size, _ = filters.shape
    grad_x, grad_filters, _ = torch.ops.aten.convolution_backward(
        grad.contiguous().permute(0, 3, 1, 2),
        x.permute(0, 3, 1, 2),
        filters[:, None],
        None,
        [1, 1],
        [size // 2, size // 2],
        [1, 1],
        False,
        [0, 0],
        channels,
        [True, True, False],
    )
    return grad_x.permute(0, 2, 3, 1).contiguous(), grad_filters[:, 0].contiguous()


def _fold_batch(x: Tensor) -> Tensor:
    """Return one image with the channels of all images, (b, h, w, c) → (1, h, w, b * c): it fills vector registers."""
    batch, height, width, channels = x.shape
    return x.permute(1, 2, 0, 3).reshape(1, height, width, batch * channels)


def _unfold_batch(x: Tensor, batch: int) -> Tensor:
    """Invert `_fold_batch`; the result is contiguous."""
    _, height, width, channels = x.shape
    return x.view(height, width, batch, channels // batch).permute(2, 0, 1, 3).contiguous()


@CustomOperator
def depthwise(x: Tensor, filters: Tensor) -> Tensor:
    """Convolve x (b, h, w, c) with filters (c, k, k)."""
    return _convolve(x.contiguous(), filters)


@CustomOperator
def depthwise_backward(grad: Tensor, x: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients with respect to x and filters."""
    return _convolve_backward(grad, x.contiguous(), filters)


@CustomOperator
def dynamic_depthwise(x: Tensor, filters: Tensor) -> Tensor:
    """Convolve x (b, h, w, c) with filters (b, c, k, k)."""
    return _unfold_batch(_convolve(_fold_batch(x), filters.flatten(0, 1)), x.shape[0])


@CustomOperator
def dynamic_depthwise_backward(grad: Tensor, x: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients with respect to x and filters."""
    grad_x, grad_filters = _convolve_backward(_fold_batch(grad), _fold_batch(x), filters.flatten(0, 1))
    return _unfold_batch(grad_x, x.shape[0]), grad_filters.view_as(filters)


@CustomOperator
def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image's mean and sum of squared deviations, (b, h, w, c) → (b, c) each, in fp32 or better."""
    x = x if x.dtype == torch.float64 else x.float()
    mean = x.mean((1, 2))
    return mean, (x - mean[:, None, None]).square_().sum((1, 2))


def batch_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image's mean (b, c), and of the batch (1 + 2c,) the pixels, sums and sums of squares."""
    return pool_moments(*moments(x), pixels=x.shape[1] * x.shape[2])


@CustomOperator
def moments_backward(grad_mean: Tensor, grad_squares: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    """Return the gradient with respect to x: `grad_mean / pixels + 2 grad_squares (x - mean)`."""
    pixels = x.shape[1] * x.shape[2]
    offset = grad_mean / pixels - 2 * grad_squares * mean
    return torch.addcmul(offset[:, None, None], x, (2 * grad_squares)[:, None, None]).to(x.dtype)


@depthwise.register_fake
@dynamic_depthwise.register_fake
def _(x: Tensor, filters: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@depthwise_backward.register_fake
@dynamic_depthwise_backward.register_fake
def _(grad: Tensor, x: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), filters.new_empty(filters.shape)


@moments.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    shape = (x.shape[0], x.shape[3])
    return x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype)


@moments_backward.register_fake
def _(grad_mean: Tensor, grad_squares: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def save_moments(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep x and its mean for `moments_backward`."""
    ctx.save_for_backward(inputs[0], output[0])


depthwise.register_autograd(
    lambda ctx, grad: depthwise_backward(grad, *ctx.saved_tensors), setup_context=save_inputs
)
dynamic_depthwise.register_autograd(
    lambda ctx, grad: dynamic_depthwise_backward(grad, *ctx.saved_tensors), setup_context=save_inputs
)
moments.register_autograd(
    lambda ctx, grad_mean, grad_squares: moments_backward(grad_mean, grad_squares, *ctx.saved_tensors),
    setup_context=save_moments,
)
