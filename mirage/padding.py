"""Hidden widths padded with zeros to multiples of 8, so that rows of half-precision maps start at 16-byte addresses.

Exact: a padded channel is `GELU(0) * 0`, and the next layer multiplies it by 0. Only the order of sums changes. For
inference on a GPU; on a CPU it is more arithmetic for nothing. A weights file holds the widths of the configuration,
so a padded model cannot be saved.
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
        raise ValueError(f"multiple={multiple}: must be at least 1.")
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
    _set_weight(ffn.expand, _pad_both_halves(ffn.expand.weight, zeros))
    ffn.depthwise.weight = nn.Parameter(_pad_both_halves(ffn.depthwise.weight.detach(), zeros))
    _set_weight(ffn.contract, _pad_start(ffn.contract.weight.mT, zeros).mT)


def _pad_convolution(convolution: GatedConvolution, multiple: int) -> None:
    """Pad at the start: the last channels are the convolved ones."""
    zeros = -convolution.contract.in_features % multiple
    _set_weight(convolution.expand, _pad_both_halves(convolution.expand.weight, zeros))
    _set_weight(convolution.contract, _pad_start(convolution.contract.weight.mT, zeros).mT)


def _pad_both_halves(weight: Tensor, zeros: int) -> Tensor:
    """Pad gates and values alike: (2n, ...) → (2(zeros + n), ...)."""
    return torch.cat([_pad_start(half, zeros) for half in weight.chunk(2)])


def _pad_start(weight: Tensor, zeros: int) -> Tensor:
    """Prepend zeros: (n, ...) → (zeros + n, ...)."""
    return torch.cat((weight.new_zeros(zeros, *weight.shape[1:]), weight))


def _set_weight(linear: nn.Linear, weight: Tensor) -> None:
    linear.weight = nn.Parameter(weight.detach().contiguous())
    linear.out_features, linear.in_features = weight.shape
