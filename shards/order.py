"""Which sample stands at which position of the training stream: pure functions, no list, no state but one
integer.

A *position* counts the samples that all workers together have consumed since step 0. Every epoch is a keyed
permutation of the mixture, so a stream can be entered at any position, by any number of workers, and each
position still means the same sample. Checkpoints store the position and nothing else.

    position ──▶ epoch, offset ──▶ permuted offset ──▶ entry of the mixture, sample of that entry
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.errors import MixtureError

Tail = Literal["drop", "carry"]
Sampling = Literal["permutation", "replacement"]

_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SCRAMBLE = np.uint64(0xBF58476D1CE4E5B9)


@dataclass(frozen=True, slots=True)
class Entry:
    """One degradation of a mixture: `count` distinct samples, each seen `repeat` times per epoch."""

    degradation: str
    count: int
    repeat: int

    def __post_init__(self) -> None:
        if self.count < 1 or self.repeat < 1:
            raise MixtureError(
                f"mixture entry {self.degradation!r}: count {self.count} and repeat {self.repeat} must be at "
                "least 1. Leave the entry out, or pack samples of it."
            )


@dataclass(frozen=True, slots=True)
class Mixture:
    """What one epoch is made of."""

    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        if not self.entries:
            raise MixtureError("the mixture is empty: name at least one degradation.")

    @property
    def samples_per_epoch(self) -> int:
        """Samples in one full epoch, repeats included."""
        return sum(entry.count * entry.repeat for entry in self.entries)


class Draw(NamedTuple):
    """Which samples stand at some positions."""

    entry: NDArray[np.int64]  # (n,)  index into mixture.entries
    sample: NDArray[np.int64]  # (n,)  index into the entry's samples, in [0, count)


@dataclass(frozen=True, slots=True)
class SampleOrder:
    """The order of a training run: a function of the seed, the mixture and the position.

    `tail="drop"` leaves out the last incomplete step of an epoch, as the authors' loader does, so that an
    epoch is a whole number of steps; `tail="carry"` lets a step reach into the next epoch and leaves out
    nothing. `sampling="permutation"` shows each sample `repeat` times per epoch. `sampling="replacement"`
    draws every position on its own, each entry with a chance in proportion to `count * repeat`, and then a
    sample of it uniformly.
    """

    mixture: Mixture
    seed: int
    global_batch_size: int
    tail: Tail = "drop"
    sampling: Sampling = "permutation"

    def __post_init__(self) -> None:
        if self.global_batch_size < 1:
            raise MixtureError(f"global_batch_size is {self.global_batch_size}; it must be at least 1.")
        if self.mixture.samples_per_epoch < self.global_batch_size:
            raise MixtureError(
                f"an epoch has {self.mixture.samples_per_epoch} samples, fewer than global_batch_size "
                f"{self.global_batch_size}: no step can be filled. Lower the batch or raise the repeats."
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

    def draw(self, positions: NDArray[np.int64]) -> Draw:
        """Samples at the given positions, which may lie in different epochs."""
        epochs, offsets = np.divmod(positions.astype(np.int64), self.positions_per_epoch)
        virtual = np.empty(len(positions), np.int64)
        size = self.mixture.samples_per_epoch
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            keys = _keys(self.seed, int(epoch), self.sampling)
            if self.sampling == "permutation":
                virtual[inside] = permute(offsets[inside], size, keys)
            else:
                virtual[inside] = _uniform(offsets[inside], size, keys)
        sizes = np.array([entry.count * entry.repeat for entry in self.mixture.entries], np.int64)
        ends = np.cumsum(sizes)
        entry = np.searchsorted(ends, virtual, side="right").astype(np.int64)
        counts = np.array([e.count for e in self.mixture.entries], np.int64)
        return Draw(entry, (virtual - (ends - sizes)[entry]) % counts[entry])


def share(global_batch_size: int, world_size: int, rank: int) -> tuple[int, int]:
    """Start and count of one worker's part of a global batch: 32 over 3 workers is 11 + 11 + 10."""
    if not 0 <= rank < world_size <= global_batch_size:
        raise MixtureError(
            f"worker {rank} of {world_size} has no share of global_batch_size {global_batch_size}: "
            "use at most one worker per image."
        )
    each, extra = divmod(global_batch_size, world_size)
    return rank * each + min(rank, extra), each + (rank < extra)


def permute(offsets: NDArray[np.int64], size: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Image of `offsets` under a keyed bijection of [0, size).

    A balanced Feistel network permutes the next power of four; values that land outside are sent through
    again until they land inside (cycle walking), which keeps it a bijection. Fewer than four passes are
    expected.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    out = offsets.astype(np.uint64)
    outside = np.ones(out.shape, bool)
    while outside.any():
        left, right = out[outside] >> half, out[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right, key) & mask)
        out[outside] = (left << half) | right
        outside &= out >= np.uint64(size)
    return out.astype(np.int64)


def permutation(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The whole keyed permutation of [0, size) for one epoch, for tests and small sets."""
    return permute(np.arange(size, dtype=np.int64), size, _keys(seed, epoch, "permutation"))


def _keys(seed: int, epoch: int, purpose: str) -> NDArray[np.uint64]:
    digest = hashlib.blake2b(
        struct.pack("<qq", seed, epoch) + purpose.encode(), digest_size=8 * _ROUNDS, person=b"sample order"
    ).digest()
    return np.frombuffer(digest, "<u8").astype(np.uint64)


def _mix(value: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    mixed = (value + key) * _GOLDEN  # unsigned array arithmetic wraps, as intended
    mixed ^= mixed >> np.uint64(29)
    mixed *= _SCRAMBLE
    mixed ^= mixed >> np.uint64(32)
    return mixed


def _uniform(offsets: NDArray[np.int64], size: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Independent uniform draws from [0, size), one per offset; the modulus' bias is below size / 2**64."""
    mixed = offsets.astype(np.uint64)
    for key in keys:
        mixed = _mix(mixed, key)
    return (mixed % np.uint64(size)).astype(np.int64)
