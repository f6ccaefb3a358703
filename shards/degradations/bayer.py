"""The colour filters of a sensor: each pixel sees one colour, the others are interpolated."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shards.degradations.operator import Image

PATTERNS = ("rggb", "bggr", "grbg", "gbrg")
"""Colours of the first two pixels of the first row, then of the second row."""


def sites(height: int, width: int, pattern: str = "rggb") -> NDArray[np.bool_]:
    """Return which colour each pixel sees, (h, w, 3)."""
    tile = np.array([["rgb".index(letter) for letter in pattern[row : row + 2]] for row in (0, 2)])
    colours = tile[np.arange(height)[:, None] % 2, np.arange(width) % 2]
    seen: NDArray[np.bool_] = colours[..., None] == np.arange(3)
    return seen


def demosaiced(image: Image, pattern: str = "rggb") -> Image:
    """Return an image of which a sensor saw one colour per pixel, the others from the means of its neighbours.

    Bilinear interpolation; at the border, the mean of the neighbours that exist. A colour that no neighbour sees, in
    an image of one row or column, keeps its own value.
    """
    seen = sites(image.shape[0], image.shape[1], pattern)
    kept, known = np.where(seen, image, 0), seen.astype(np.float32)
    result = np.empty_like(image)
    result[..., ::2] = _mean(kept[..., ::2], known[..., ::2], _eight, image[..., ::2])
    result[..., 1] = _mean(kept[..., 1], known[..., 1], _four, image[..., 1])
    return np.where(seen, image, result)


def _mean(kept: Image, known: Image, around: Callable[[Image], Image], image: Image) -> Image:
    weight = around(known)
    return np.where(weight > 0, around(kept) / np.maximum(weight, 1), image)


def _eight(plane: Image) -> Image:
    """Return each pixel and its eight neighbours, weights 1 2 1 in both directions."""
    padded = np.pad(plane, ((1, 1), (1, 1), (0, 0)))
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    total: Image = rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]
    return total


def _four(plane: Image) -> Image:
    """Return the sum of each pixel's four neighbours."""
    padded = np.pad(plane, 1)
    total: Image = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return total
