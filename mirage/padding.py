"""Hidden widths padded with zeros to multiples of 8, so that rows of half-precision maps begin at 16-byte addresses.

Exact: a padded channel is `GELU(0) * 0`, and what follows multiplies it by 0. What is left is another order of sums. It
is meant for inference on a GPU; on a CPU it is more arithmetic for nothing. Weights files hold the widths of the
configuration, so a padded model is not saved.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mirage.blocks import Block, FeedForward, GatedConvolution
from mirage.model import MIRAGE


def padded(model: MIRAGE, multiple: int = 8) -> MIRAGE:
    """Return a copy of `model`, in eval mode, whose gated units have hidden widths that are multiples of `multiple`."""
    if multiple < 1:
        raise ValueError(f"multiple={multiple}: at least 1.")
    wider = copy.deepcopy(model).eval()
    wider.hidden_multiple = multiple
    for block in wider.modules():
        if isinstance(block, Block):
            _pad_feed_forward(block.ffn, multiple)
            if block.mixer.convolution is not None:
                _pad_convolution(block.mixer.convolution, multiple)
    return wider


def _pad_feed_forward(ffn: FeedForward, multiple: int) -> None:
    zeros = -ffn.contract.in_features % multiple
    _set(ffn.expand, _both_halves(ffn.expand.weight, zeros))
    ffn.depthwise.weight = nn.Parameter(_both_halves(ffn.depthwise.weight.detach(), zeros))
    _set(ffn.contract, _before(ffn.contract.weight.mT, zeros).mT)


def _pad_convolution(convolution: GatedConvolution, multiple: int) -> None:
    """Zeros come first: the last channels are those that are convolved."""
    zeros = -convolution.hidden % multiple
    _set(convolution.expand, _both_halves(convolution.expand.weight, zeros))
    _set(convolution.contract, _before(convolution.contract.weight.mT, zeros).mT)
    convolution.hidden += zeros


def _both_halves(weight: Tensor, zeros: int) -> Tensor:
    """(2n, ...) → (2(zeros + n), ...): gate and values alike."""
    return torch.cat([_before(half, zeros) for half in weight.chunk(2)])


def _before(weight: Tensor, zeros: int) -> Tensor:
    """(n, ...) → (zeros + n, ...)."""
    return torch.cat((weight.new_zeros(zeros, *weight.shape[1:]), weight))


def _set(linear: nn.Linear, weight: Tensor) -> None:
    linear.weight = nn.Parameter(weight.detach().contiguous())
    linear.out_features, linear.in_features = weight.shape
