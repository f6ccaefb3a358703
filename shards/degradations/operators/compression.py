"""Compression and loss of grey levels. Codecs take images of 8 bits: values are rounded before."""

from __future__ import annotations

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from shards.degradations.convolution import mirrored
from shards.degradations.operator import Image, Parameter, operator
from shards.degradations.video import from_yuv420, last_frame, to_yuv420
from shards.errors import DegradeError

LONGEST = {"jpeg": 65_535, "webp": 16_382, "av1": 32_768, "h264": 16_382}
"""Longest side of an image in pixels that each codec takes, WebP's the least."""
_QUALITY = Parameter(1, 100, about="the encoder's quality", integer=True)
_CHROMA = Parameter(
    words=("yuv420", "yuv422", "yuv444"),
    default="yuv420",
    about="colours at half the resolution in both directions, across, or at full resolution",
)


@operator(quality=_QUALITY, chroma=_CHROMA)
def jpeg(image: Image, rng: np.random.Generator, *, quality: int, chroma: str) -> Image:
    """Encode as JPEG and decode, by libjpeg-turbo (ITU-T T.81; the scale of quality is libjpeg's)."""
    encoded = imagecodecs.jpeg8_encode(_frame(image, "jpeg"), level=quality, subsampling=chroma[3:])
    return _values(imagecodecs.jpeg8_decode(encoded))


@operator(quality=_QUALITY)
def webp(image: Image, rng: np.random.Generator, *, quality: int) -> Image:
    """Encode as lossy WebP and decode, by libwebp (RFC 9649: an intra frame of VP8)."""
    encoded = imagecodecs.webp_encode(_frame(image, "webp"), level=quality, lossless=False, numthreads=1)
    return _values(imagecodecs.webp_decode(encoded))


@operator(quality=_QUALITY, chroma=_CHROMA)
def av1(image: Image, rng: np.random.Generator, *, quality: int, chroma: str) -> Image:
    """Encode as an intra frame of the video codec AV1 and decode, by libavif at its fastest setting."""
    encoded = imagecodecs.avif_encode(
        _frame(image, "av1"), level=quality, speed=10, pixelformat=chroma[3:], numthreads=1
    )
    return _values(imagecodecs.avif_decode(encoded, numthreads=1))


@operator(
    1,
    ("av", "video"),
    quantiser=Parameter(1, 51, about="quantisation: 18 is hardly seen, 51 the coarsest", integer=True),
    frames=Parameter(
        1, 10, unit="frames", about="the last one is the result; 1: an intra frame", default=4, integer=True
    ),
    motion=Parameter(0.0, 16.0, unit="pixels per frame", about="motion of the scene", default=2.0),
    angle=Parameter(
        -180.0, 180.0, unit="degrees", about="direction of the motion, clockwise from the right", default=0.0
    ),
)
def h264(
    image: Image, rng: np.random.Generator, *, quantiser: int, frames: int, motion: float, angle: float
) -> Image:
    """Encode as the last frame of an H.264 video and decode, by x264 and FFmpeg (PyAV).

    The frames show the image, moving by whole pixels and mirrored beyond its border, in BT.601 with colours at half the
    resolution. The first is intra coded, the others are predicted from those before; the quantiser is constant.
    """
    height, width = image.shape[:2]
    grey = _frame(image, "h264").astype(np.float32) / np.float32(255)
    sides = height + height % 2, width + width % 2  # colours need even sides
    turn = np.radians(angle)
    shown = []
    for left in range(frames - 1, -1, -1):
        down, right = (int(np.rint(left * motion * part)) for part in (np.sin(turn), np.cos(turn)))
        rows = mirrored(np.arange(sides[0]) + down, height)
        columns = mirrored(np.arange(sides[1]) + right, width)
        shown.append(to_yuv420(grey[rows[:, None], columns]))
    decoded = from_yuv420(last_frame(shown, quantiser))
    return np.clip(decoded[:height, :width], 0, 1)


@operator(
    bits=Parameter(1, 8, unit="bits", about="bits of each value", integer=True),
    dither=Parameter(
        words=("none", "ordered", "noise"),
        default="none",
        about="what is added before rounding: nothing, Bayer's matrix of 8 x 8, or white noise",
    ),
)
def quantise(image: Image, rng: np.random.Generator, *, bits: int, dither: str) -> Image:
    """Round to few levels, with or without dithering (Bayer 1973). With 8 bits it is an 8-bit file."""
    levels = np.float32(2**bits - 1)
    offset: NDArray[np.float32] | float = 0.5
    if dither == "noise":
        offset = rng.random(image.shape, dtype=np.float32)
    elif dither == "ordered":
        rows, columns = (np.arange(size) % 8 for size in image.shape[:2])
        offset = _BAYER[rows[:, None], columns][..., None]
    rounded: Image = np.minimum(np.floor(image * levels + offset), levels) / levels
    return rounded


def _bayer() -> NDArray[np.float32]:
    """Return Bayer's matrix of 8 x 8 thresholds in (0, 1)."""
    matrix = np.zeros((1, 1))
    for _ in range(3):
        matrix = np.block([[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]])
    return ((matrix + 0.5) / 64).astype(np.float32)


_BAYER = _bayer()


def _frame(image: Image, codec: str) -> NDArray[np.uint8]:
    """Return the grey levels that a codec gets. Raises DegradeError if the image is too large for it."""
    if max(image.shape[:2]) > LONGEST[codec]:
        size, most = f"{image.shape[1]:,} x {image.shape[0]:,}", f"{LONGEST[codec]:,}"
        raise DegradeError(
            f"{codec} takes at most {most} pixels a side, and the image has {size}: cut it first."
        )
    return np.ascontiguousarray(np.rint(image.clip(0, 1) * np.float32(255)).astype(np.uint8))


def _values(grey: NDArray[np.uint8]) -> Image:
    return grey.astype(np.float32) / np.float32(255)
