"""Random crop windows and orientations, seeded by the position in the stream.

They do not depend on the worker, the reader or the batch, so a run that is resumed with another number of workers
sees the same pixels.
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
"""Orientations that each recipe draws from; see `orient`."""


class CropWindow(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: Image) -> Image:
        """Return the pixels inside the window."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


def widened(window: CropWindow, margin: int, height: int, width: int) -> CropWindow:
    """Return a window with a margin on each side, as far as the image reaches."""
    top, left = max(window.top - margin, 0), max(window.left - margin, 0)
    bottom = min(window.top + window.height + margin, height)
    right = min(window.left + window.width + margin, width)
    return CropWindow(top, left, bottom - top, right - left)


def place_within(window: CropWindow, outer: CropWindow, mode: int) -> CropWindow:
    """Return where a window is in a larger one after an orientation."""
    inside = np.zeros((outer.height, outer.width), np.uint8)
    CropWindow(window.top - outer.top, window.left - outer.left, window.height, window.width).of(inside)[
        :
    ] = 1
    turned = orient(inside, mode)
    rows, columns = np.flatnonzero(turned.any(1)), np.flatnonzero(turned.any(0))
    return CropWindow(int(rows[0]), int(columns[0]), len(rows), len(columns))


def keyed_rng(seed: int, position: int) -> np.random.Generator:
    """Return a generator that depends on the seed and the position only (Philox, counter-based)."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, position], np.uint64)))


def centre_window(height: int, width: int, multiple: int = 16) -> CropWindow:
    """Return the centred window with sides that are multiples of `multiple`; all-in-one benchmarks use 16."""
    return CropWindow(
        height % multiple // 2, width % multiple // 2, height - height % multiple, width - width % multiple
    )


def draw_crop(rng: np.random.Generator, within: CropWindow, size: int) -> CropWindow:
    """Draw a square window of `size` pixels, uniform over all its positions in `within`."""
    top = within.top + int(rng.integers(within.height - size + 1))
    left = within.left + int(rng.integers(within.width - size + 1))
    return CropWindow(top, left, size, size)


def draw_orientation(rng: np.random.Generator, augmentation: Augmentation) -> int:
    """Draw an orientation of a recipe.

    `release` never draws the identity; `paper` flips each axis with probability one half.
    """
    modes = _MODES[augmentation]
    return modes[int(rng.integers(len(modes)))]


def orient(image: Image, mode: int) -> Image:
    """Apply one of the eight symmetries of the square: `mode // 2` quarter turns, then an up-down flip if it is odd.

    Mode 0 is the identity, 1 flips up-down, 4 is a half turn, 5 flips left-right.
    """
    turned = np.rot90(image, mode // 2)
    return np.flipud(turned) if mode % 2 else turned
