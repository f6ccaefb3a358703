"""Encodings of which a window is decoded alone; an image of any other is a file of its own, decoded whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shards import jpeg_intervals, tiles


class WindowedImage(Protocol):
    """An encoded image."""

    shape: tuple[int, int]
    """Height and width in pixels."""

    def __init__(self, buffer: tiles.Buffer) -> None:
        """Read what is needed to find its parts. Raises CorruptObjectError."""

    def crop(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """Return the pixels of one window, (h, w, 3). Raises CorruptObjectError."""


WINDOWED: Mapping[str, type[WindowedImage]] = {
    **dict.fromkeys(tiles.CODECS.values(), tiles.TiledImage),
    jpeg_intervals.NAME: jpeg_intervals.IntervalJpeg,
}
"""By name of the encoding in a manifest."""
