"""Convolve images with kernels of any size; beyond its border an image is mirrored, as often as needed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shards.degradations import native

Plane = NDArray[np.float32]


def mirrored(place: NDArray[np.intp], size: int) -> NDArray[np.intp]:
    """Return the pixel that stands at each place of an image that is mirrored without end: c b a a b c c b."""
    place = place % (2 * size)
    pixels: NDArray[np.intp] = np.minimum(place, 2 * size - 1 - place)
    return pixels


_MOST_TAPS = 700
"""Most weights other than 0 of a kernel that is applied by sums; with more, Fourier transforms are faster."""


def convolved(image: Plane, kernel: Plane) -> Plane:
    """Return an image, (h, w) or (h, w, channels), convolved with a kernel of odd sides.

    A kernel of few weights by sums in a fixed order, in C where there is a compiler; others by Fourier transforms.
    Which way it goes depends on the kernel alone, so the bits do not depend on the machine.
    """
    if np.count_nonzero(kernel) > _MOST_TAPS:
        return _by_transforms(image, kernel)
    image, kernel = np.ascontiguousarray(image, np.float32), np.ascontiguousarray(kernel, np.float32)
    result = np.empty_like(image)
    height, width, channels = image.shape if image.ndim == 3 else (*image.shape, 1)
    if native.call("convolve", image, kernel, result, height, width, channels, *kernel.shape):
        return result
    return _by_sums(image, kernel)


def _by_sums(image: Plane, kernel: Plane) -> Plane:
    """Return a convolution, the weights from the last to the first: what the C code does, to the bit."""
    height, width = image.shape[:2]
    down, right = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = image[mirrored(np.arange(-down, height + down), height)]
    padded = padded[:, mirrored(np.arange(-right, width + right), width)]
    channels = image[0, 0].size
    lines, turned = padded.reshape(len(padded), -1), kernel[::-1, ::-1]
    result = np.zeros((height, width * channels), np.float32)
    product = np.empty_like(result)
    for row, column in np.argwhere(turned):
        left = column * channels
        shifted = lines[row : row + height, left : left + width * channels]
        result += np.multiply(shifted, turned[row, column], out=product)
    return result.reshape(image.shape)


def _by_transforms(image: Plane, kernel: Plane) -> Plane:
    from scipy import fft  # slow to import, and `mirage schema` needs the names of operators only

    height, width = image.shape[:2]
    down, right = kernel.shape[0] // 2, kernel.shape[1] // 2
    planes = image[:, :, None] if image.ndim == 2 else image
    planes = np.moveaxis(planes, 2, 0)  # the transforms are fastest along contiguous axes
    # One border serves both sides: the transform repeats, so what comes before the first row stands at the end.
    rows = fft.next_fast_len(height + 2 * down, real=True)
    columns = fft.next_fast_len(width + 2 * right, real=True)
    planes = planes[:, mirrored(np.arange(-down, rows - down), height)]
    planes = np.ascontiguousarray(planes[:, :, mirrored(np.arange(-right, columns - right), width)])
    a, b = fft.rfft2(planes), fft.rfft2(kernel, (rows, columns))
    # NumPy's product of complex numbers rounds differently from processor to processor; real ones do not.
    spectrum = np.empty_like(a)
    spectrum.real = a.real * b.real - a.imag * b.imag
    spectrum.imag = a.real * b.imag + a.imag * b.real
    result = fft.irfft2(spectrum, (rows, columns), overwrite_x=True)
    result = result[:, 2 * down : 2 * down + height, 2 * right : 2 * right + width]
    return result[0] if image.ndim == 2 else np.moveaxis(result, 0, 2)


def path(x: NDArray[np.floating], y: NDArray[np.floating]) -> Plane:
    """Return a kernel that shares its sum, 1, equally among points; x points right, y down, from the centre."""
    reach = int(np.ceil(max(np.abs(x).max(), np.abs(y).max()) + 1e-3))
    side = 2 * reach + 1
    kernel = np.zeros(side * side)
    left, top = np.floor(x), np.floor(y)
    for row in (top, top + 1):
        for column in (left, left + 1):
            weight = (1 - np.abs(y - row)) * (1 - np.abs(x - column))
            place = (row + reach) * side + column + reach
            inside = weight > 0
            kernel += np.bincount(place[inside].astype(np.intp), weight[inside], side * side)
    shared: Plane = (kernel / kernel.sum()).reshape(side, side).astype(np.float32)
    return shared


def line(length: float, angle: float) -> Plane:
    """Return a kernel of a straight line through the centre; its sum is 1. Degrees, clockwise from the right."""
    along = np.linspace(-length / 2, length / 2, 4 * int(np.ceil(length)) + 1)
    return path(along * np.cos(np.radians(angle)), along * np.sin(np.radians(angle)))
