"""The operators of a block on CUDA, as `mirage.kernels` calls them: without what their gradients keep."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mirage.kernels.reference import BATCH_NORM_MOMENTUM, NORM_EPS, NormStatistics
from mirage.kernels.triton import operators


def _low(x: Tensor) -> Tensor:
    """Return x in the dtype of autocast, if that is on."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalise the channels of x (b, h, w, c)."""
    out: Tensor = operators.layer_norm(_low(x), scale, shift, NORM_EPS)
    return out


def attention(x: Tensor, matrix: Tensor, filters: Tensor, temperature: Tensor) -> Tensor:
    """Apply channel attention: x (b, h, w, c), matrix (3a, c), filters (3a, 3, 3), temperature (heads,)."""
    out: Tensor = operators.attention(_low(x), matrix, filters, temperature, torch.is_grad_enabled())[0]
    return out


def update_running(sums: Tensor, running_mean: Tensor, running_var: Tensor, tracked: Tensor) -> None:
    """Move the running statistics (c,) towards those of a batch."""
    operators.update_running(sums.detach(), running_mean, running_var, tracked, BATCH_NORM_MOMENTUM)


def gated_convolution(
    x: Tensor,
    statistics: NormStatistics,
    gain: Tensor,
    offset: Tensor,
    temperature: Tensor,
    expand: Tensor,
    generator: Tensor | None,
    filters: Tensor,
    contract: Tensor,
    project: Tensor,
    path_scale: Tensor | None,
) -> Tensor:
    """Apply the gated convolution to x (b, h, w, c)."""
    weights = gain, offset, temperature, expand, generator, filters, contract, project
    keep = torch.is_grad_enabled()
    out: Tensor = operators.gated_convolution(_low(x), *statistics, *weights, path_scale, keep)[0]
    return out


def channel_mlp(x: Tensor, expand: Tensor, contract: Tensor) -> Tensor:
    """Apply two linear layers with a GELU between them to x (b, h, w, c)."""
    out: Tensor = operators.channel_mlp(_low(x), expand, contract)
    return out


def fusion_linear(
    branches: list[Tensor],
    scales: list[Tensor],
    weight: Tensor,
    shortcut: Tensor | None = None,
    mlp: Sequence[Tensor] | None = None,
) -> Tensor:
    """Gate the branches (b, h, w, c) by each other, project them, and add the shortcut (b, h, w, o)."""
    branches = [_low(x) for x in branches]
    around = None if shortcut is None else _low(shortcut)
    if mlp is not None and len(branches) == 3 and not torch.is_grad_enabled():
        out: Tensor = operators.mlp_fusion_linear(branches, scales, *mlp, weight, around)
        return out
    if mlp is not None:
        branches = [*branches[:-1], operators.channel_mlp(branches[-1], *mlp)]
    plain: Tensor = operators.fusion_linear(branches, scales, weight, around)
    return plain


def feed_forward(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    expand: Tensor,
    filters: Tensor,
    contract: Tensor,
    shortcut: bool = False,
) -> Tensor:
    """Apply layer norm and the feed-forward network to x (b, h, w, c), and add x if `shortcut`."""
    out: Tensor = operators.feed_forward(_low(x), scale, shift, expand, filters, contract, shortcut)[0]
    return out
