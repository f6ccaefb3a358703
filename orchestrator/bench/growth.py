"""Fit of how a cost grows with the size of what it is for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
