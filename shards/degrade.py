"""Synthetic degradations by published physical models: rain, haze, motion blur, low light, snow, and combinations.

They allow a demonstration on any clean photographs. They are not the benchmarks' own data, so no number measured on
them is comparable with a published one. A new degradation also needs its name in `shards/sample.py`. Every function
takes an RGB image, (h, w, 3) uint8, and a generator, and is deterministic in both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shards.errors import PackError
from shards.sample import CDD11

Image = NDArray[np.uint8]
Map = NDArray[np.float32]


def degrade(clean: Image, degradation: str, seed: int, name: str) -> Image:
    """Return `clean` after one degradation, drawn from the seed and the name of this draw. Raises PackError."""
    if degradation not in SYNTHETIC:
        raise PackError(
            f"degradation {degradation!r} cannot be synthesised; there are {', '.join(SYNTHETIC)}."
        )
    digest = hashlib.blake2b(f"{seed}/{degradation}/{name}".encode(), digest_size=16).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    image = clean
    for step in _COMPOSED.get(degradation) or (_PHYSICS[degradation],):
        image = step(image, rng)
    return image


def rain(clean: Image, rng: np.random.Generator) -> Image:
    """Add rain streaks of one direction: I + R."""
    height, width, _ = clean.shape
    angle = np.deg2rad(rng.uniform(60, 120))
    streaks = np.zeros((height, width), np.float32)
    for length, density, strength in ((9, 0.012, 1.2), (17, 0.008, 2.2), (27, 0.004, 3.6)):  # far to near
        drops = (rng.random((height, width)) < density * rng.uniform(0.7, 1.3)).astype(np.float32)
        streaks += strength * _filter(drops, _line(length, angle))
    return _quantise(clean / 255 + np.minimum(streaks, 0.8)[..., None] * rng.uniform(0.75, 0.95))


def haze(clean: Image, rng: np.random.Generator) -> Image:
    """Apply Koschmieder's law I t + A (1 - t), t = exp(-beta d), over a smooth synthetic depth d in [0, 1]."""
    distance = depth(clean.shape[0], clean.shape[1], rng)
    beta, airlight = rng.uniform(0.7, 2.0), rng.uniform(0.7, 0.98)
    transmission = np.exp(-beta * (0.1 + 0.9 * distance))[..., None]
    return _quantise(clean / 255 * transmission + airlight * (1 - transmission))


def haze_cdd11(clean: Image, rng: np.random.Generator) -> Image:
    """Apply CDD-11's haze: the same law with depth up to 0.7 and its ranges of density and airlight."""
    distance = np.minimum(depth(clean.shape[0], clean.shape[1], rng), 0.7)
    transmission = np.exp(-rng.uniform(1, 2) * distance)[..., None]
    return _quantise(clean / 255 * transmission + rng.uniform(0.6, 0.9) * (1 - transmission))


def blur(clean: Image, rng: np.random.Generator) -> Image:
    """Blur by motion along a straight line during the exposure."""
    kernel = _line(int(rng.integers(8, 18)), rng.uniform(0, np.pi))
    channels = [_filter(clean[..., channel].astype(np.float32), kernel) for channel in range(3)]
    return _quantise(np.stack(channels, axis=2) / 255)


def lowlight(clean: Image, rng: np.random.Generator) -> Image:
    """Simulate a short exposure: gamma and gain, then photon (shot) noise and read noise."""
    exposed = np.exp(rng.uniform(np.log(0.06), np.log(0.25))) * (clean / 255) ** rng.uniform(1.0, 1.4)
    photons = rng.uniform(500, 2000)  # at full scale
    shot = rng.standard_normal(clean.shape) * np.sqrt(exposed / photons)
    return _quantise(exposed + shot + rng.standard_normal(clean.shape) * rng.uniform(0.002, 0.006))


def lowlight_cdd11(clean: Image, rng: np.random.Generator) -> Image:
    """Apply CDD-11's low light: I = R L, with L the smoothed brightest channel, becomes R L^gamma plus noise.

    Lamps and skies stay bright, unlike in a short exposure (`lowlight`).
    """
    light = np.maximum(smooth(clean.max(axis=2) / 255, reach=12), 1e-3)[..., None]
    gamma, noise = rng.uniform(2, 3), rng.uniform(0.03, 0.08)
    return _quantise(clean / 255 * light ** (gamma - 1) + rng.standard_normal(clean.shape) * noise)


def snow(clean: Image, rng: np.random.Generator) -> Image:
    """Draw bright flakes of several sizes in front of the scene: I (1 - m) + m."""
    height, width, _ = clean.shape
    angle = rng.uniform(0, np.pi)
    flakes = np.zeros((height, width), np.float32)
    for radius, density in ((1.2, 0.012), (2.2, 0.004), (3.6, 0.0012)):
        seeds = (rng.random((height, width)) < density).astype(np.float32)
        flakes = np.maximum(flakes, _filter(_filter(seeds, disc(radius)), _line(5, angle)) * 4)
    mask = np.clip(flakes, 0, 1)[..., None] * rng.uniform(0.7, 0.9)
    return _quantise(clean / 255 * (1 - mask) + mask)


_PHYSICS: dict[str, Callable[[Image, np.random.Generator], Image]] = {
    "rain": rain,
    "haze": haze,
    "blur": blur,
    "lowlight": lowlight,
    "snow": snow,
}

_ORDER = {"low": lowlight_cdd11, "rain": rain, "snow": snow, "haze": haze_cdd11}
"""Degradations in CDD-11's order of composition: first low light, then rain or snow, then haze."""

_COMPOSED = {
    name: tuple(_ORDER[part] for part in _ORDER if part in folder.split("_"))
    for folder, name in CDD11.items()
    if "_" in folder
}

SYNTHETIC = (*_PHYSICS, *_COMPOSED)
"""Degradations that `degrade` supports. Noise is not one of them: it is added when a sample is read."""


def _quantise(image: NDArray[np.floating]) -> Image:
    grey: Image = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return grey


def depth(height: int, width: int, rng: np.random.Generator) -> Map:
    """Return a synthetic depth map in [0, 1]: far at the top, near at the bottom, with smooth hills."""
    coarse = rng.random((5, 6)).astype(np.float32)
    hills = _upsample(coarse, height, width)
    slope = np.linspace(1, 0, height, dtype=np.float32)[:, None]
    distance: Map = 0.65 * slope + 0.35 * hills
    distance -= distance.min()
    distance /= max(distance.max(), 1e-6)  # a single pixel has no slope
    return distance


def smooth(image: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """Return the mean over a square of 2 `reach` + 1 pixels; the border is repeated outwards."""
    side = 2 * reach + 1
    for axis in (0, 1):
        widths = [(reach + 1, reach) if a == axis else (0, 0) for a in (0, 1)]
        sums = np.cumsum(np.pad(image, widths, mode="edge"), axis=axis)
        image = (
            np.take(sums, range(side, sums.shape[axis]), axis)
            - np.take(sums, range(sums.shape[axis] - side), axis)
        ) / side
    return image


def _upsample(coarse: Map, height: int, width: int) -> Map:
    """Interpolate by cosines in both directions, without creases at the grid lines."""
    rows, top, below = _between(height, coarse.shape[0])
    columns, left, right = _between(width, coarse.shape[1])
    upper = coarse[top][:, left] * (1 - columns) + coarse[top][:, right] * columns
    lower = coarse[below][:, left] * (1 - columns) + coarse[below][:, right] * columns
    return (upper * (1 - rows[:, None]) + lower * rows[:, None]).astype(np.float32)


def _between(size: int, grid: int) -> tuple[Map, NDArray[np.intp], NDArray[np.intp]]:
    place = np.linspace(0, grid - 1, size)
    first = np.minimum(place.astype(np.intp), grid - 2)
    return ((1 - np.cos(np.pi * (place - first))) / 2).astype(np.float32), first, first + 1


def _line(length: int, angle: float) -> Map:
    """Return an antialiased kernel of a straight line of `length` pixels through the centre, with sum 1."""
    radius = length // 2 + 1
    kernel: Map = np.zeros((2 * radius + 1, 2 * radius + 1), np.float32)
    for distance in np.linspace(-(length - 1) / 2, (length - 1) / 2, 4 * length):
        y, x = radius + distance * np.sin(angle), radius + distance * np.cos(angle)
        top, left = int(np.floor(y)), int(np.floor(x))
        for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            kernel[row, column] += (1 - abs(y - row)) * (1 - abs(x - column))
    kernel /= kernel.sum()
    return kernel


def disc(radius: float) -> Map:
    """Return a kernel of a disc with a soft edge, with sum 1."""
    reach = int(np.ceil(radius)) + 1
    grid = np.arange(-reach, reach + 1)
    distance = np.hypot(grid[:, None], grid[None, :])
    kernel: Map = np.clip(radius + 0.5 - distance, 0, 1).astype(np.float32)
    kernel /= kernel.sum()
    return kernel


def _filter(image: Map, kernel: Map) -> Map:
    """Correlate with a small sparse kernel, borders reflected; the fixed order of the sum makes it bit-exact."""
    reach = kernel.shape[0] // 2
    padded = np.pad(image, reach, mode="reflect")
    out = np.zeros_like(image)
    height, width = image.shape
    for row, column in zip(*np.nonzero(kernel), strict=True):
        out += kernel[row, column] * padded[row : row + height, column : column + width]
    return out
