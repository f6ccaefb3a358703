"""An order for data that is larger than the cache: samples of a few shards at a time, and then of the next few.

    slots of an epoch ── ordinary permutation ──▶ sorted by window, stably

A slot is one showing of one sample. Slots of the same shard and the same pass over it are a block (a sample
that comes 120 times in an epoch is in 120 blocks, so that it is spread over the epoch). Blocks are permuted,
and every `size` of them are a window: at any place of the stream, samples come from `size` shards at most.
It is the ordinary permutation in all other respects, and a function of the seed, the epoch and the packed
data alone, never of a cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shards.errors import MixtureError
from shards.mixture import Mixture, SampleIndices
from shards.permutation import keys_of, permute

_KEPT = 2  # epochs: a batch may lie across their border


class SlotOrder(Protocol):
    """What windows need to know of the order that they belong to, a `shards.order.SampleOrder`."""

    @property
    def mixture(self) -> Mixture:
        """Return the mixture of datasets."""

    @property
    def seed(self) -> int:
        """Return the seed of the order."""

    @property
    def positions_per_epoch(self) -> int:
        """Return the number of positions in one epoch."""

    def place(self, epoch: int, slots: NDArray[np.int64]) -> SampleIndices:
        """Return entry and sample of slots of an epoch."""


@dataclass(frozen=True)
class EpochOrder:
    """The order of one epoch."""

    slots: NDArray[np.int64]
    """(n,) slot at every offset of the epoch"""
    ends: NDArray[np.int64]
    """(w,) offset after the last one of every window"""
    shards: tuple[tuple[int, ...], ...]
    """Shards that every window's samples lie in"""

    def window_of(self, offset: int) -> int:
        """Window that an offset of the epoch lies in."""
        return int(np.searchsorted(self.ends, offset, side="right"))


class ShardWindows:
    """Windows of `size` shards; `shards` tells the shard of each sample, entry by entry."""

    def __init__(self, shards: Sequence[NDArray[np.int64]], size: int) -> None:
        if size < 1:
            raise MixtureError(f"a window of {size} shards holds no sample; it must be at least 1.")
        self.shards, self.size = tuple(shards), size
        self._arranged: dict[int, EpochOrder] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_arranged": {}}

    def arrange(self, order: SlotOrder, epoch: int) -> EpochOrder:
        """The order of an epoch; the last few are remembered."""
        found = self._arranged.get(epoch)
        if found is None:
            found = self._arrange(order, epoch)
            kept = list(self._arranged.items())[1 - _KEPT :]
            self._arranged = dict(
                [*kept, (epoch, found)]
            )  # replaced, not changed: the prefetcher reads it too
        return found

    def ahead(self, order: SlotOrder, position: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """The window at a position, the next one, and so on: the position where it ends, and its shards."""
        epoch, offset = divmod(position, order.positions_per_epoch)
        while True:
            arrangement = self.arrange(order, epoch)
            first = epoch * order.positions_per_epoch
            last = arrangement.window_of(order.positions_per_epoch - 1)
            for window in range(arrangement.window_of(offset), last + 1):
                end = min(int(arrangement.ends[window]), order.positions_per_epoch)
                yield first + end, arrangement.shards[window]
            epoch, offset = epoch + 1, 0

    def _arrange(self, order: SlotOrder, epoch: int) -> EpochOrder:
        size = order.mixture.samples_per_epoch
        slots = np.arange(size, dtype=np.int64)
        shard, pass_ = np.empty((2, size), np.int64)
        draw = order.place(epoch, slots)
        first = 0
        for index, entry in enumerate(order.mixture.entries):
            own = slice(first, first + entry.per_epoch)
            shard[own] = self.shards[index][draw.sample[own]]
            pass_[own] = np.arange(entry.per_epoch) // entry.count
            first += entry.per_epoch
        blocks, block = np.unique(shard * (pass_.max() + 1) + pass_, return_inverse=True)
        places = np.arange(len(blocks), dtype=np.int64)
        rank = permute(places, len(blocks), keys_of(order.seed, epoch, "blocks"))
        window = rank[block] // self.size
        ordinary = permute(slots, size, keys_of(order.seed, epoch, "permutation"))
        arranged = ordinary[np.argsort(window[ordinary], kind="stable")]
        ends = np.cumsum(np.bincount(window))
        return EpochOrder(
            arranged,
            ends,
            tuple(
                tuple(np.unique(shard[arranged[start:end]]).tolist())
                for start, end in zip([0, *ends[:-1]], ends, strict=True)
            ),
        )
