"""Resize: fewer or more pixels. A pipeline returns to the first size at its end, so detail is lost."""

from __future__ import annotations

import numpy as np

from shards.degradations.linear_light import CODED_LIGHT, in_light
from shards.degradations.operator import Image, Parameter, operator
from shards.degradations.resampling import FILTERS, resampled

_FILTER = Parameter(
    words=FILTERS,
    default="bicubic",
    about="weights of pixels; those called aliased are not widened when an image shrinks, as in PyTorch and OpenCV",
)


@operator(
    scale=Parameter(0.05, 4.0, about="new side as a share of the present one"),
    filter=_FILTER,
    light=CODED_LIGHT,
)
def resize(image: Image, rng: np.random.Generator, *, scale: float, filter: str, light: str) -> Image:
    """Resize to a share of the present size.

    Area means over the pixels that a new one covers; triangles (bilinear), Keys' cubic (1981) and Lanczos's windowed
    sinc, each widened when the image shrinks or not; the nearest pixel. `scale` 1 changes nothing.
    """
    return _scaled(image, image.shape[0] * scale, image.shape[1] * scale, filter, light)


@operator(
    scale=Parameter(0.05, 4.0, about="new side as a share of the first one", default=1.0),
    filter=_FILTER,
    light=CODED_LIGHT,
)
def resize_back(
    image: Image,
    rng: np.random.Generator,
    *,
    scale: float,
    filter: str,
    light: str,
    original: tuple[int, int],
) -> Image:
    """Resize to a share of the size that the image had before the pipeline, whatever it has now.

    Real-ESRGAN's second resize, and its return to the size of the result. The filters are those of `resize`.
    """
    return _scaled(image, original[0] * scale, original[1] * scale, filter, light)


def _scaled(image: Image, height: float, width: float, filter_: str, light: str) -> Image:
    size = max(round(height), 1), max(round(width), 1)
    if size == image.shape[:2]:
        return image
    return in_light(light, image, lambda each: resampled(each, *size, filter_))
