"""Which sample stands at which position of the training stream: pure functions, no list, no state but one
integer.

A *position* counts the samples that all workers together have consumed since step 0. Every epoch is a keyed
permutation of the mixture, so a stream can be entered at any position, by any number of workers, and each
position still means the same sample. Checkpoints store the position and nothing else.

    position ──▶ epoch, offset ──▶ permuted offset ──▶ entry of the mixture, sample of that entry
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.errors import MixtureError

if TYPE_CHECKING:
    from shards.windows import Windows

Tail = Literal["drop", "carry"]
Sampling = Literal["permutation", "replacement"]

_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SCRAMBLE = np.uint64(0xBF58476D1CE4E5B9)


@dataclass(frozen=True, slots=True)
class Entry:
    """One degradation of a mixture: `count` distinct samples, each seen `repeat` times per epoch.

    A fraction means that over the epochs each sample is seen that often, to within one.
    """

    degradation: str
    count: int
    repeat: int | Fraction

    def __post_init__(self) -> None:
        if self.count < 1 or self.repeat <= 0 or self.count * self.repeat < 1:
            raise MixtureError(
                f"mixture entry {self.degradation!r}: count {self.count} and repeat {self.repeat} must be at "
                "least 1. Leave the entry out, or pack samples of it."
            )
        assert (self.count * self.repeat) % 1 == 0, "an epoch holds a whole number of samples"

    @property
    def per_epoch(self) -> int:
        """Samples of this degradation in one epoch."""
        return int(self.count * self.repeat)


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
        return sum(entry.per_epoch for entry in self.entries)


def weighted(counts: Mapping[str, int], weights: Mapping[str, float], samples_per_epoch: int) -> Mixture:
    """The mixture whose epochs hold each degradation in proportion to its weight, to within one sample."""
    if sorted(counts) != sorted(weights):
        raise MixtureError(
            f"weights are given for {', '.join(weights) or 'nothing'}, and the mixture is of "
            f"{', '.join(counts) or 'nothing'}. Give one weight to each."
        )
    if not all(math.isfinite(weight) and weight > 0 for weight in weights.values()):
        raise MixtureError(f"weights must be above 0: {dict(weights)}.")
    total = sum(map(Fraction, weights.values()))
    exact = {name: Fraction(weights[name]) / total * samples_per_epoch for name in counts}
    whole = {name: int(value) for name, value in exact.items()}
    left = samples_per_epoch - sum(whole.values())
    for name in sorted(exact, key=lambda name: (whole[name] - exact[name], name))[:left]:
        whole[name] += 1
    if 0 in whole.values():
        poor = min(whole, key=lambda name: whole[name])
        raise MixtureError(
            f"the weight of {poor!r} is less than one sample in an epoch of {samples_per_epoch}. Raise it, or "
            "leave the degradation out."
        )
    return Mixture(
        tuple(Entry(name, count, Fraction(whole[name], max(1, count))) for name, count in counts.items())
    )


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
    sample of it uniformly. `windows` keeps samples that lie in the same shards together.
    """

    mixture: Mixture
    seed: int
    global_batch_size: int
    tail: Tail = "drop"
    sampling: Sampling = "permutation"
    windows: Windows | None = None

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

    def draw(self, positions: NDArray[np.int64]) -> Draw:
        """Samples at the given positions, which may lie in different epochs."""
        epochs, offsets = np.divmod(positions.astype(np.int64), self.positions_per_epoch)
        entry, sample = np.empty((2, len(positions)), np.int64)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            slots = self._slots(int(epoch), offsets[inside])
            entry[inside], sample[inside] = self.place(int(epoch), slots)
            if self.sampling == "replacement":
                sample[inside] = self._redrawn(int(epoch), offsets[inside], entry[inside], sample[inside])
        return Draw(entry, sample)

    def place(self, epoch: int, slots: NDArray[np.int64]) -> Draw:
        """Entry and sample of slots of an epoch: entry by entry, `per_epoch` slots each."""
        ends = np.cumsum([entry.per_epoch for entry in self.mixture.entries])
        entry = np.searchsorted(ends, slots, side="right").astype(np.int64)
        first = np.array([0, *ends[:-1]], np.int64)[entry]
        counts = np.array([e.count for e in self.mixture.entries], np.int64)
        sample = (slots - first) % counts[entry]
        for index, e in enumerate(self.mixture.entries):
            if e.repeat % 1 and (inside := entry == index).any():
                sample[inside] = self._rotated(epoch, index, slots[inside] - first[inside])
        return Draw(entry, sample)

    def substitute(self, position: int, attempt: int, entry: int) -> int:
        """Sample of `entry` that stands in at `position` for one that cannot be read; another each attempt."""
        keys = keys_of(self.seed, attempt, "substitute")
        return int(_uniform(np.array([position]), self.mixture.entries[entry].count, keys)[0])

    def _slots(self, epoch: int, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        size = self.mixture.samples_per_epoch
        if self.windows is not None:
            return self.windows.arrange(self, epoch).slots[offsets]
        keys = keys_of(self.seed, epoch, self.sampling)
        return (
            permute(offsets, size, keys) if self.sampling == "permutation" else _uniform(offsets, size, keys)
        )

    def _redrawn(
        self, epoch: int, offsets: NDArray[np.int64], entry: NDArray[np.int64], sample: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Samples of entries with a fraction, whose slots are no multiple of their samples: drawn anew."""
        for index, e in enumerate(self.mixture.entries):
            if e.repeat % 1 and (inside := entry == index).any():
                keys = keys_of(self.seed, epoch, f"replacement {index}")
                sample[inside] = _uniform(offsets[inside], e.count, keys)
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
    return permute(np.arange(size, dtype=np.int64), size, keys_of(seed, epoch, "permutation"))


def keys_of(seed: int, epoch: int, purpose: str) -> NDArray[np.uint64]:
    """Keys of the rounds of one permutation or draw."""
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
