"""Decode the pixels of an image file, as they are stored.

Pillow reads JPEG, WebP, BMP, GIF and the TIFF files with a palette or another way to store colour. imagecodecs reads
PNG and all other TIFF files, which have more varieties than Pillow has modes, and `decoders` the others. Decoders get
JPEG files without their metadata, so metadata that a decoder dislikes cannot lose the pixels.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile

from ..errors import PhotoError
from .boxes import READERS
from .decoders import decode_apart
from .metadata import chunks_of, segments_of
from .tags import Directory, read_chain

__all__ = [
    "DECODE_ERRORS",
    "SRGB",
    "Samples",
    "TiffPages",
    "decode_samples",
    "open_image",
    "pages_of",
    "size_of",
]

DECODE_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, struct.error),
    *(imagecodecs.PngError, imagecodecs.TiffError, imagecodecs.Jpeg8Error),
)
"""Errors of Pillow and imagecodecs for damaged files, including missing or invalid TIFF tags."""

_PILLOW = re.compile(r"PIL\.")
_CREATED = slice(24, 36)
_profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SRGB = _profile[: _CREATED.start] + struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + _profile[_CREATED.stop :]
"""The profile of a photograph that was converted to RGB; with a fixed date, so that results are equal byte for byte."""

Pixels = NDArray[Any]
"""Whole numbers of 8 or 16 bits, or floats."""

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _CHANNELS, _ROWS_PER_STRIP, _STRIP_BYTES, _PLANAR = 273, 277, 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES, _EXTRA, _SAMPLE_FORMAT = 322, 323, 324, 325, 338, 339
_ORIENTATION, _DNG_VERSION = 274, 50706
_UNSIGNED, _FLOAT = 1, 3
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_PREDICTOR = 317
_PREDICTED = frozenset({5, 8, 32946, 34925, 50000})
"""LZW, Deflate, LZMA and Zstandard: the methods that libtiff combines with a predictor."""
_COMPRESSIONS = _PREDICTED | {1, 2, 3, 4, 6, 7, 32773, 34676, 34677, 34887, 50001, 32771, 32809}
_COMPRESSION_NAMES = {
    **{32773: "PackBits", 34887: "LERC", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL", 34933: "PNG"},
    **dict.fromkeys([33003, 33004, 33005, 34712], "JPEG 2000"),
    **dict.fromkeys([22610, 34934], "JPEG XR"),
    **{34892: "lossy JPEG of a raw file", 34713: "a camera's own method", 32767: "a camera's own method"},
}
_UNLABELLED, _PREMULTIPLIED, _ALPHA = 0, 1, 2
"""What TIFF says of an extra channel."""

# Pillow applies the orientation of a TIFF (and of no other format) when it loads it; these undo it.
_AS_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class Samples:
    """The pixels of a file."""

    colour: Pixels
    """(h, w, 1 or 3)."""
    white: float
    """The value of full brightness."""
    bits: int
    """Bits of one sample in the file, at least 8."""
    extra: Pixels | None = None
    """(h, w): the channel after the colours."""
    is_alpha: bool = True
    """Whether the extra channel is transparency."""
    converted: str = ""
    """What the colours were before they were converted to sRGB."""


@dataclass(frozen=True)
class TiffPages:
    """The pictures of a TIFF file."""

    main: Directory
    index: int
    """Its position in the file."""
    others: int
    """Number of thumbnails and masks."""


@contextmanager
def open_image(data: bytes, kind: str) -> Iterator[ImageFile.ImageFile]:
    """Open an image file of a known format and read its header only. Raises Pillow's errors."""
    # Warnings are about metadata, and about Pillow's own limit of pixels: callers check theirs. The filter stays, since
    # `catch_warnings` in several threads leaves the filters of one thread to another.
    if not any(module == _PILLOW for _, _, _, module, _ in warnings.filters[:8]):
        warnings.filterwarnings("ignore", module=_PILLOW.pattern)
    with Image.open(io.BytesIO(data), formats=[kind]) as image:
        yield image


def pages_of(data: bytes, name: str) -> TiffPages:
    """Return the pictures of a TIFF file. Raises PhotoError unless one of them is the photograph."""
    chain = read_chain(data)
    # Tag 254: bit 0 is a smaller copy, bit 2 a mask. Tag 255, its predecessor: 2 is a smaller copy.
    full = [
        index
        for index, page in enumerate(chain)
        if not page.number(254, 0) & 0b101 and page.number(255, 1) != 2
    ]
    if not full or _DNG_VERSION in chain[0].tags:
        raise PhotoError(
            f"{name}: holds no full picture that can be read; a raw file of a camera is one such. Develop it into a "
            "TIFF or JPEG first."
        )
    if len(full) > 1:
        raise PhotoError(f"{name}: holds {len(full)} pictures, and a photograph has one. Split the file.")
    return TiffPages(chain[full[0]], full[0], len(chain) - 1)


def size_of(kind: str, data: bytes, page: Directory | None) -> tuple[int, int]:
    """Return (height, width) as the header of a file says. Raises one of DECODE_ERRORS."""
    if page is not None:
        height, width = page.number(_HEIGHT, 0), page.number(_WIDTH, 0)
    elif kind == "PNG":
        width, height = struct.unpack_from(">II", data, 16)
    elif kind == "JPEG":
        _, height, width, _ = _frame(data)
    elif kind in READERS:
        found = READERS[kind](data)
        height, width = found.height, found.width
    else:
        with open_image(data, kind) as image:
            width, height = image.size
    if not height or not width:
        raise ValueError("its header says no size")
    return height, width


def decode_samples(kind: str, data: bytes, name: str, pages: TiffPages | None, icc: bytes) -> Samples:
    """Return the pixels of a file. Raises PhotoError for what is no photograph, or one of DECODE_ERRORS."""
    if pages is not None:
        return _of_tiff(data, name, pages, icc)
    if kind == "PNG":
        return _of_png(data, name)
    if kind == "JPEG":
        return _of_jpeg(data, name, icc)
    if kind in READERS:
        return _of_still(kind, data)
    with open_image(data, kind) as image:
        if getattr(image, "is_animated", False):
            raise PhotoError(f"{name}: holds several pictures, and a photograph has one. Split the file.")
        if kind == "GIF" and image.tile[0].extents != (0, 0, *image.size):
            raise PhotoError(
                f"{name}: does not fill its {image.width} x {image.height} pixels. Crop it first."
            )
        return _of_pillow(name, image, icc)


# ----------------------------------------------------------------------------------------------- PNG


def _of_png(data: bytes, name: str) -> Samples:
    for kind, chunk in chunks_of(data):
        pictures = int.from_bytes(chunk[8:12], "big") if kind == b"acTL" else 1
        if pictures > 1:
            raise PhotoError(f"{name}: holds {pictures} pictures, and a photograph has one. Split the file.")
    # libpng has limits for texts, and refuses a file for a damaged profile.
    needed = b"".join(chunk for kind, chunk in chunks_of(data) if not kind[0] & 0x20 or kind == b"tRNS")
    return _of_array(np.asarray(imagecodecs.png_decode(data[:8] + needed)))


def _of_array(samples: Any) -> Samples:
    """Return whole numbers, (h, w) or (h, w, c), of which the second or fourth channel is alpha."""
    samples = samples.reshape(*samples.shape[:2], -1)
    has_alpha = samples.shape[2] in (2, 4)
    return Samples(
        samples[..., : samples.shape[2] - has_alpha],
        float(np.iinfo(samples.dtype).max),
        8 * samples.dtype.itemsize,
        samples[..., -1].copy() if has_alpha else None,
    )


# ----------------------------------------------------------------------------------------------- JPEG


def _frame(data: bytes) -> tuple[int, int, int, int]:
    """Return marker, height, width and bits per sample of a JPEG's frame. Raises ValueError."""
    for marker, segment in segments_of(data)[0]:
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(segment) >= 10:
            bits, height, width = struct.unpack_from(">BHH", segment, 4)
            return marker, height, width, bits
    raise ValueError("it has no frame")


def _of_jpeg(data: bytes, name: str, icc: bytes) -> Samples:
    marker, height, width, bits = _frame(data)
    segments, scan = segments_of(data)
    # Each block of 8 x 8 takes at least two bits, in progressive files one (Huffman codes have one bit or more).
    blocks = -(-height // 8) * -(-width // 8)
    if marker in (0xC0, 0xC1, 0xC2) and 8 * len(scan) < blocks * (1 if marker == 0xC2 else 2):
        raise ValueError(f"it has {len(scan)} bytes for {width} x {height} pixels")
    kept = [part for mark, part in segments if mark in (0xE0, 0xEE) or not (mark == 0xFE or mark >= 0xE0)]
    bare = b"".join([data[:2], *kept, scan])
    if bits not in (8, 12) or marker not in (0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA):
        raise PhotoError(
            f"{name}: is a {bits}-bit JPEG of a rare kind (frame {marker:X}), which is not read here. Convert it to a "
            "16-bit PNG or TIFF first."
        )
    if bits == 12:
        samples = _complete(bare, imagecodecs.jpeg8_decode)
        samples = samples.reshape(*samples.shape[:2], -1)
        if samples.shape[2] not in (1, 3):
            raise PhotoError(
                f"{name}: is a 12-bit JPEG with {samples.shape[2]} channels. Save it as RGB first."
            )
        return Samples(samples, 4095.0, 12)
    found: Samples = _complete(bare, partial(_decode_jpeg, name, icc))
    return found


def _decode_jpeg(name: str, icc: bytes, data: bytes) -> Samples:
    with open_image(data, "JPEG") as image:
        return _of_pillow(name, image, icc)


def _complete(data: bytes, decode: Any) -> Any:
    """Decode a JPEG, also one whose end marker is missing, but not one whose pixels are missing.

    A decoder makes up pixels that are missing from what follows, so they are all there if two different ends give the
    same result.
    """
    try:
        return decode(data)
    except (OSError, imagecodecs.Jpeg8Error):
        if data.endswith(b"\xff\xd9"):
            raise
        ended = data.removesuffix(b"\xff") + b"\xff\xd9"
        first, second = decode(ended), decode(ended[:-2] + b"\x35" * 64 + b"\xff\xd9")
        if np.array_equal(getattr(first, "colour", first), getattr(second, "colour", second)):
            return first
        raise


# ----------------------------------------------------------------------------------------------- AVIF, HEIC


def _of_still(kind: str, data: bytes) -> Samples:
    """Return the pixels of an AVIF as stored, and of a HEIC as viewers show them."""
    about = READERS[kind](data)
    samples = decode_apart(kind, data, (about.height, about.width))
    if kind == "HEIC" and samples.dtype == np.uint16:
        samples >>= 16 - about.bits  # its decoder scales them
    found = _of_array(samples)
    if found.bits == 8:
        return found
    if about.bits not in (10, 12, 16):
        raise ValueError(f"it says {about.bits} bits")
    extra = found.extra
    if extra is not None:
        extra = (extra.astype(np.uint32) * 65_535 // (2**about.bits - 1)).astype(np.uint16)
    return replace(found, white=float(2**about.bits - 1), bits=about.bits, extra=extra)


# ----------------------------------------------------------------------------------------------- Pillow


def _of_pillow(name: str, image: Image.Image, icc: bytes) -> Samples:
    """Return the samples of a file with at most 8 bits each, with palette colours resolved."""
    orientation = image.getexif().get(_ORIENTATION, 1) if image.format == "TIFF" else 1
    image.load()
    if orientation in _AS_STORED:
        image = image.transpose(_AS_STORED[orientation])
    mode, converted = image.mode, ""
    transparent = "transparency" in image.info  # a colour, or entries of the palette
    if mode == "PA" or (mode in ("P", "RGB") and transparent):
        image = image.convert("RGBA")
    elif mode == "L" and transparent:
        image = image.convert("LA")
    elif mode in ("P", "RGBX", "YCbCr"):
        image = image.convert("RGB")
    elif mode == "1":
        image = image.convert("L")
    elif mode in ("CMYK", "LAB"):
        image, converted = _in_srgb(image, icc), mode
    elif mode not in ("L", "LA", "RGB", "RGBA"):
        raise PhotoError(f"{name}: has colour mode {mode}. Save it as 8- or 16-bit grey or RGB first.")
    found = _of_array(np.asarray(image))
    return Samples(found.colour, found.white, found.bits, found.extra, converted=converted)


def _in_srgb(image: Image.Image, icc: bytes) -> Image.Image:
    """Convert CMYK by its profile, or as viewers do without one; convert CIELAB."""
    if image.mode == "CMYK" and not icc:
        return image.convert("RGB")
    try:
        given = ImageCms.createProfile("LAB") if image.mode == "LAB" else io.BytesIO(icc)
        profile, target = ImageCms.ImageCmsProfile(given), ImageCms.ImageCmsProfile(io.BytesIO(SRGB))
        converted = ImageCms.profileToProfile(image, profile, target, outputMode="RGB")
    except (OSError, ImageCms.PyCMSError):  # a damaged profile, or one of another colour space
        return image.convert("RGB")
    assert converted is not None
    return converted


# ----------------------------------------------------------------------------------------------- TIFF


def _of_tiff(data: bytes, name: str, pages: TiffPages, icc: bytes) -> Samples:
    page = pages.main
    bits = set(page.numbers(_BITS)) or {1}
    photometric = page.number(_PHOTOMETRIC, -1)
    kinds = set(page.numbers(_SAMPLE_FORMAT)) or {_UNSIGNED}
    _check_complete(page)
    _check_compression(page, name)
    if photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
        if (kinds == {_UNSIGNED} and bits in ({8}, {16})) or (
            kinds == {_FLOAT} and bits in ({16}, {32}, {64})
        ):
            return _plain_tiff(data, name, pages, photometric)
        if max(bits) > 8 or kinds != {_UNSIGNED}:
            what = {_UNSIGNED: "whole numbers", 2: "signed numbers", _FLOAT: "floats"}
            words = " and ".join(what.get(kind, "unusual samples") for kind in sorted(kinds))
            raise PhotoError(
                f"{name}: has {words} of {'/'.join(map(str, sorted(bits)))} bits. Save it with 8 or 16 bits, or as "
                "floats in [0, 1]."
            )
    elif photometric < 0:
        raise PhotoError(
            f"{name}: does not say what its samples mean (tag 262). Save it as grey or RGB first."
        )
    elif max(bits) > 8:
        space = {
            5: "CMYK",
            6: "YCbCr",
            8: "CIELAB",
            9: "ICCLAB",
            10: "ITULAB",
            32803: "the filter of a sensor",
        }
        raise PhotoError(
            f"{name}: has {max(bits)}-bit samples of {space.get(photometric, f'colour space {photometric}')}. "
            "Convert it to RGB first."
        )
    with open_image(data, "TIFF") as image:
        if pages.index:
            image.seek(pages.index)
        found = _of_pillow(name, image, icc)
    height, width = size_of("TIFF", data, page)
    if found.colour.shape[:2] != (height, width):
        raise PhotoError(f"{name}: has an unusual layout. Save it as plain RGB first.")
    return found


def _plain_tiff(data: bytes, name: str, pages: TiffPages, photometric: int) -> Samples:
    """Return grey or RGB of whole numbers or floats, with at most one more channel."""
    page = pages.main
    height, width = size_of("TIFF", data, page)
    channels = page.number(_CHANNELS, 1)
    colours = 3 if photometric == _RGB else 1
    if channels - colours not in (0, 1):
        raise PhotoError(
            f"{name}: has {channels} channels. A photograph has 1 or 3, and at most one more. Save it as such first."
        )
    if page.number(_TILE_WIDTH, 0) * page.number(_TILE_HEIGHT, 0) > 4 * max(height * width, 2**20):
        raise ValueError("its tiles are larger than the picture")
    samples = np.asarray(imagecodecs.tiff_decode(data, index=pages.index))
    if page.number(_PLANAR, 1) == 2 and channels > 1:
        samples = np.moveaxis(samples, 0, 2)
    samples = samples.reshape(*samples.shape[:2], -1)
    if samples.shape != (height, width, channels):
        raise PhotoError(f"{name}: has an unusual layout {samples.shape}. Save it as plain RGB first.")
    colour: Any = samples[..., :colours]
    extra = samples[..., colours].copy() if channels > colours else None
    white = 1.0 if samples.dtype.kind == "f" else float(np.iinfo(samples.dtype).max)
    if samples.dtype.kind == "f":
        low, high = float(samples.min()), float(samples.max())
        if not (low >= 0 and high <= 1):
            raise PhotoError(
                f"{name}: has floats from {low:g} to {high:g}; a photograph has 0 to 1. Scale them, or save it with "
                "16 bits."
            )
    if photometric == _WHITE_IS_ZERO:
        colour = samples.dtype.type(white) - colour
    label = page.number(_EXTRA, _UNLABELLED)
    if extra is not None and label == _PREMULTIPLIED:
        share = np.maximum(extra, samples.dtype.type(1e-6) if samples.dtype.kind == "f" else 1)[..., None]
        colour = np.minimum(colour.astype(np.float64) / share * white, white)
        colour = (colour if samples.dtype.kind == "f" else np.rint(colour)).astype(samples.dtype)
    return Samples(colour, white, 8 * samples.dtype.itemsize, extra, label in (_PREMULTIPLIED, _ALPHA))


def _check_compression(page: Directory, name: str) -> None:
    """Raise PhotoError for what decoders cannot read, and for predictors that they silently leave out."""
    compression, predictor = page.number(_COMPRESSION, 1), page.number(_PREDICTOR, 1)
    if compression not in _COMPRESSIONS or (predictor > 1 and compression not in _PREDICTED):
        how = _COMPRESSION_NAMES.get(compression, f"method {compression}")
        how += " with a predictor" if compression in _COMPRESSIONS else ""
        raise PhotoError(
            f"{name}: is a TIFF compressed by {how}, which is not read here. Save it with LZW or Deflate."
        )


def _check_complete(page: Directory) -> None:
    """Raise ValueError if strips or tiles are missing: decoders leave their pixels black."""
    height, width = page.number(_HEIGHT, 0), page.number(_WIDTH, 0)
    planes = page.number(_CHANNELS, 1) if page.number(_PLANAR, 1) == 2 else 1
    if _TILE_OFFSETS in page.tags:
        offsets = page.numbers(_TILE_OFFSETS)
        tile_width, tile_height = page.number(_TILE_WIDTH, 0), page.number(_TILE_HEIGHT, 0)
        needed = -(-height // tile_height) * -(-width // tile_width)
    else:
        offsets = page.numbers(_STRIP_OFFSETS)
        needed = -(-height // min(max(page.number(_ROWS_PER_STRIP, height), 1), height))
    if len(offsets) < needed * planes or not all(offsets):
        missing = needed * planes - sum(map(bool, offsets))
        raise ValueError(f"{missing} of {needed * planes} parts of its pixels are missing")
