"""Which sample stands at which position of the training stream: pure functions, no list, no state but one
integer.

A *position* counts the samples that all workers together have consumed since step 0. Every epoch is a keyed
permutation of the mixture, so a stream can be entered at any position, by any number of workers, and each
position still means the same sample. Checkpoints store the position and nothing else.

    position ──▶ epoch, offset ──▶ permuted offset ──▶ entry of the mixture, sample of that entry
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shards.errors import MixtureError
from shards.mixture import Mixture, SampleIndices
from shards.permutation import keys_of, permute, uniform
from shards.windows import ShardWindows

Tail = Literal["drop", "carry"]
Sampling = Literal["permutation", "replacement"]


@dataclass(frozen=True, slots=True)
class SampleOrder:
    """The order of a training run: a function of the seed, the mixture and the position.

    `tail="drop"` leaves out the last incomplete step of an epoch, as the authors' loader does, so that an
    epoch is a whole number of steps; `tail="carry"` lets a step reach into the next epoch and leaves out
    nothing. `sampling="permutation"` shows each sample `repeat` times per epoch. `sampling="replacement"`
    draws every position on its own, each entry with a chance in proportion to `count * repeat`, and then a
    sample of it uniformly. `windows` keeps samples that lie in the same shards together.
    """

    mixture: Mixture
    seed: int
    global_batch_size: int
    tail: Tail = "drop"
    sampling: Sampling = "permutation"
    windows: ShardWindows | None = None

    def __post_init__(self) -> None:
        if self.global_batch_size < 1:
            raise MixtureError(f"global_batch_size is {self.global_batch_size}; it must be at least 1.")
        if self.mixture.samples_per_epoch < self.global_batch_size:
            raise MixtureError(
                f"an epoch has {self.mixture.samples_per_epoch} samples, fewer than global_batch_size "
                f"{self.global_batch_size}: no step can be filled. Lower the batch or raise the repeats."
            )
        if self.windows is not None and self.sampling == "replacement":
            raise MixtureError(
                "a window is of a permutation: sampling with replacement has no order to keep."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps in an epoch; with `tail="carry"` the remainder belongs to a step across the border."""
        return self.mixture.samples_per_epoch // self.global_batch_size

    @property
    def positions_per_epoch(self) -> int:
        """Positions that one epoch spans: all its samples, or those that fill whole steps."""
        if self.tail == "carry":
            return self.mixture.samples_per_epoch
        return self.steps_per_epoch * self.global_batch_size

    def epoch_of(self, position: int) -> int:
        """Epoch that a position belongs to, from 0."""
        return position // self.positions_per_epoch

    def draw(self, positions: NDArray[np.int64]) -> SampleIndices:
        """Samples at the given positions, which may lie in different epochs."""
        epochs, offsets = np.divmod(positions.astype(np.int64), self.positions_per_epoch)
        entry, sample = np.empty((2, len(positions)), np.int64)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            slots = self._slots(int(epoch), offsets[inside])
            entry[inside], sample[inside] = self.place(int(epoch), slots)
            if self.sampling == "replacement":
                sample[inside] = self._redrawn(int(epoch), offsets[inside], entry[inside], sample[inside])
        return SampleIndices(entry, sample)

    def place(self, epoch: int, slots: NDArray[np.int64]) -> SampleIndices:
        """Entry and sample of slots of an epoch: entry by entry, `per_epoch` slots each."""
        ends = np.cumsum([entry.per_epoch for entry in self.mixture.entries])
        entry = np.searchsorted(ends, slots, side="right").astype(np.int64)
        first = np.array([0, *ends[:-1]], np.int64)[entry]
        counts = np.array([e.count for e in self.mixture.entries], np.int64)
        sample = (slots - first) % counts[entry]
        for index, e in enumerate(self.mixture.entries):
            if e.repeat % 1 and (inside := entry == index).any():
                sample[inside] = self._rotated(epoch, index, slots[inside] - first[inside])
        return SampleIndices(entry, sample)

    def substitute(self, position: int, attempt: int, entry: int) -> int:
        """Sample of `entry` that stands in at `position` for one that cannot be read; another each attempt."""
        keys = keys_of(self.seed, attempt, "substitute")
        return int(uniform(np.array([position]), self.mixture.entries[entry].count, keys)[0])

    def _slots(self, epoch: int, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        size = self.mixture.samples_per_epoch
        if self.windows is not None:
            return self.windows.arrange(self, epoch).slots[offsets]
        keys = keys_of(self.seed, epoch, self.sampling)
        return (
            permute(offsets, size, keys) if self.sampling == "permutation" else uniform(offsets, size, keys)
        )

    def _redrawn(
        self, epoch: int, offsets: NDArray[np.int64], entry: NDArray[np.int64], sample: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Samples of entries with a fraction, whose slots are no multiple of their samples: drawn anew."""
        for index, e in enumerate(self.mixture.entries):
            if e.repeat % 1 and (inside := entry == index).any():
                keys = keys_of(self.seed, epoch, f"replacement {index}")
                sample[inside] = uniform(offsets[inside], e.count, keys)
        return sample

    def _rotated(self, epoch: int, index: int, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Samples of an entry with a fraction: a new permutation on every pass, which epochs may cut anywhere."""
        entry = self.mixture.entries[index]
        passes, within = np.divmod(epoch * entry.per_epoch + slots, entry.count)
        sample = np.empty_like(within)
        for number in np.unique(passes):
            inside = passes == number
            keys = keys_of(self.seed, int(number), f"pass {index}")
            sample[inside] = permute(within[inside], entry.count, keys)
        return sample


def share(global_batch_size: int, world_size: int, rank: int) -> tuple[int, int]:
    """Start and count of one worker's part of a global batch: 32 over 3 workers is 11 + 11 + 10."""
    if not 0 <= rank < world_size <= global_batch_size:
        raise MixtureError(
            f"worker {rank} of {world_size} has no share of global_batch_size {global_batch_size}: "
            "use at most one worker per image."
        )
    each, extra = divmod(global_batch_size, world_size)
    return rank * each + min(rank, extra), each + (rank < extra)
