"""Windowed order for data that is larger than the cache: samples come from a few shards at a time.

    slots of an epoch ── ordinary permutation ──▶ sorted stably by window

A slot is one use of one sample. Slots of the same shard and the same pass over it form a block; a sample that is used
120 times in an epoch is in 120 blocks, so that its uses are spread over the epoch. Blocks are permuted, and `size`
consecutive blocks form a window, so samples come from at most `size` shards at a time. Otherwise the order is the
ordinary permutation. It depends on the seed, the epoch and the packed data only, not on the cache.
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

_KEPT = 2  # epochs: a batch may span two


class SlotOrder(Protocol):
    """The part of `shards.order.SampleOrder` that windows use."""

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
    """The windowed order of one epoch."""

    slots: NDArray[np.int64]
    """(n,) slot at every offset of the epoch."""
    ends: NDArray[np.int64]
    """(w,) end offset of every window."""
    shards: tuple[tuple[int, ...], ...]
    """Shards of every window."""

    def window_of(self, offset: int) -> int:
        """Return the window of an offset."""
        return int(np.searchsorted(self.ends, offset, side="right"))


class ShardWindows:
    """Windows of `size` shards; `shards` holds the shard of each sample, entry by entry."""

    def __init__(self, shards: Sequence[NDArray[np.int64]], size: int) -> None:
        if size < 1:
            raise MixtureError(f"a window has {size} shards; it must have at least 1.")
        self.shards, self.size = tuple(shards), size
        self._arranged: dict[int, EpochOrder] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_arranged": {}}

    def arrange(self, order: SlotOrder, epoch: int) -> EpochOrder:
        """Return the order of an epoch; the last few are cached."""
        found = self._arranged.get(epoch)
        if found is None:
            found = self._arrange(order, epoch)
            kept = list(self._arranged.items())[1 - _KEPT :]
            # Replaced, not mutated: the prefetch thread reads it too.
            self._arranged = dict([*kept, (epoch, found)])
        return found

    def ahead(self, order: SlotOrder, position: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Yield the window at a position and all later ones, as end position and shards."""
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
