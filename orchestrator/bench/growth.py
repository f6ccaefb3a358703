"""Fit of how a cost grows with the size of what it is for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

FLAT = 0.15
"""Exponent of what may be called flat: 30 times the size costs at most 1.7 times as much."""


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return p of the fit cost = a * size^p by least squares of the logarithms: 0 is flat, 1 linear, 2 pairwise.

    A cost below 1 counts as 1, so that it must be given in units of which there are many.
    """
    if len(sizes) != len(costs) or len(set(sizes)) < 2:
        raise ValueError(
            f"a fit needs one cost for each of at least two sizes, not {len(costs)} for {sizes}."
        )
    slope, _ = np.polyfit(np.log(np.array(sizes, float)), np.log(np.maximum(np.array(costs, float), 1)), 1)
    return float(slope)


def extrapolate(sizes: Sequence[float], costs: Sequence[float], power: float, size: float) -> float:
    """Return the cost at a larger size, by the fit of exponent `power` through the last measured cost.

    A cost with a constant part looks as if it grew slower than it does: where it is not flat, the straight line through
    the last two costs counts if it is higher.
    """
    fitted = costs[-1] * math.pow(size / sizes[-1], power)
    if power <= FLAT:
        return fitted
    slope = (costs[-1] - costs[-2]) / (sizes[-1] - sizes[-2])
    return max(fitted, costs[-1] + slope * (size - sizes[-1]))
