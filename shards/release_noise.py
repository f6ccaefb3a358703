"""Noise for BSD68 as the authors' test script draws it: one sequence of numpy's global generator over all images.

The script seeds once with 0 and then goes through sigma 15, 25 and 50, each over all images; every image takes
height x width x 3 normal values from where the one before stopped. The script takes images as the file system lists
them, which differs between machines; here they are sorted by id. Values are clipped and truncated to 8 bits.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIGMAS = (15, 25, 50)
"""In the order in which the script goes through them."""

_SEED = 0
_MARK = 2**21
"""Values between two remembered states: what is drawn at most to reach any image."""


class ReleaseNoise:
    """The sequence over images `(id, (height, width))`, which are sorted by id.

    Normal values cannot be skipped, only drawn; states are remembered on the way, so that one image costs little
    whichever worker asks for it.
    """

    def __init__(self, images: Sequence[tuple[str, tuple[int, int]]]) -> None:
        self._starts: dict[tuple[str, int], int] = {}
        position = 0
        for sigma in SIGMAS:
            for id_, (height, width) in images:
                self._starts[id_, sigma] = position
                position += height * width * 3
        self._marks: list[tuple[int, Any]] = [(0, np.random.RandomState(_SEED).get_state())]

    def add(self, clean: NDArray[np.uint8], id_: str, sigma: int) -> NDArray[np.uint8]:
        """The clean image (h, w, 3) with its noise of standard deviation `sigma`, in grey levels."""
        random = self._at(self._starts[id_, sigma])
        noisy = clean + random.randn(*clean.shape) * sigma
        return np.clip(noisy, 0, 255).astype(np.uint8)

    def _at(self, position: int) -> np.random.RandomState:
        """The generator after `position` values."""
        random = np.random.RandomState()
        start, state = self._marks[bisect.bisect_right(self._marks, position, key=lambda mark: mark[0]) - 1]
        random.set_state(state)
        while start < position:
            step = min(_MARK, position - start)
            random.randn(step)
            start += step
            if step == _MARK and start > self._marks[-1][0]:
                self._marks.append((start, random.get_state()))
        return random
