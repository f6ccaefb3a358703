"""What the rows of a sweep say: which trials no other beats, and which knobs mattered.

The importance of a knob is the share of the variance of PSNR that lies between its values (eta squared); ranges are
cut into three parts of equal counts. With few trials any knob seems to explain something, so two numbers stand beside
it: a 95 % jackknife interval over trials, and what a knob without any effect stays below in 95 of 100 cases, found by
giving the values to other trials.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.sweep_schema import Domain
from orchestrator.sweeps.trial_table import Trial

DRAWS = 2000
_PARTS = 3
_FEWEST = 4
"""Trials below which nothing is said of importance."""


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of (cost, PSNR) that no other is at most as dear as and at least as good as, by cost."""
    best = -np.inf
    found: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[index][1] > best:
            best = points[index][1]
            found.append(index)
    return found


@dataclass(frozen=True)
class Importance:
    """How much of the variance a knob explains."""

    knob: str
    share: float
    low: float
    high: float
    """95 % jackknife interval of the share."""
    chance: float
    """What a knob without effect stays below in 95 of 100 cases."""
    trials: int

    @property
    def verdict(self) -> str:
        """Whether it can be told from chance."""
        return "matters" if self.share > self.chance else "cannot be told from chance"


def comparable(trials: Sequence[Trial]) -> tuple[int, list[tuple[Trial, float]]]:
    """Return the last step that all trials with a validation reached, and each one's PSNR there."""
    judged = [trial for trial in trials if trial.curve]
    if not judged:
        return 0, []
    common = set.intersection(*({step for step, _ in trial.curve} for trial in judged))
    if not common:
        return 0, []
    step = max(common)
    return step, [(trial, dict(trial.curve)[step]) for trial in judged]


def importance(space: Mapping[str, Domain], trials: Sequence[tuple[Trial, float]]) -> list[Importance]:
    """Return every knob with more than one value among `trials`, the most important first; [] with too few trials."""
    if len(trials) < _FEWEST:
        return []
    psnr = np.array([value for _, value in trials])
    found = []
    for knob, domain in space.items():
        groups = _groups(domain, [trial.values.get(knob) for trial, _ in trials])
        if len(set(groups.tolist())) > 1:
            found.append(_importance(knob, groups, psnr))
    return sorted(found, key=lambda one: -one.share)


def explained(groups: NDArray[np.int64], psnr: NDArray[np.float64]) -> float:
    """Return the share of the variance that lies between groups, 0 when there is none at all."""
    total = float(((psnr - psnr.mean()) ** 2).sum())
    if total <= 0:
        return 0.0
    counts = np.bincount(groups)
    sums = np.bincount(groups, weights=psnr)
    there = counts > 0
    between = float((counts[there] * (sums[there] / counts[there] - psnr.mean()) ** 2).sum())
    return min(1.0, between / total)


def _importance(knob: str, groups: NDArray[np.int64], psnr: NDArray[np.float64]) -> Importance:
    random = np.random.default_rng(0)
    n = len(psnr)
    share = explained(groups, psnr)
    # Not the bootstrap: a trial that is drawn twice agrees with itself, which makes every knob look important.
    without = np.array([explained(np.delete(groups, i), np.delete(psnr, i)) for i in range(n)])
    error = float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))
    shuffled = [explained(random.permutation(groups), psnr) for _ in range(DRAWS)]
    low, high = max(0.0, share - 1.96 * error), min(1.0, share + 1.96 * error)
    return Importance(knob, share, low, high, float(np.percentile(shuffled, 95)), n)


def _groups(domain: Domain, values: Sequence[object]) -> NDArray[np.int64]:
    """Return the group of each trial; one in which the knob does not matter is in a group of its own."""
    if domain.choice is not None or domain.variants is not None:
        names = sorted({json.dumps(value) for value in values})
        return np.array([names.index(json.dumps(value)) for value in values])
    numbers = np.array([np.nan if value is None else float(str(value)) for value in values])
    there = np.isfinite(numbers)
    edges = np.unique(np.quantile(numbers[there], [i / _PARTS for i in range(1, _PARTS)]))
    return np.where(there, np.searchsorted(edges, np.nan_to_num(numbers), side="right"), _PARTS).astype(
        np.int64
    )
