"""The fit behind every claim of this folder."""

from __future__ import annotations

import pytest

from orchestrator.bench.growth import exponent, extrapolate
from tests.scale.growth import grows, stays_flat

SIZES = [100, 1_000, 10_000]


@pytest.mark.parametrize("power", [0, 0.5, 1, 2])
def test_the_exponent_of_a_power_is_found(power: float):
    assert exponent(SIZES, [3 * size**power for size in SIZES]) == pytest.approx(power)


def test_a_constant_part_does_not_hide_growth_and_what_is_flat_stays_flat():
    costs = [110, 200, 1_100]  # 100 + size / 10
    assert extrapolate(SIZES, costs, exponent(SIZES, costs), 100_000) == pytest.approx(10_100)
    assert extrapolate(SIZES, [1, 100, 10_000], 2, 100_000) == pytest.approx(1_000_000)
    assert extrapolate(SIZES, [41, 41, 41.5], 0.01, 1_000_000) == pytest.approx(41.5, rel=0.05)


def test_a_cost_of_nothing_is_flat():
    assert exponent(SIZES, [0, 0, 0]) == 0


def test_what_grows_is_not_flat():
    assert stays_flat(lambda size: 7, SIZES) == [7, 7, 7]
    with pytest.raises(AssertionError, match=r"size\^1.00"):
        stays_flat(lambda size: size, SIZES)
    assert grows(lambda size: size, SIZES, at_most=1.1) == SIZES


@pytest.mark.parametrize(("sizes", "costs"), [([1, 2], [1]), ([2, 2], [1, 1]), ([], [])])
def test_a_fit_without_two_sizes_is_refused(sizes: list[int], costs: list[int]):
    with pytest.raises(ValueError, match="at least two sizes"):
        exponent(sizes, costs)
