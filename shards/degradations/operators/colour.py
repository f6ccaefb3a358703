"""Colour: casts, saturation, colours beside their edges, demosaicing."""

from __future__ import annotations

import numpy as np

from shards.degradations.bayer import PATTERNS, demosaiced
from shards.degradations.linear_light import LIGHT, gains, in_light, luma_of, to_coded, to_linear
from shards.degradations.operator import Image, Parameter, operator


@operator(
    red=Parameter(0.2, 5.0, about="gain of red", default=1.0),
    blue=Parameter(0.2, 5.0, about="gain of blue", default=1.0),
)
def white_balance(image: Image, rng: np.random.Generator, *, red: float, blue: float) -> Image:
    """Balance white for another lamp: gains of red and blue in linear light (von Kries). 1 and 1 change nothing."""
    if red == blue == 1:
        return image
    return to_coded(to_linear(image) * gains(red, blue))


@operator(factor=Parameter(0.0, 4.0, about="factor of the distance from grey; 0 is grey"))
def saturation(image: Image, rng: np.random.Generator, *, factor: float) -> Image:
    """Multiply the distance of each colour from its luma, on coded values. `factor` 1 changes nothing."""
    if factor == 1:
        return image
    luma = luma_of(image)
    return luma + (image - luma) * np.float32(factor)


@operator(
    x=Parameter(-16.0, 16.0, unit="pixels", about="shift to the right", default=0.0),
    y=Parameter(-16.0, 16.0, unit="pixels", about="shift downwards", default=0.0),
)
def chroma_shift(image: Image, rng: np.random.Generator, *, x: float, y: float) -> Image:
    """Shift the colours against the luma, as analogue video and misread chroma positions do. 0 changes nothing."""
    if x == y == 0:
        return image
    from scipy.ndimage import shift  # slow to import, and `mirage schema` needs names only

    luma = luma_of(image)
    shifted: Image = shift(image - luma, (y, x, 0), order=1, mode="nearest")
    return luma + shifted


@operator(
    red=Parameter(-3.0, 3.0, unit="percent", about="how much larger the red image is", default=0.0),
    blue=Parameter(-3.0, 3.0, unit="percent", about="how much larger the blue image is", default=0.0),
    light=LIGHT,
)
def chromatic_aberration(
    image: Image, rng: np.random.Generator, *, red: float, blue: float, light: str
) -> Image:
    """Enlarge red and blue about the centre, as the lateral chromatic aberration of a lens does. 0 changes nothing."""
    if red == blue == 0:
        return image
    from scipy.ndimage import affine_transform

    def spread(each: Image) -> Image:
        result = each.copy()
        centre = (np.array(each.shape[:2]) - 1) / 2
        for channel, percent in ((0, red), (2, blue)):
            shrink = np.full(2, 1 / (1 + percent / 100))
            result[..., channel] = affine_transform(
                each[..., channel], shrink, centre * (1 - shrink), order=1, mode="nearest"
            )
        return result

    return in_light(light, image, spread)


@operator(
    pattern=Parameter(words=PATTERNS, default="rggb", about="colours of the first two pixels of two rows"),
    light=LIGHT,
)
def demosaicing(image: Image, rng: np.random.Generator, *, pattern: str, light: str) -> Image:
    """Keep one colour of each pixel (Bayer 1976) and interpolate the others bilinearly: zips and false colours."""
    return in_light(light, image, lambda each: demosaiced(each, pattern))
