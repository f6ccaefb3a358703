"""Faults of a sensor: dead pixels, and the beat of its grid with that of a screen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shards.degradations.bayer import demosaiced
from shards.degradations.linear_light import to_coded, to_linear
from shards.degradations.operator import Image, Parameter, operator


@operator(
    share=Parameter(0.0, 0.2, about="share of the pixels that are defective"),
    hot=Parameter(
        0.0, 1.0, about="share of those that are always white; the others are always black", default=0.5
    ),
)
def dead_pixels(image: Image, rng: np.random.Generator, *, share: float, hot: float) -> Image:
    """Let pixels of the sensor be always white or black; demosaicing spreads each to its neighbours.

    Only the error is interpolated (Bayer's filters, bilinear), not the image. `share` 0 changes nothing.
    """
    chance = rng.random((*image.shape[:2], 1), dtype=np.float32)
    if not share:
        return image
    light = to_linear(image)
    stuck = (chance < share * hot).astype(np.float32)
    return to_coded(light + demosaiced(np.where(chance < share, stuck - light, np.float32(0))))


@operator(
    pitch=Parameter(1.0, 8.0, unit="pixels", about="distance of the screen's pixels on the sensor"),
    angle=Parameter(-45.0, 45.0, unit="degrees", about="turn of the screen against the sensor", default=2.0),
    strength=Parameter(
        0.0, 1.0, about="contrast of the screen's stripes; less when the focus is soft", default=0.5
    ),
)
def moire(image: Image, rng: np.random.Generator, *, pitch: float, angle: float, strength: float) -> Image:
    """Photograph the image from a screen: its stripes beat with the sensor's pixels and colour filters.

    Each pixel of the screen has a red, a green and a blue stripe side by side; a pixel of the sensor sees the mean over
    its width, through Bayer's filters, bilinearly interpolated. The mean brightness stays. As in the simulation of the
    AIM 2019 challenge (Yuan et al.), without its warp: the image stays in place. Any `strength` demosaics.
    """
    rows, columns = np.arange(image.shape[0])[:, None], np.arange(image.shape[1])
    along = (columns * np.cos(np.radians(angle)) + rows * np.sin(np.radians(angle))) / pitch + rng.random()
    stripes = np.stack([_stripe(along - colour / 3, 1 / pitch) for colour in range(3)], 2)
    seen = to_linear(image) * (1 + np.float32(strength) * (3 * stripes - 1).astype(np.float32))
    return to_coded(demosaiced(seen))


def _stripe(place: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """Return the mean of a stripe, 1 on [0, 1/3) of each period and 0 elsewhere, over a width about each place."""

    def area(end: NDArray[np.float64]) -> NDArray[np.float64]:
        whole = np.floor(end)
        covered: NDArray[np.float64] = whole / 3 + np.minimum(end - whole, 1 / 3)
        return covered

    return (area(place + width / 2) - area(place - width / 2)) / width
