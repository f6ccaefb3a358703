"""The order of training samples: a pure function from a position to a sample.

A *position* counts the samples that all workers together have consumed since step 0. Every epoch is a keyed permutation
of the mixture, so any number of workers can start at any position and find the same samples. A checkpoint stores the
position only.

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

    `tail="drop"` omits the last incomplete step of an epoch, as the authors' loader does, so that an epoch is a whole
    number of steps; with `tail="carry"` a step may extend into the next epoch and nothing is omitted.
    `sampling="permutation"` uses each sample `repeat` times per epoch. `sampling="replacement"` draws every position
    independently: an entry with probability proportional to `count * repeat`, then one of its samples uniformly.
    `windows` keeps samples of the same shards together.
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
                "a window needs sampling by permutation; sampling with replacement cannot have one."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole steps in an epoch; with `tail="carry"` the rest is part of a step that spans two epochs."""
        return self.mixture.samples_per_epoch // self.global_batch_size

    @property
    def positions_per_epoch(self) -> int:
        """Number of positions in an epoch: all its samples, or those in whole steps."""
        if self.tail == "carry":
            return self.mixture.samples_per_epoch
        return self.steps_per_epoch * self.global_batch_size

    def draw(self, positions: NDArray[np.int64]) -> SampleIndices:
        """Return the samples at the given positions, which may be in different epochs."""
        epochs, offsets = np.divmod(positions.astype(np.int64), self.positions_per_epoch)
        entry, sample = np.empty((2, len(positions)), np.int64)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            slots = self._slots(int(epoch), offsets[inside])
            entry[inside], sample[inside] = self.place(int(epoch), slots)
            if self.sampling == "replacement":
                sample[inside] = self._redraw(int(epoch), offsets[inside], entry[inside], sample[inside])
        return SampleIndices(entry, sample)

    def place(self, epoch: int, slots: NDArray[np.int64]) -> SampleIndices:
        """Return entry and sample of slots of an epoch, which are numbered entry by entry, `per_epoch` each."""
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
        """Return the sample of `entry` that replaces an unreadable one at `position`; it depends on the attempt."""
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

    def _redraw(
        self, epoch: int, offsets: NDArray[np.int64], entry: NDArray[np.int64], sample: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Draw the samples of entries with a fractional repeat again, since their slots do not cover all samples."""
        for index, e in enumerate(self.mixture.entries):
            if e.repeat % 1 and (inside := entry == index).any():
                keys = keys_of(self.seed, epoch, f"replacement {index}")
                sample[inside] = uniform(offsets[inside], e.count, keys)
        return sample

    def _rotated(self, epoch: int, index: int, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return samples of an entry with a fractional repeat: one permutation per pass; a pass may span epochs."""
        entry = self.mixture.entries[index]
        passes, within = np.divmod(epoch * entry.per_epoch + slots, entry.count)
        sample = np.empty_like(within)
        for number in np.unique(passes):
            inside = passes == number
            keys = keys_of(self.seed, int(number), f"pass {index}")
            sample[inside] = permute(within[inside], entry.count, keys)
        return sample


def share(global_batch_size: int, world_size: int, rank: int) -> tuple[int, int]:
    """Return start and count of one worker's share of a global batch: 32 over 3 workers is 11 + 11 + 10."""
    if not 0 <= rank < world_size <= global_batch_size:
        raise MixtureError(
            f"worker {rank} of {world_size} has no share of global_batch_size {global_batch_size}: "
            "use at most one worker per image."
        )
    each, extra = divmod(global_batch_size, world_size)
    return rank * each + min(rank, extra), each + (rank < extra)
