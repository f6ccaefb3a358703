"""Resize: fewer or more pixels. A pipeline returns to the first size at its end, so detail is lost."""

from __future__ import annotations

import numpy as np

from shards.degradations.linear_light import CODED_LIGHT, in_light
from shards.degradations.operator import Image, Parameter, operator
from shards.degradations.operators.compression import LONGEST
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
def resize(
    image: Image,
    rng: np.random.Generator,
    *,
    scale: float,
    filter: str,
    light: str,
    original: tuple[int, int],
) -> Image:
    """Resize to a share of the present size.

    Area means over the pixels that a new one covers; triangles (bilinear), Keys' cubic (1981) and Lanczos's windowed
    sinc, each widened when the image shrinks or not; the nearest pixel. `scale` 1 changes nothing.
    No side becomes longer than 4 times what it was before the pipeline, nor, by enlarging, than 16,382 pixels.
    """
    return _scaled(image, image.shape[0] * scale, image.shape[1] * scale, filter, light, original)


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
    return _scaled(image, original[0] * scale, original[1] * scale, filter, light, original)


def _scaled(
    image: Image, height: float, width: float, filter_: str, light: str, original: tuple[int, int]
) -> Image:
    """Return an image in another size, in which memory suffices and every codec takes it if it took the original."""
    wanted = zip((height, width), original, strict=True)
    rows, columns = (
        max(1, min(round(side), 4 * first, max(first, LONGEST["webp"]))) for side, first in wanted
    )
    if (rows, columns) == image.shape[:2]:
        return image
    return in_light(light, image, lambda each: resampled(each, rows, columns, filter_))
