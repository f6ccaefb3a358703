"""Sums over processes that gradients pass through.

Each process's loss is its share of the global loss. The gradient of a value that every process used is therefore the
sum over processes: the backward of an all-reduce is an all-reduce. Every process must call these functions in the
same order.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor


class BatchShare(NamedTuple):
    """The position of this process's images in the global micro-batch."""

    start: int
    """Global index of this process's first image."""
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
    """Return the number of processes; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce_sum(x: Tensor) -> Tensor:
    """Return the differentiable sum of x over all processes; x itself with one process."""
    if world_size() == 1:
        return x
    return cast(Tensor, _AllReduceSum.apply(x))  # type: ignore[no-untyped-call]


def gather_rows(x: Tensor, share: BatchShare) -> Tensor:
    """Return all processes' rows in global order: (b, d) here, (share.total, d) in every process.

    A sum of zero-padded blocks instead of an all-gather, so that shares may be uneven.
    """
    if world_size() == 1:
        return x
    after = share.total - share.start - x.shape[0]
    padded = torch.nn.functional.pad(x, (0, 0, share.start, after))  # (total, d)
    return all_reduce_sum(padded)
