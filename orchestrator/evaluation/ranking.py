"""Order scores so that one that is not finite never ranks above another."""

from __future__ import annotations

import math


def rank_value(score: object) -> float:
    """Return a score for comparisons in which larger is better; minus infinity if it is no finite number."""
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        return -math.inf
    return float(score)
