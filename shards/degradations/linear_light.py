"""Convert between the values of an sRGB file and linear light (IEC 61966-2-1).

Optics and sensors add light, so their operators work on linear light. Most published syntheses work on the values of
the file instead; the parameter `light` of an operator says which it is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shards.degradations.operator import Image, Parameter

LIGHT = Parameter(
    words=("linear", "coded"),
    default="linear",
    about="work in linear light, or on the values of the sRGB file",
)
CODED_LIGHT = Parameter(words=LIGHT.words, default="coded", about=LIGHT.about)


def power(image: Image, exponent: float) -> Image:
    """Return an image to a power: by float64, since NumPy's float32 powers differ from processor to processor."""
    raised: Image = (image.astype(np.float64) ** exponent).astype(np.float32)
    return raised


def to_linear(image: Image) -> Image:
    """Return sRGB values as linear light; 1 stays 1."""
    curve = power((np.maximum(image, 0) + np.float32(0.055)) / np.float32(1.055), 2.4)
    return np.where(image <= 0.04045, image / np.float32(12.92), curve)


def to_coded(light: Image) -> Image:
    """Return linear light as sRGB values; 1 stays 1."""
    curve = np.float32(1.055) * power(np.maximum(light, 0), 1 / 2.4) - np.float32(0.055)
    return np.where(light <= 0.0031308, light * np.float32(12.92), curve)


def in_light(light: str, image: Image, change: Callable[[Image], Image]) -> Image:
    """Return an image after a change in linear light or of the coded values."""
    return to_coded(change(to_linear(image))) if light == "linear" else change(image)


def value_in_light(light: str, value: float) -> Image:
    """Return a value of an sRGB file in the light in which `in_light` works."""
    coded = np.array([value], np.float32)
    return to_linear(coded) if light == "linear" else coded


def gains(red: float, blue: float) -> NDArray[np.float32]:
    """Return the factors of the three channels of linear light; green stays."""
    return np.array([red, 1, blue], np.float32)


def luma_of(image: Image) -> Image:
    """Return the luma of coded values by ITU-R BT.601, as JPEG has it, (h, w, 1)."""
    red, green, blue = image[..., :1], image[..., 1:2], image[..., 2:]
    luma: Image = red * np.float32(0.299) + green * np.float32(0.587) + blue * np.float32(0.114)
    return luma
