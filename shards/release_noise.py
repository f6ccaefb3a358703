"""Noise for BSD68 as in the authors' test script: one sequence of NumPy's global generator over all images.

The script seeds once with 0 and iterates over sigma 15, 25 and 50, each over all images; every image takes the next
height x width x 3 normal values. The script's order of images is that of the file system, which differs between
machines; here they are sorted by id. Values are clipped and truncated to 8 bits.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIGMAS = (15, 25, 50)
"""Noise levels in grey levels, in the script's order."""

_SEED = 0
_STATE_INTERVAL = 2**21
"""Number of values between two saved states of the generator, the most to draw to reach any image."""


class ReleaseNoise:
    """The sequence over images `(id, (height, width))`, which are sorted by id.

    Normal values can be drawn but not skipped; saved states make any single image cheap for any worker.
    """

    def __init__(self, images: Sequence[tuple[str, tuple[int, int]]]) -> None:
        self._starts: dict[tuple[str, int], int] = {}
        position = 0
        for sigma in SIGMAS:
            for id_, (height, width) in images:
                self._starts[id_, sigma] = position
                position += height * width * 3
        self._states: list[tuple[int, Any]] = [(0, np.random.RandomState(_SEED).get_state())]

    def add(self, clean: NDArray[np.uint8], id_: str, sigma: int) -> NDArray[np.uint8]:
        """Add the image's noise of standard deviation `sigma`, in grey levels; `clean` is (h, w, 3)."""
        random = self._at(self._starts[id_, sigma])
        noisy = clean + random.randn(*clean.shape) * sigma
        return np.clip(noisy, 0, 255).astype(np.uint8)

    def _at(self, position: int) -> np.random.RandomState:
        """Return the generator after `position` values."""
        random = np.random.RandomState()
        start, state = self._states[
            bisect.bisect_right(self._states, position, key=lambda saved: saved[0]) - 1
        ]
        random.set_state(state)
        while start < position:
            step = min(_STATE_INTERVAL, position - start)
            random.randn(step)
            start += step
            if step == _STATE_INTERVAL and start > self._states[-1][0]:
                self._states.append((start, random.get_state()))
        return random
