"""CPU operators with channels-last input, output and gradients, opaque to torch.compile.

oneDNN is fastest on channels-last depthwise convolutions; a compiler that sees through them moves their input
to NCHW and back.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mirage.kernels.custom_op import Operator


def conv(x: Tensor, weight: Tensor) -> Tensor:
    """x (b, h, w, c), weight (c, k, k) → (b, h, w, c), contiguous."""
    channels, size, _ = weight.shape
    y = F.conv2d(x.permute(0, 3, 1, 2), weight[:, None], padding=size // 2, groups=channels)
    return y.permute(0, 2, 3, 1).contiguous()


def conv_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `conv` with respect to x and weight."""
    channels, size, _ = weight.shape
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad.contiguous().permute(0, 3, 1, 2),
        x.permute(0, 3, 1, 2),
        weight[:, None],
        None,
        [1, 1],
        [size // 2, size // 2],
        [1, 1],
        False,
        [0, 0],
        channels,
        [True, True, False],
    )
    return grad_x.permute(0, 2, 3, 1).contiguous(), grad_weight[:, 0].contiguous()


def wide(x: Tensor) -> Tensor:
    """(b, h, w, c) → (1, h, w, b * c): one image with the channels of all images, which fills vectors."""
    batch, height, width, channels = x.shape
    return x.permute(1, 2, 0, 3).reshape(1, height, width, batch * channels)


def narrow(x: Tensor, batch: int) -> Tensor:
    """Inverse of `wide`, contiguous."""
    _, height, width, channels = x.shape
    return x.view(height, width, batch, channels // batch).permute(2, 0, 1, 3).contiguous()


@Operator
def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """x (b, h, w, c), weight (c, k, k) → (b, h, w, c)."""
    return conv(x.contiguous(), weight)


@torch.library.custom_op("mirage::depthwise_backward", mutates_args=())
def depthwise_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients with respect to x and weight."""
    return conv_backward(grad, x.contiguous(), weight)


@Operator
def dynamic_depthwise(x: Tensor, kernels: Tensor) -> Tensor:
    """x (b, h, w, c), kernels (b, c, k, k) → (b, h, w, c)."""
    return narrow(conv(wide(x), kernels.flatten(0, 1)), x.shape[0])


@torch.library.custom_op("mirage::dynamic_depthwise_backward", mutates_args=())
def dynamic_depthwise_backward(grad: Tensor, x: Tensor, kernels: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients with respect to x and kernels."""
    grad_x, grad_kernels = conv_backward(wide(grad), wide(x), kernels.flatten(0, 1))
    return narrow(grad_x, x.shape[0]), grad_kernels.view_as(kernels)


@Operator
def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (b, h, w, c) → per-image mean and sum of squared deviations, (b, c) each, fp32 or better."""
    x = x if x.dtype == torch.float64 else x.float()
    mean = x.mean((1, 2))
    return mean, (x - mean[:, None, None]).square_().sum((1, 2))


@torch.library.custom_op("mirage::moments_backward", mutates_args=())
def moments_backward(grad_mean: Tensor, grad_squares: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    """Gradient with respect to x: the mean's share, and twice the deviation."""
    pixels = x.shape[1] * x.shape[2]
    offset = grad_mean / pixels - 2 * grad_squares * mean
    return torch.addcmul(offset[:, None, None], x, (2 * grad_squares)[:, None, None]).to(x.dtype)


@depthwise.register_fake
@dynamic_depthwise.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@depthwise_backward.register_fake
@dynamic_depthwise_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


@moments.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    shape = (x.shape[0], x.shape[3])
    return x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype)


@moments_backward.register_fake
def _(grad_mean: Tensor, grad_squares: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _save_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _save_moments(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[0])


depthwise.register_autograd(
    lambda ctx, grad: depthwise_backward(grad, *ctx.saved_tensors), setup_context=_save_inputs
)
dynamic_depthwise.register_autograd(
    lambda ctx, grad: dynamic_depthwise_backward(grad, *ctx.saved_tensors), setup_context=_save_inputs
)
moments.register_autograd(
    lambda ctx, grad_mean, grad_squares: moments_backward(grad_mean, grad_squares, *ctx.saved_tensors),
    setup_context=_save_moments,
)
