"""What the rows of a sweep show: which trials are Pareto-optimal, and which parameters mattered.

The importance of a parameter is the share of the variance of PSNR between its values (eta squared); ranges are divided
into three parts with equally many trials. With few trials any parameter seems to explain something, so two more numbers
are given: a 95 % jackknife interval over trials, and the 95th percentile of the share of a parameter without any
effect, from random permutations of its values among the trials.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.sweep_schema import Domain
from orchestrator.sweeps.trial_table import TrialRow

PERMUTATIONS = 2000
_PARTS = 3
_MIN_TRIALS = 4


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of (cost, PSNR) for which no other point is as cheap and better, by cost."""
    best = -np.inf
    found: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[index][1] > best:
            best = points[index][1]
            found.append(index)
    return found


@dataclass(frozen=True)
class Importance:
    """How much of the variance of PSNR a parameter explains."""

    parameter: str
    share: float
    low: float
    high: float
    """95 % jackknife interval of the share."""
    chance: float
    """95th percentile of the share of a parameter without effect."""
    trials: int

    @property
    def verdict(self) -> str:
        """Whether the share is more than chance."""
        return "matters" if self.share > self.chance else "indistinguishable from chance"


def comparable(trials: Sequence[TrialRow]) -> tuple[int, list[tuple[TrialRow, float]]]:
    """Return the last step that all trials with a validation reached, and the PSNR of each there."""
    curves = [(trial, dict(trial.curve)) for trial in trials if trial.curve]
    common = set.intersection(*(set(curve) for _, curve in curves)) if curves else set()
    if not common:
        return 0, []
    step = max(common)
    return step, [(trial, curve[step]) for trial, curve in curves]


def importance(space: Mapping[str, Domain], trials: Sequence[tuple[TrialRow, float]]) -> list[Importance]:
    """Return every parameter with several values among `trials`, the most important first; [] with few trials."""
    if len(trials) < _MIN_TRIALS:
        return []
    psnr = np.array([value for _, value in trials])
    found = []
    for parameter, domain in space.items():
        groups = _groups(domain, [trial.values.get(parameter) for trial, _ in trials])
        if len(set(groups.tolist())) > 1:
            found.append(_importance(parameter, groups, psnr))
    return sorted(found, key=lambda one: -one.share)


def explained(groups: NDArray[np.int64], psnr: NDArray[np.float64]) -> float:
    """Return the share of the variance of `psnr` between groups, 0 if there is no variance."""
    total = float(((psnr - psnr.mean()) ** 2).sum())
    if total <= 0:
        return 0.0
    counts = np.bincount(groups)
    used = counts > 0
    means = np.bincount(groups, weights=psnr)[used] / counts[used]
    return min(1.0, float((counts[used] * (means - psnr.mean()) ** 2).sum()) / total)


def _importance(parameter: str, groups: NDArray[np.int64], psnr: NDArray[np.float64]) -> Importance:
    rng = np.random.default_rng(0)
    n = len(psnr)
    share = explained(groups, psnr)
    # Not a bootstrap: a trial that is drawn twice agrees with itself, which makes every parameter look important.
    without = np.array([explained(np.delete(groups, i), np.delete(psnr, i)) for i in range(n)])
    error = float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))
    permuted = [explained(rng.permutation(groups), psnr) for _ in range(PERMUTATIONS)]
    low, high = max(0.0, share - 1.96 * error), min(1.0, share + 1.96 * error)
    return Importance(parameter, share, low, high, float(np.percentile(permuted, 95)), n)


def _groups(domain: Domain, values: Sequence[object]) -> NDArray[np.int64]:
    """Return the group of each trial; trials in which the parameter is not used form a group of their own."""
    if domain.bounds is None:
        names = sorted({json.dumps(value) for value in values})
        return np.array([names.index(json.dumps(value)) for value in values])
    numbers = np.array([np.nan if value is None else float(str(value)) for value in values])
    used = np.isfinite(numbers)
    edges = np.unique(np.quantile(numbers[used], [i / _PARTS for i in range(1, _PARTS)]))
    return np.where(used, np.searchsorted(edges, np.nan_to_num(numbers), side="right"), _PARTS).astype(
        np.int64
    )
