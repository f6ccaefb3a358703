"""Noise of sensors and of transmission.

`light` has a default in functions that had none at first: values recorded before give the same pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shards.degradations.bayer import demosaiced
from shards.degradations.linear_light import CODED_LIGHT, gains, in_light, luma_of, to_coded, to_linear
from shards.degradations.normal import standard_normal
from shards.degradations.operator import Image, Parameter, operator

_CHANNELS = Parameter(
    words=("colour", "grey"), default="colour", about="noise of each channel, or the same for all three"
)
_PHOTONS = Parameter(16.0, 1e6, unit="photons", about="photons that give white")


@operator(
    2,
    sigma=Parameter(0.0, 255.0, unit="grey levels of 255", about="standard deviation"),
    channels=_CHANNELS,
    light=CODED_LIGHT,
)
def gaussian_noise(
    image: Image, rng: np.random.Generator, *, sigma: float, channels: str, light: str = "coded"
) -> Image:
    """Add white Gaussian noise. `sigma` 0 changes nothing."""
    noise = _normal(image, rng, channels) * np.float32(sigma / 255)
    return in_light(light, image, lambda each: each + noise)


@operator(
    2,
    photons=_PHOTONS,
    strength=Parameter(0.0, 5.0, about="factor of the noise", default=1.0),
    channels=_CHANNELS,
)
def poisson_noise(
    image: Image, rng: np.random.Generator, *, photons: float, strength: float, channels: str
) -> Image:
    """Add shot noise to the coded values, as BSRGAN and Real-ESRGAN do: image x photons is a mean count.

    Grey noise is that of the luma (BT.601), added to all channels. `strength` 0 changes nothing.
    """
    mean = image if channels == "colour" else luma_of(image)
    mean = mean * np.float32(photons)
    return image + np.float32(strength / photons) * (counted(mean, rng) - mean)


@operator(
    2,
    photons=_PHOTONS,
    read=Parameter(0.0, 100.0, unit="electrons", about="standard deviation of the read noise", default=2.0),
    red=Parameter(0.25, 4.0, about="gain of red in the camera's white balance", default=2.0),
    blue=Parameter(0.25, 4.0, about="gain of blue in the camera's white balance", default=1.6),
    mosaic=Parameter(
        words=("bayer", "none"), default="bayer", about="filters before the pixels of the sensor"
    ),
)
def sensor_noise(
    image: Image,
    rng: np.random.Generator,
    *,
    photons: float,
    read: float,
    red: float,
    blue: float,
    mosaic: str,
) -> Image:
    """Add a sensor's noise, shot and read, where it arises: on linear light, before white balance and demosaicing.

    Poisson-Gaussian model (Foi et al. 2008) in a raw-like space (Brooks et al. 2019): the gains of white balance are
    taken off, each pixel keeps one colour (`mosaic`), noise is added to it alone and spread by bilinear
    interpolation. The image itself is not interpolated.
    """
    factors = gains(red, blue)
    raw = to_linear(image) / factors * np.float32(photons)
    noise = counted(raw, rng) - raw + _normal(raw, rng) * np.float32(read)
    if mosaic == "bayer":
        noise = demosaiced(noise)
    return to_coded((raw + noise) / np.float32(photons) * factors)


@operator(
    2,
    sigma=Parameter(0.0, 255.0, unit="grey levels of 255 at white", about="standard deviation"),
    channels=_CHANNELS,
    light=CODED_LIGHT,
)
def speckle_noise(
    image: Image, rng: np.random.Generator, *, sigma: float, channels: str, light: str = "coded"
) -> Image:
    """Multiply by 1 + Gaussian noise, as coherent light does. `sigma` 0 changes nothing."""
    factor = 1 + _normal(image, rng, channels) * np.float32(sigma / 255)
    return in_light(light, image, lambda each: each * factor)


@operator(
    amount=Parameter(0.0, 1.0, about="share of the values that are replaced"),
    salt=Parameter(0.0, 1.0, about="share of white among them; the others are black", default=0.5),
    channels=_CHANNELS,
)
def salt_and_pepper(
    image: Image, rng: np.random.Generator, *, amount: float, salt: float, channels: str
) -> Image:
    """Replace values by white or black, as errors of bits or of transmission do. `amount` 0 changes nothing."""
    chance = rng.random(_shape(image, channels), dtype=np.float32)
    return np.where(chance < amount * salt, np.float32(1), np.where(chance < amount, np.float32(0), image))


@operator(
    2,
    sigma=Parameter(0.0, 100.0, unit="grey levels of 255", about="standard deviation from row to row"),
    direction=Parameter(words=("rows", "columns"), default="rows", about="lines that share an error"),
    channels=_CHANNELS,
)
def banding_noise(
    image: Image, rng: np.random.Generator, *, sigma: float, direction: str, channels: str
) -> Image:
    """Add one error to each row or column, as the electronics of a sensor's lines do (Wei et al. 2020).

    `sigma` 0 changes nothing.
    """
    lines = image[:, :1] if direction == "rows" else image[:1]
    return image + _normal(lines, rng, channels) * np.float32(sigma / 255)


def counted(mean: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return Poisson counts of given means.

    From 16 on they are Gaussian with the skewness of the Poisson distribution (Cornish and Fisher 1938), rounded:
    mean and variance are right to 1%, at a quarter of the time.
    """
    normal = standard_normal(rng, mean.shape)
    counts = np.maximum(mean, 0)
    np.sqrt(counts, out=counts)
    counts *= normal
    counts += mean
    normal *= normal
    normal -= 1
    normal /= np.float32(6)
    counts += normal
    np.rint(counts, out=counts)
    few = np.flatnonzero(mean < 16)
    if len(few):
        np.put(counts, few, rng.poisson(np.maximum(np.take(mean, few), 0)))
    return counts


def _shape(image: Image, channels: str) -> tuple[int, int, int]:
    return (*image.shape[:2], 3 if channels == "colour" else 1)


def _normal(image: Image, rng: np.random.Generator, channels: str = "colour") -> NDArray[np.float32]:
    return standard_normal(rng, _shape(image, channels))
