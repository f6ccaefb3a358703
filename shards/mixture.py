"""Define weighted mixtures of datasets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.errors import MixtureError


@dataclass(frozen=True, slots=True)
class MixtureEntry:
    """One degradation of a mixture: `count` distinct samples, each used `repeat` times per epoch.

    With a fractional `repeat`, over many epochs every sample is used equally often, to within one.
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
        """Number of samples of this degradation in one epoch."""
        return int(self.count * self.repeat)


@dataclass(frozen=True, slots=True)
class Mixture:
    """The composition of one epoch."""

    entries: tuple[MixtureEntry, ...]

    def __post_init__(self) -> None:
        if not self.entries:
            raise MixtureError("the mixture is empty: name at least one degradation.")

    @property
    def samples_per_epoch(self) -> int:
        """Number of samples in one epoch, including repeats."""
        return sum(entry.per_epoch for entry in self.entries)


def weighted_mixture(
    counts: Mapping[str, int], weights: Mapping[str, float], samples_per_epoch: int
) -> Mixture:
    """Return a mixture with each degradation in proportion to its weight, to within one sample per epoch."""
    if sorted(counts) != sorted(weights):
        raise MixtureError(
            f"weights are given for {', '.join(weights) or 'nothing'}, and the mixture has "
            f"{', '.join(counts) or 'nothing'}. Give each degradation one weight."
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
        tuple(
            MixtureEntry(name, count, Fraction(whole[name], max(1, count))) for name, count in counts.items()
        )
    )


class SampleIndices(NamedTuple):
    """The samples at some positions."""

    entry: NDArray[np.int64]  # (n,)  index into mixture.entries
    sample: NDArray[np.int64]  # (n,)  index into the entry's samples, in [0, count)
