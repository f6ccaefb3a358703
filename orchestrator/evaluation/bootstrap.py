"""The 95 % percentile bootstrap over photographs, with draws that are always the same ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean difference of PSNR and its 95 % interval [dB]."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return it as one would say it."""
        return f"{self.mean:+.3f} dB [{self.low:+.3f}, {self.high:+.3f}]"


def over_photographs(groups: Sequence[Mapping[str, float]]) -> Interval:
    """Return the unweighted mean of the groups' means, with its interval; a group is photograph to difference [dB].

    Photographs are drawn, not values: one that stands in several groups comes or stays away in all of them.
    """
    photographs = sorted({name for group in groups for name in group})
    index = {name: i for i, name in enumerate(photographs)}
    picks = np.random.default_rng(0).integers(0, len(photographs), size=(DRAWS, len(photographs)))
    times = np.stack(
        [np.bincount(pick, minlength=len(photographs)) for pick in picks]
    )  # (draws, photographs)
    means, whole = np.zeros(DRAWS), 0.0
    for group in groups:
        values, here = np.zeros(len(photographs)), np.zeros(len(photographs), bool)
        for name, value in group.items():
            values[index[name]], here[index[name]] = value, True
        weight = times * here
        # A draw without any photograph of this group says nothing of it: its own mean stands in.
        drawn = weight @ values / np.maximum(weight.sum(1), 1)
        means += np.where(weight.sum(1) == 0, values[here].mean(), drawn) / len(groups)
        whole += float(values[here].mean()) / len(groups)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(whole, float(low), float(high))
