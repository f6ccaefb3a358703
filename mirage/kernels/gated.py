"""The middle of the feed-forward network in place, forward and backward: compiled where it can be, plain elsewhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mirage.kernels import native
from mirage.kernels.fixed_layout import conv, conv_backward

aten = torch.ops.aten


def forward_over(hidden: Tensor, taps: Tensor) -> Tensor:
    """`reference.gated_depthwise`; hidden (b, h, w, 2n), contiguous, is written over."""
    if native.serves(hidden):
        return native.gated_forward(hidden, taps)
    gate, values = conv(aten.gelu_(hidden), taps).chunk(2, dim=3)
    return F.gelu(gate).mul_(values)


def backward_over(hidden: Tensor, grad: Tensor, taps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The product (b, h, w, n) again, and the gradients of hidden (b, h, w, 2n) and taps.

    hidden and grad (b, h, w, n), of the product, are written over.
    """
    if native.serves(hidden):
        to_taps = native.gated_backward(hidden, grad, taps)
        return grad, hidden, to_taps
    active = F.gelu(hidden)
    after = conv(active, taps)
    gate, values = after.chunk(2, dim=3)
    opened = F.gelu(gate)
    product = opened * values
    to_gate = aten.gelu_backward(values * grad, gate)
    above = torch.cat((to_gate, opened.mul_(grad)), dim=3)
    to_active, to_taps = conv_backward(above, active, taps)
    return product, aten.gelu_backward(to_active, hidden), to_taps
