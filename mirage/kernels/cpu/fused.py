"""Fused operators on a CPU, which keep nothing but their inputs for the gradient.

fp32 runs in C (`fused_c.py`). Other types, and machines without a C compiler, run the reference under activation
checkpointing, which computes it again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mirage.kernels import reference
from mirage.kernels.autocast import cast_for_autocast
from mirage.kernels.cpu import fused_c, library
from mirage.kernels.reference import NormStatistics, add_in_place

R = TypeVar("R")


def feed_forward(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    expand: Tensor,
    filters: Tensor,
    contract: Tensor,
    shortcut: bool = False,
) -> Tensor:
    """Apply layer norm and the feed-forward network, and add x if `shortcut`: (b, h, w, c) → (b, h, w, c)."""
    inputs = (x, scale, shift, *cast_for_autocast(x, expand, filters, contract))
    in_c = library.supports(*inputs)
    out = fused_c.feed_forward(*inputs) if in_c else _checkpointed(reference.feed_forward, *inputs)
    return add_in_place(out, x) if shortcut else out


def attention(x: Tensor, matrix: Tensor, filters: Tensor, temperature: Tensor) -> Tensor:
    """Apply channel attention: (b, h, w, c) → (b, h, w, a)."""
    return reference.mix_channels(*attention_input(x, matrix, filters), temperature)


def attention_input(x: Tensor, matrix: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return v (b, h, w, a) and the Gram matrix of q and k (b, 2a, 2a)."""
    inputs = cast_for_autocast(x, x, matrix, filters)
    if library.supports(*inputs):
        return fused_c.attention_input(*inputs)
    return _checkpointed(_contiguous_attention_input, *inputs)


def gated_unit(x: Tensor, weight: Tensor, bias: Tensor, filters: Tensor, contract: Tensor) -> Tensor:
    """Apply the gated convolution with filters for each image: (b, h, w, c) → (b, h, w, c)."""
    inputs = cast_for_autocast(x, x, weight, bias, filters, contract)
    if library.supports(*inputs) and filters.shape[2:] == (7, 7):
        return fused_c.gated_unit(*inputs)
    return _checkpointed(reference.gated_unit, *inputs)


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
    """Apply batch norm, the gated convolution and a last linear layer: (b, h, w, c) → (b, h, w, o)."""
    weight, bias, made = reference.generated(
        x, statistics, gain, offset, temperature, expand, generator, filters
    )
    return reference.end_of_path(gated_unit(x, weight, bias, made, contract), x, project, path_scale)


def channel_mlp(x: Tensor, expand: Tensor, contract: Tensor) -> Tensor:
    """Apply two linear layers with a GELU between them: (b, h, w, c) → (b, h, w, c)."""
    inputs = cast_for_autocast(x, x, expand, contract)
    if library.supports(*inputs):
        return fused_c.channel_mlp(*inputs)
    return _checkpointed(reference.channel_mlp, *inputs)


def fusion_linear(
    branches: list[Tensor],
    scales: list[Tensor],
    weight: Tensor,
    shortcut: Tensor | None = None,
    mlp: Sequence[Tensor] | None = None,
) -> Tensor:
    """Gate the branches (b, h, w, c) by each other, concatenate, project and add the shortcut → (b, h, w, o)."""
    if mlp is not None:
        branches = [*branches[:-1], channel_mlp(branches[-1], *mlp)]
    factors, weight, *branches = cast_for_autocast(branches[0], torch.cat(scales), weight, *branches)
    if library.supports(*branches, factors, weight):
        out = fused_c.fusion_linear(branches, factors, weight)
    else:
        out = _checkpointed(_fusion_linear, factors, weight, *branches)
    return out if shortcut is None else add_in_place(out, shortcut)


def _contiguous_attention_input(x: Tensor, matrix: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return v without the map of q, k and v that it is a slice of."""
    v, gram = reference.attention_input(x, matrix, filters)
    return v.contiguous(), gram


def _fusion_linear(scales: Tensor, weight: Tensor, *branches: Tensor) -> Tensor:
    return reference.fusion_linear(list(branches), list(scales), weight)


def _checkpointed(function: Callable[..., R], *inputs: Tensor) -> R:
    """Compute `function(*inputs)`; keep the inputs only if a gradient is needed."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    out: R = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return out
