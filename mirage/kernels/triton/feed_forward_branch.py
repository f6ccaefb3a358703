"""The feed-forward network in Triton: the whole branch, forward and backward."""

from __future__ import annotations

from torch import Tensor

from mirage.kernels.reference import NORM_EPS
from mirage.kernels.triton.convolution import convolve, unfilled
from mirage.kernels.triton.gated import gated_depthwise, gated_depthwise_gradient
from mirage.kernels.triton.linear_convolution import fits, linear_convolution_gradient
from mirage.kernels.triton.matrices import weight_gradient
from mirage.kernels.triton.norm_linear import norm_gradient, norm_linear


def feed_forward(
    x: Tensor, scale: Tensor, shift: Tensor, expand: Tensor, filters: Tensor, contract: Tensor, shortcut: bool
) -> tuple[Tensor, Tensor]:
    """Apply layer norm and the feed-forward network to x (b, h, w, c), and add x if `shortcut`.

    Return the result and the prepared filters. The gradient needs only these and the inputs: it computes the hidden
    map again.
    """
    low_filters = unfilled(filters, x.dtype)
    active, _ = norm_linear(x, scale, shift, expand, NORM_EPS, move=(filters.contiguous(), low_filters))
    return gated_depthwise(active, low_filters, contract, x.contiguous() if shortcut else None), low_filters


def feed_forward_gradient(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    expand: Tensor,
    filters: Tensor,
    contract: Tensor,
    low_filters: Tensor,
    shortcut: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients with respect to x, scale with shift (2, c), expand, filters and contract."""
    narrow = fits(x)
    active, hidden = norm_linear(x, scale, shift, expand, NORM_EPS, with_hidden=not narrow)
    convolved, grad_contract, grad_filters = gated_depthwise_gradient(grad, contract, active, low_filters)
    around = grad if shortcut else None
    if narrow:
        parts, grad_expand, _ = linear_convolution_gradient(
            convolved, x, expand, low_filters, norm=(scale, shift)
        )
        grad_x, affine, _ = norm_gradient(parts, x, scale, shift, NORM_EPS, shortcut=around)
    else:
        grad_hidden = convolve(convolved, low_filters, reverse=True, before_gelu=hidden)
        grad_x, affine, normed = norm_gradient(
            grad_hidden[None], x, scale, shift, NORM_EPS, weight=expand, shortcut=around
        )
        grad_expand = weight_gradient(grad_hidden.flatten(0, 2), normed, expand.dtype)
    return (
        grad_x,
        affine,
        grad_expand.to(expand.dtype),
        grad_filters.to(filters.dtype),
        grad_contract.to(contract.dtype),
    )
