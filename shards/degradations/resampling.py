"""Resize images by separable filters; the border pixel is repeated outwards."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from shards.degradations.operator import Image

Weights = tuple[NDArray[np.intp], NDArray[np.float32]]


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return (1 - np.abs(x)).clip(0)


def _cubic(a: float) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return Keys' cubic (1981) with slope `a` at distance 1."""

    def weight(x: NDArray[np.float64]) -> NDArray[np.float64]:
        x = np.abs(x)
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = a * (((x - 5) * x + 8) * x - 4)
        return np.where(x <= 1, near, np.where(x < 2, far, 0.0))

    return weight


def _lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


_KERNELS = {
    "bilinear": (_triangle, 1),
    "bicubic": (_cubic(-0.5), 2),
    "lanczos": (_lanczos, 3),
    "bilinear_aliased": (_triangle, 1),
    "bicubic_aliased": (_cubic(-0.75), 2),
}
"""Weight by distance, and reach. The aliased keep their reach when an image shrinks, as in PyTorch and OpenCV."""

FILTERS = ("area", "nearest", *_KERNELS)


def resampled(image: Image, height: int, width: int, filter_: str = "bicubic") -> Image:
    """Return an image in another size; its corners stay where they are (half-pixel centres)."""
    for size in (height, width):  # twice: resize the rows, then transpose
        if image.shape[0] != size:
            image = _along_rows(image, _weights(image.shape[0], size, filter_))
        image = image.swapaxes(0, 1)
    return image


def _along_rows(image: Image, weights: Weights) -> Image:
    """Return the weighted sums of rows; each sum has a fixed order, so the bits depend on no library of algebra."""
    places, shares = weights
    flat = image.reshape(image.shape[0], -1)
    total = flat[places[0]] * shares[0][:, None]
    for place, share in zip(places[1:], shares[1:], strict=True):
        total += flat[place] * share[:, None]
    resized: Image = total.reshape(-1, *image.shape[1:])
    return resized


@lru_cache(maxsize=1024)
def _weights(size: int, target: int, filter_: str) -> Weights:
    """Return which rows each new row takes, and their shares: two arrays (taps, target)."""
    ratio = size / target
    number = np.arange(target)
    if filter_ == "nearest":
        return ((number + 0.5) * ratio).astype(np.intp)[None], np.ones((1, target), np.float32)
    if filter_ == "area":
        start, end = number * ratio, (number + 1) * ratio
        rows = np.floor(start).astype(np.intp) + np.arange(int(np.ceil(ratio)) + 1)[:, None]
        shares = np.maximum(np.minimum(rows + 1, end) - np.maximum(rows, start), 0)
    else:
        kernel, reach = _KERNELS[filter_]
        stretch = 1.0 if filter_.endswith("aliased") else max(ratio, 1.0)
        centre = (number + 0.5) * ratio - 0.5
        taps = int(np.ceil(2 * reach * stretch))
        rows = np.floor(centre - reach * stretch).astype(np.intp) + 1 + np.arange(taps)[:, None]
        shares = kernel((rows - centre) / stretch)
    shares = (shares / shares.sum(0)).astype(np.float32)
    return rows.clip(0, size - 1), shares
