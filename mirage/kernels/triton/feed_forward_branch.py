"""The feed-forward network in Triton: the whole branch, forward and backward."""

from __future__ import annotations

from torch import Tensor

from mirage.kernels.reference import NORM_EPS
from mirage.kernels.triton.convolution import gradients, prepared
from mirage.kernels.triton.gated import gated_depthwise, gated_depthwise_gradient
from mirage.kernels.triton.matrices import weight_gradient
from mirage.kernels.triton.norm_linear import norm_gradient, norm_linear
from mirage.kernels.triton.pointwise import linear


def feed_forward(
    x: Tensor, scale: Tensor, shift: Tensor, expand: Tensor, filters: Tensor, contract: Tensor, shortcut: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply layer norm and the feed-forward network to x (b, h, w, c), and add x if `shortcut`.

    Return the result and what the gradient needs: the gated map and the prepared filters. The hidden map is computed
    again.
    """
    active = norm_linear(x, scale, shift, expand, NORM_EPS).active
    low_filters = prepared(filters, x.dtype)
    gated = gated_depthwise(active, low_filters)
    return linear(gated, contract, x if shortcut else None), gated, low_filters


def feed_forward_gradient(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    expand: Tensor,
    filters: Tensor,
    contract: Tensor,
    gated: Tensor,
    low_filters: Tensor,
    shortcut: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients with respect to x, scale with shift (2, c), expand, filters and contract."""
    grad_contract = weight_gradient(grad.flatten(0, 2), gated.flatten(0, 2), contract.dtype)
    again = norm_linear(x, scale, shift, expand, NORM_EPS, with_hidden=True)
    convolved = gated_depthwise_gradient(grad, contract, again.active, low_filters)
    grad_hidden, grad_filters = gradients(convolved, again.hidden, low_filters, gelu_first=True)

    around = grad if shortcut else None
    grad_x, affine, normed = norm_gradient(
        grad_hidden, x, scale, shift, again.mean, again.inverse, weight=expand, shortcut=around
    )
    return (
        grad_x,
        affine,
        weight_gradient(grad_hidden.flatten(0, 2), normed, expand.dtype),
        grad_filters.to(filters.dtype),
        grad_contract,
    )
