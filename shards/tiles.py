"""Lossless image container made of tiles; a crop decodes only the tiles that it overlaps.

Layout, little-endian:

    offset  bytes  field
    0       4      magic, ASCII "MTI1"
    4       4      height in pixels, u32
    8       4      width in pixels, u32
    12      2      tile edge in pixels, u16
    14      1      codec, u8: 0 QOI, 1 WebP lossless
    15      1      channels, u8: always 3 (RGB, 8 bits each)
    16      4(n+1) start of each tile, u32, counted from the end of this table; the last is the length
    ...            n tiles, row by row; those at the right and bottom edge are smaller

`fast` is QOI (about 4/3 of a PNG's bytes, fastest to decode), `compact` is lossless WebP (smaller than a PNG).
"""

from __future__ import annotations

import struct
from typing import Protocol

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from shards.errors import CorruptObjectError, PackError

Image = NDArray[np.uint8]


class Buffer(Protocol):
    """Bytes that are read in slices: `bytes`, a memoryview, or a part of a file."""

    def __len__(self) -> int:
        """Return the number of bytes."""

    def __getitem__(self, span: slice, /) -> bytes | memoryview:
        """Return the bytes of a slice."""


TILE = 64
CODECS = {"fast": "tiles-qoi", "compact": "tiles-webp"}
"""Name in a manifest of each encoding that a user can choose."""

_MAGIC = b"MTI1"
_HEADER = struct.Struct("<4sIIHBB")
_CODEC_IDS = {"fast": 0, "compact": 1}
_MAX_PIXELS = 1 << 28  # 268 megapixels: larger than any photograph; a forged header may claim more
_DAMAGED = (imagecodecs.QoiError, imagecodecs.WebpError, ValueError)


def encode(image: Image, codec: str = "fast", tile: int = TILE) -> bytes:
    """Encode `image`, (h, w, 3) uint8 RGB. Raises PackError."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise PackError(f"an image must be 8-bit RGB, (h, w, 3); got {image.dtype} of shape {image.shape}.")
    if codec not in _CODEC_IDS:
        raise PackError(f"encoding {codec!r} is unknown; use one of {', '.join(_CODEC_IDS)}.")
    height, width, _ = image.shape
    if not 0 < height * width <= _MAX_PIXELS:
        raise PackError(f"an image of {width} x {height} pixels is empty or above {_MAX_PIXELS} pixels.")
    tiles = [
        _encode_tile(np.ascontiguousarray(image[top : top + tile, left : left + tile]), codec)
        for top in range(0, height, tile)
        for left in range(0, width, tile)
    ]
    starts = np.cumsum([0, *map(len, tiles)]).astype("<u4")
    return b"".join(
        [_HEADER.pack(_MAGIC, height, width, tile, _CODEC_IDS[codec], 3), starts.tobytes(), *tiles]
    )


def decode(buffer: Buffer) -> Image:
    """Return all pixels, (h, w, 3) uint8. Raises CorruptObjectError."""
    image = TiledImage(buffer)
    return image.crop(0, 0, *image.shape)


class TiledImage:
    """A tiled image, of which windows are decoded."""

    def __init__(self, buffer: Buffer) -> None:
        """Read the header and the table. Raises CorruptObjectError."""
        if len(buffer) < _HEADER.size:
            raise CorruptObjectError(f"a tiled image of {len(buffer)} bytes is shorter than its header.")
        magic, height, width, tile, codec, channels = _HEADER.unpack(buffer[: _HEADER.size])
        if magic != _MAGIC:
            raise CorruptObjectError(
                f"not a tiled image: it starts with {bytes(magic)!r} instead of {_MAGIC!r}."
            )
        possible = codec in _CODEC_IDS.values() and channels == 3 and tile > 0
        if not possible or not 0 < height * width <= _MAX_PIXELS:
            raise CorruptObjectError(
                f"a tiled image claims {width} x {height} pixels, tiles of {tile}, codec {codec}, "
                f"{channels} channels."
            )
        rows, columns = -(-height // tile), -(-width // tile)
        base = _HEADER.size + 4 * (rows * columns + 1)
        if len(buffer) < base:
            raise CorruptObjectError(f"a tiled image of {len(buffer)} bytes ends inside its table of tiles.")
        starts = np.frombuffer(buffer[_HEADER.size : base], "<u4").astype(np.int64) + base
        if starts[0] != base or starts[-1] != len(buffer) or (np.diff(starts) < 1).any():
            raise CorruptObjectError(
                f"a tiled image of {len(buffer)} bytes has an inconsistent table of tiles."
            )
        self.shape: tuple[int, int] = height, width
        """Height and width in pixels."""
        self._buffer, self._starts = buffer, starts
        self._edge, self._codec, self._columns = tile, codec, columns

    def crop(self, top: int, left: int, height: int, width: int) -> Image:
        """Return one window, (height, width, 3) uint8, equal to the same slice of the whole image."""
        require_inside(self.shape, top, left, height, width)
        out = np.empty((height, width, 3), np.uint8)
        edge = self._edge
        for row in range(top // edge, (top + height - 1) // edge + 1):
            for column in range(left // edge, (left + width - 1) // edge + 1):
                tile = self._decode_tile(row, column)
                y, x = row * edge, column * edge
                y0, x0 = max(top, y), max(left, x)
                y1, x1 = min(top + height, y + tile.shape[0]), min(left + width, x + tile.shape[1])
                out[y0 - top : y1 - top, x0 - left : x1 - left] = tile[y0 - y : y1 - y, x0 - x : x1 - x]
        return out

    def _decode_tile(self, row: int, column: int) -> Image:
        index = row * self._columns + column
        start, end = self._starts[index : index + 2].tolist()
        decoder = imagecodecs.qoi_decode if self._codec == 0 else imagecodecs.webp_decode
        data = bytes(self._buffer[start:end])
        edge, (height, width) = self._edge, self.shape
        expected = (min(edge, height - row * edge), min(edge, width - column * edge), 3)
        try:
            # A QOI file of a few bytes may say that it has 400 million pixels, and its decoder fills them.
            if self._codec == 0 and data[4:12] != struct.pack(">II", expected[1], expected[0]):
                raise ValueError("it says another size")
            tile: Image = decoder(data)
        except _DAMAGED as error:
            raise CorruptObjectError(f"tile {index} of a tiled image cannot be decoded: {error}") from error
        if tile.shape != expected:
            raise CorruptObjectError(
                f"tile {index} of a tiled image has shape {tile.shape}, expected {expected}."
            )
        return tile


def require_inside(shape: tuple[int, int], top: int, left: int, height: int, width: int) -> None:
    """Raise ValueError unless a window is inside an image of this height and width, and not empty."""
    inside = 0 <= top <= top + height <= shape[0] and 0 <= left <= left + width <= shape[1]
    if not inside or height < 1 or width < 1:
        raise ValueError(
            f"window {width} x {height} at ({left}, {top}) is outside {shape[1]} x {shape[0]} pixels"
        )


def _encode_tile(tile: Image, codec: str) -> bytes:
    if codec == "fast":
        return bytes(imagecodecs.qoi_encode(tile))
    return bytes(imagecodecs.webp_encode(tile, lossless=True))
