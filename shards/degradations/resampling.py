"""Resize images by separable filters; the border pixel is repeated outwards."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from shards.degradations import native
from shards.degradations.operator import Image


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
    image = np.ascontiguousarray(image, np.float32)
    if image.shape[0] != height:
        image = _rows(image, *_weights(image.shape[0], height, filter_))
    if image.shape[1] != width:
        image = _columns(image, *_weights(image.shape[1], width, filter_))
    return image


def _rows(image: Image, places: NDArray[np.intp], shares: NDArray[np.float32]) -> Image:
    taps, target = places.shape
    result = np.empty((target, *image.shape[1:]), np.float32)
    if native.call("resize_rows", image, places, shares, result, target, taps, image[0].size):
        return result
    return _summed(image, places, shares)


def _columns(image: Image, places: NDArray[np.intp], shares: NDArray[np.float32]) -> Image:
    taps, target = places.shape
    result = np.empty((image.shape[0], target, 3), np.float32)
    if native.call("resize_columns", image, places, shares, result, target, taps, *image.shape[:2]):
        return result
    return np.ascontiguousarray(_summed(image.swapaxes(0, 1), places, shares).swapaxes(0, 1))


def _summed(image: Image, places: NDArray[np.intp], shares: NDArray[np.float32]) -> Image:
    """Return the weighted sums of rows, the taps in order: what the C code does, to the bit."""
    flat = image.reshape(image.shape[0], -1)
    total = np.zeros((places.shape[1], flat.shape[1]), np.float32)
    for place, share in zip(places, shares, strict=True):
        total += flat[place] * share[:, None]
    resized: Image = total.reshape(-1, *image.shape[1:])
    return resized


@lru_cache(maxsize=1024)
def _weights(size: int, target: int, filter_: str) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return which rows each new row takes, and their shares: two arrays (taps, target), contiguous."""
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
