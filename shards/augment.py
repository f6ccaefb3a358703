"""Crop windows and orientations, keyed by the position in the stream alone.

The worker, the reader and the batch that a sample happens to be in have no say, so a run that is resumed
with another number of workers sees the same pixels.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Augmentation = Literal["release", "paper", "none"]

_MODES: dict[Augmentation, tuple[int, ...]] = {
    "release": (1, 2, 3, 4, 5, 6, 7),
    "paper": (0, 1, 4, 5),
    "none": (0,),
}
"""Orientations that each recipe draws from: see `orient`."""


class CropWindow(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: Image) -> Image:
        """The pixels inside."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


def keyed_rng(seed: int, position: int) -> np.random.Generator:
    """Generator that is a function of the seed and the position alone (Philox, counter-based)."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, position], np.uint64)))


def centre_window(height: int, width: int, multiple: int = 16) -> CropWindow:
    """Centred window with sides that are multiples of 16, as the all-in-one benchmarks cut every image."""
    return CropWindow(
        height % multiple // 2, width % multiple // 2, height - height % multiple, width - width % multiple
    )


def draw_crop(rng: np.random.Generator, within: CropWindow, size: int) -> CropWindow:
    """Square window of `size` pixels, uniform over all its places in `within`."""
    top = within.top + int(rng.integers(within.height - size + 1))
    left = within.left + int(rng.integers(within.width - size + 1))
    return CropWindow(top, left, size, size)


def draw_orientation(rng: np.random.Generator, augmentation: Augmentation) -> int:
    """One orientation of a recipe.

    The release never draws the identity; the paper flips each axis with a chance of one half.
    """
    modes = _MODES[augmentation]
    return modes[int(rng.integers(len(modes)))]


def orient(image: Image, mode: int) -> Image:
    """One of the eight symmetries of the square: `mode // 2` quarter turns, then an up-down flip if `mode`
    is odd.

    Mode 0 is the identity, 1 flips up-down, 4 turns by half, 5 flips left-right.
    """
    turned = np.rot90(image, mode // 2)
    return np.flipud(turned) if mode % 2 else turned
