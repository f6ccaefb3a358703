"""Encode a few frames as H.264 with PyAV (the extra `video`) and decode the last one.

One thread, and x264's option for equal results on every processor; H.264 itself says every bit of what is decoded.
Another version of the wheel may encode differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from shards.degradations.linear_light import luma_of
from shards.degradations.operator import Image
from shards.degradations.resampling import resampled

Frame = NDArray[np.uint8]
"""The planes of a YUV 4:2:0 frame, one below the other as FFmpeg has them: (3/2 h, w)."""


def last_frame(frames: Sequence[Frame], quantiser: int) -> Frame:
    """Return the last of some frames after an H.264 encoder with a constant quantiser, and a decoder."""
    import av  # an extra

    height, width = frames[0].shape[0] * 2 // 3, frames[0].shape[1]
    encoder, decoder = av.CodecContext.create("libx264", "w"), av.CodecContext.create("h264", "r")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base = Fraction(1, 25)
    encoder.options = {
        "preset": "medium",
        "tune": "zerolatency",  # each frame at once, and none from a later one
        "qp": str(quantiser),
        "x264-params": "cpu-independent=1:threads=1",
    }
    encoder.thread_count = decoder.thread_count = 1
    decoded = []
    for number, content in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(content, format="yuv420p")
        frame.pts = number
        for packet in encoder.encode(frame):
            decoded += decoder.decode(packet)
    for packet in encoder.encode(None):
        decoded += decoder.decode(packet)
    decoded += decoder.decode(None)
    planes: Frame = decoded[-1].to_ndarray()
    return planes


def to_yuv420(image: Image) -> Frame:
    """Return an image of even sides as BT.601 with the range of video, colours as means of 2 x 2 pixels."""
    luma = luma_of(image)[..., 0]
    red, blue = (
        (image[..., channel] - luma) / np.float32(scale) for channel, scale in ((0, 1.402), (2, 1.772))
    )
    half = [
        (plane[::2, ::2] + plane[1::2, ::2] + plane[::2, 1::2] + plane[1::2, 1::2]) * np.float32(56) + 128
        for plane in (blue, red)
    ]
    values = np.concatenate([(luma * 219 + 16).ravel(), *(plane.ravel() for plane in half)])
    planes: Frame = np.rint(values).astype(np.uint8).reshape(-1, image.shape[1])
    return planes


def from_yuv420(planes: Frame) -> Image:
    """Return the image of a frame; colours are interpolated bilinearly."""
    height, width = planes.shape[0] * 2 // 3, planes.shape[1]
    values = planes.astype(np.float32)
    luma = (values[:height] - 16) / np.float32(219)
    half = ((values[height:].reshape(2, height // 2, width // 2) - 128) / np.float32(224)).transpose(1, 2, 0)
    full = resampled(np.concatenate([half, np.zeros_like(half[..., :1])], 2), height, width, "bilinear")
    blue, red = full[..., 0] * np.float32(1.772), full[..., 1] * np.float32(1.402)
    # The luma is a weighted sum of the colours, so green follows from the others.
    green = -(np.float32(0.114) * blue + np.float32(0.299) * red) / np.float32(0.587)
    return np.stack([luma + red, luma + green, luma + blue], 2)
