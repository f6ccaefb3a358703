"""Sums over processes that gradients pass through.

Each process's loss is its share of the global loss, so the gradient of a value that every process used is the
sum of what each of them sends back: the backward of a sum over processes is again a sum over processes.
Every process must call these functions in the same order.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor


class Share(NamedTuple):
    """Place of this process's images in the global micro-batch."""

    start: int
    """Global row of this process's first image."""
    total: int
    """Images of the global micro-batch, over all processes."""


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def world_size() -> int:
    """Number of processes; 1 where torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce_sum(x: Tensor) -> Tensor:
    """`x` summed over all processes, differentiably; `x` itself where there is one process."""
    if world_size() == 1:
        return x
    return cast(Tensor, _AllReduceSum.apply(x))  # type: ignore[no-untyped-call]


def gather_rows(x: Tensor, share: Share) -> Tensor:
    """All processes' rows in global order: (b, d) here, (share.total, d) everywhere.

    A sum of zero-padded blocks rather than an all-gather, so that shares may be uneven.
    """
    if world_size() == 1:
        return x
    after = share.total - share.start - x.shape[0]
    padded = torch.nn.functional.pad(x, (0, 0, share.start, after))  # (total, d)
    return all_reduce_sum(padded)
