"""How far the blurs of a pipeline may reach, and how small an image may be there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shards.degradations.kernels import kernels
from shards.degradations.parse import parse_pipelines

BLUR = {"gaussian_blur": {"sigma": {"range": [0.1, 2]}, "size": 9}}
SHRINK = {"resize": {"scale": {"range": [0.25, 1.5]}}}


def of(*steps: object, **others: Any) -> list[tuple[str, int, float, bool]]:
    pipeline = parse_pipelines({"mine": list(steps), **others})["mine"]
    return [(".".join(each.key), each.radius, each.scale, each.resized) for each in kernels(pipeline.steps)]


@pytest.mark.parametrize(
    ("name", "values", "radius"),
    [
        ("gaussian_blur", {"sigma": {"range": [0, 2]}}, 8),
        ("gaussian_blur", {"sigma": 2, "sigma_y": {"choice": [1, 3]}, "size": {"choice": [0, 5]}}, 12),
        ("gaussian_blur", {"sigma": 2, "size": {"choice": [5, 21]}}, 10),
        ("generalised_gaussian_blur", {"sigma": 1, "beta": 1}, 10),
        ("plateau_blur", {"sigma": 1, "beta": 1, "size": 7}, 3),
        ("sinc_filter", {"cutoff": 1, "size": {"range": [3, 15]}}, 7),
        ("motion_blur", {"length": {"log_range": [3, 15]}}, 8),
        ("defocus_blur", {"radius": {"range": [1, 4.5]}}, 5),
    ],
)
def test_a_blurs_radius_is_the_largest_that_its_parameters_allow(
    name: str, values: dict[str, Any], radius: int
) -> None:
    assert of({name: values}) == [(f"0.{name}", radius, 1, False)]
    image = np.zeros((61, 61, 3), np.float32)
    image[30, 30] = 1
    for number in range(20):
        (applied,) = parse_pipelines({"mine": [{name: values}]})["mine"].draw(f"{number}")
        rows, columns, _ = np.nonzero(applied.operator(image, np.random.default_rng(0), applied.values))
        assert max(abs(rows - 30).max(), abs(columns - 30).max()) <= radius


def test_blurs_of_no_width_and_other_operators_have_no_kernel() -> None:
    assert not of(
        {"gaussian_blur": {"sigma": 0, "size": 9}}, {"motion_blur": {"length": 0}}, {"jpeg": {"quality": 9}}
    )


def test_a_blur_behind_a_resize_knows_the_smallest_scale() -> None:
    assert of(BLUR, SHRINK, BLUR, {"resize_back": {"scale": 0.5}}, BLUR) == [
        ("0.gaussian_blur", 4, 1, False),
        ("2.gaussian_blur", 4, 0.25, True),
        ("4.gaussian_blur", 4, 0.5, True),
    ]


def test_every_arrangement_of_steps_is_followed() -> None:
    assert of({"shuffle": [BLUR, SHRINK]}) == [("0.shuffle.0.gaussian_blur", 4, 0.25, True)]
    assert of({"maybe": {"probability": 0.5, "steps": [SHRINK]}}, BLUR) == [
        ("1.gaussian_blur", 4, 0.25, True)
    ]
    branches = [{"weight": 0, "steps": [SHRINK]}, {"steps": [BLUR]}]
    assert of({"one_of": branches}, BLUR) == [
        ("0.one_of.1.steps.0.gaussian_blur", 4, 1, False),
        ("1.gaussian_blur", 4, 1, False),
    ]
    twice = {"repeat": {"times": {"range": [1, 2]}, "steps": [BLUR, SHRINK]}}
    assert of(twice) == [
        ("0.repeat.steps.0.gaussian_blur", 4, 1, False),
        ("0.repeat.steps.0.gaussian_blur", 4, 0.25, True),
    ]
    assert of(SHRINK, {"use": "soft"}, soft=[{"maybe": {"probability": 1, "steps": [BLUR]}}]) == [
        ("1.use", 4, 0.25, True)
    ]


def test_a_blur_that_is_repeated_is_listed_once() -> None:
    assert of({"repeat": {"times": 5, "steps": [BLUR]}}) == [("0.repeat.steps.0.gaussian_blur", 4, 1, False)]
