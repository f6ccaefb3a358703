"""Claims about how a cost grows, for tests that count requests, bytes, objects or memory at several sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orchestrator.bench.growth import FLAT, exponent


def grows(cost: Callable[[int], float], sizes: Sequence[int], *, at_most: float) -> list[float]:
    """Assert that `cost(size)` grows with at most this exponent; return the costs."""
    costs = [cost(size) for size in sizes]
    found = exponent(sizes, costs)
    assert found <= at_most, f"the cost grows as size^{found:.2f}, more than {at_most}: {costs} for {sizes}"
    return costs


def stays_flat(cost: Callable[[int], float], sizes: Sequence[int]) -> list[float]:
    """Assert that `cost(size)` does not grow; return the costs."""
    return grows(cost, sizes, at_most=FLAT)
