"""Crops and orientations: PROTOCOL section 2.2, keyed by position alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from shards.augment import (
    CropWindow,
    centre_window,
    draw_crop,
    draw_orientation,
    keyed_rng,
    orient,
    place_within,
    widened,
)

SQUARE = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)


def test_a_position_always_draws_the_same():
    assert keyed_rng(1, 7).integers(1 << 60) == keyed_rng(1, 7).integers(1 << 60)
    assert keyed_rng(1, 7).integers(1 << 60) != keyed_rng(1, 8).integers(1 << 60)
    assert keyed_rng(1, 7).integers(1 << 60) != keyed_rng(2, 7).integers(1 << 60)


def test_the_eight_orientations_are_those_of_the_square():
    assert len({orient(SQUARE, mode).tobytes() for mode in range(8)}) == 8
    np.testing.assert_array_equal(orient(SQUARE, 0), SQUARE)
    np.testing.assert_array_equal(orient(SQUARE, 1), np.flipud(SQUARE))
    np.testing.assert_array_equal(orient(SQUARE, 4), np.rot90(SQUARE, 2))
    np.testing.assert_array_equal(orient(SQUARE, 5), np.fliplr(SQUARE))


@pytest.mark.parametrize(
    ("augmentation", "modes"),
    [("release", {1, 2, 3, 4, 5, 6, 7}), ("paper", {0, 1, 4, 5}), ("none", {0})],
)
def test_each_recipe_draws_its_orientations_evenly(augmentation, modes: set[int]):
    drawn = Counter(draw_orientation(keyed_rng(0, position), augmentation) for position in range(2100))
    assert set(drawn) == modes
    expected = 2100 / len(modes)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in drawn.values())


def test_crop16_is_centred_as_the_benchmarks_cut():
    assert centre_window(400, 600) == CropWindow(0, 4, 400, 592)  # LOL: 4 pixels lost on each side
    assert centre_window(321, 481) == CropWindow(0, 0, 320, 480)  # BSD68
    assert centre_window(720, 1280) == CropWindow(0, 0, 720, 1280)  # GoPro
    assert centre_window(1080, 720, multiple=1) == CropWindow(0, 0, 1080, 720)  # CDD-11 is not cut


def test_windows_are_uniform_over_every_place_and_stay_inside():
    within = CropWindow(2, 3, 10, 9)
    places = Counter(
        (window.top, window.left)
        for window in (draw_crop(keyed_rng(0, position), within, 8) for position in range(3000))
    )
    assert set(places) == {(top, left) for top in (2, 3, 4) for left in (3, 4)}
    assert all(abs(count - 500) < 5 * 500**0.5 for count in places.values())


def test_a_window_is_the_rectangle_at_its_place():
    image = np.arange(5 * 7 * 3).reshape(5, 7, 3)
    cut = CropWindow(top=1, left=2, height=3, width=4).of(image)
    np.testing.assert_array_equal(cut, image[1:4, 2:6])


def test_a_margin_reaches_to_the_edges_of_the_image_only() -> None:
    window = CropWindow(5, 6, 10, 12)
    assert widened(window, 2, 100, 100) == CropWindow(3, 4, 14, 16)
    assert widened(window, 50, 40, 30) == CropWindow(0, 0, 40, 30)
    assert widened(window, 3, 16, 19) == CropWindow(2, 3, 14, 16)
    assert widened(window, 0, 15, 18) == window


@pytest.mark.parametrize("mode", range(8))
def test_a_window_is_found_again_in_a_larger_one_that_is_turned(mode: int) -> None:
    image = np.arange(20 * 30 * 3).reshape(20, 30, 3)
    window, outer = CropWindow(7, 9, 4, 5), CropWindow(5, 8, 11, 13)
    there = place_within(window, outer, mode)
    np.testing.assert_array_equal(there.of(orient(outer.of(image), mode)), orient(window.of(image), mode))
    assert place_within(outer, outer, mode)[:2] == (0, 0)
