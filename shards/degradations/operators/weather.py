"""Weather: haze, rain, drops on the lens, snow.

Depth, drops and flakes are drawn, since a photograph gives none. They fill the image that is given: while training,
a crop has its own sky and ground.
"""

from __future__ import annotations

import numpy as np

from shards.degradations.convolution import Plane, convolved, line, mirrored
from shards.degradations.linear_light import LIGHT, in_light, value_in_light
from shards.degradations.operator import Image, Parameter, operator
from shards.degrade import depth, disc

_ANGLE = Parameter(-80.0, 80.0, unit="degrees", about="slope of the fall from the vertical", default=0.0)


@operator(
    beta=Parameter(0.0, 5.0, unit="per depth of 1", about="extinction of the air"),
    airlight=Parameter(0.0, 1.0, about="value of haze without end", default=0.85),
    limit=Parameter(0.0, 1.0, about="largest depth", default=1.0),
    light=LIGHT,
)
def haze(
    image: Image, rng: np.random.Generator, *, beta: float, airlight: float, limit: float, light: str
) -> Image:
    """Add haze by Koschmieder's law: I t + A (1 - t), t = exp(-beta d).

    The depth d, from 0 to 1, is far at the top, near at the bottom, with smooth hills. `beta` 0 changes nothing.
    """
    if not beta:
        return image
    distance = np.minimum(depth(image.shape[0], image.shape[1], rng), np.float32(limit))
    # In float64, since NumPy's float32 exponentials differ from processor to processor.
    through = np.exp(-beta * distance.astype(np.float64)).astype(np.float32)[..., None]
    air = value_in_light(light, airlight) * (1 - through)
    return in_light(light, image, lambda each: each * through + air)


@operator(
    2,
    drops=Parameter(0.0, 100.0, unit="per 1,000 pixels", about="streaks"),
    length=Parameter(1.0, 100.0, unit="pixels", about="length of the nearest streaks", default=27.0),
    angle=_ANGLE,
    brightness=Parameter(0.0, 1.0, about="value that one streak adds", default=0.4),
    light=LIGHT,
)
def rain(
    image: Image,
    rng: np.random.Generator,
    *,
    drops: float,
    length: float,
    angle: float,
    brightness: float,
    light: str,
) -> Image:
    """Add rain streaks of three distances, I + R (Yang et al. 2017; brightness adds up as in Garg and Nayar 2007).

    Half of the streaks are far, with a third of the length; a third have two thirds of it; a sixth are near.
    `drops` 0 changes nothing.
    """
    if not drops:
        return image
    streaks = np.zeros(image.shape[:2], np.float32)
    for share, size in ((1 / 2, 1 / 3), (1 / 3, 2 / 3), (1 / 6, 1)):
        kernel = line(length * size, 90 + angle)
        streaks += convolved(_scattered(image, rng, drops * share / 1000), kernel / kernel.max())
    added = np.clip(streaks, 0, 2)[..., None] * value_in_light(light, brightness)
    return in_light(light, image, lambda each: each + added)


@operator(
    2,
    drops=Parameter(0.0, 50.0, unit="per 10,000 pixels", about="drops on the lens"),
    radius=Parameter(1.0, 60.0, unit="pixels", about="radius of the largest drops", default=12.0),
)
def raindrops(image: Image, rng: np.random.Generator, *, drops: float, radius: float) -> Image:
    """Put drops on the lens: each shows the scene upside down and small, out of focus.

    I (1 - m) + m D, as in Qian et al. (2018), with D from the refraction by a small sphere. Radii are between half of
    `radius` and all of it. `drops` 0 changes nothing.
    """
    height, width = image.shape[:2]
    number = int(rng.poisson(drops * height * width / 10_000))
    if not number:
        return image
    scene = convolved(image, disc(radius / 4))
    result = image.copy()
    for y, x, size, tall in rng.random((number, 4)) * (height, width, 0.5, 0.3) + (0, 0, 0.5, 1):
        size *= radius
        reach = int(np.ceil(tall * size)) + 1
        rows = np.arange(max(int(y) - reach, 0), min(int(y) + reach + 1, height))
        columns = np.arange(max(int(x) - reach, 0), min(int(x) + reach + 1, width))
        distance = np.hypot(((rows - y) / tall)[:, None], columns - x) / size
        mask = np.clip((1 - distance) * size / 2 + 0.5, 0, 1).astype(np.float32)[..., None]
        rim = (1 - 0.3 * np.minimum(distance, 1) ** 4).astype(np.float32)[..., None]
        from_rows = mirrored(np.rint(y - 4 * (rows - y)).astype(np.intp), height)
        from_columns = mirrored(np.rint(x - 4 * (columns - x)).astype(np.intp), width)
        window = np.ix_(rows, columns)
        result[window] += mask * (scene[np.ix_(from_rows, from_columns)] * rim - result[window])
    return result


@operator(
    2,
    flakes=Parameter(0.0, 100.0, unit="per 1,000 pixels", about="flakes"),
    radius=Parameter(0.5, 10.0, unit="pixels", about="radius of the nearest flakes", default=3.0),
    angle=_ANGLE,
    length=Parameter(0.0, 50.0, unit="pixels", about="path of a flake during the exposure", default=4.0),
    opacity=Parameter(0.0, 1.0, about="share of the scene that a flake hides", default=0.8),
    light=LIGHT,
)
def snow(
    image: Image,
    rng: np.random.Generator,
    *,
    flakes: float,
    radius: float,
    angle: float,
    length: float,
    opacity: float,
    light: str,
) -> Image:
    """Draw white flakes of three distances in front of the scene: I (1 - m) + m (Liu et al. 2018).

    Seven in ten flakes are far, with a third of the radius; two in ten have six tenths of it; one in ten is near.
    `flakes` 0 changes nothing.
    """
    if not flakes:
        return image
    mask = np.zeros(image.shape[:2], np.float32)
    for share, size in ((0.7, 1 / 3), (0.2, 0.6), (0.1, 1)):
        streak = line(length * size, 90 + angle)
        kernel = convolved(np.pad(disc(radius * size), streak.shape[0] // 2), streak)
        mask = np.maximum(
            mask, convolved(_scattered(image, rng, flakes * share / 1000), kernel / kernel.max())
        )
    hidden = np.clip(mask, 0, 1)[..., None] * np.float32(opacity)
    return in_light(light, image, lambda each: each + hidden * (1 - each))


def _scattered(image: Image, rng: np.random.Generator, share: float) -> Plane:
    """Return 1 at a share of the pixels, drawn, and 0 at the others."""
    return (rng.random(image.shape[:2], dtype=np.float32) < share).astype(np.float32)
