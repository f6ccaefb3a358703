"""Photographs in and out, as files or as bytes: what they hold beside their pixels outlives a restoration.

Size, format, bit depth (8 or 16), grey or colour, alpha, EXIF, ICC profile, XMP and resolution are kept.
Pixels are taken as stored: no profile is applied and no orientation executed, since both are kept and viewers
apply them to the result as they did to the original. Alpha passes through unrestored.

Pillow reads what has 8 bits. It has no mode for 16-bit colour, so imagecodecs reads and writes those pixels,
and PNG chunks and TIFF tags are carried over by hand.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

# Relative, because each registered version carries a copy of this module and of the errors (`registry`).
from ..errors import PhotoError, ResultError

__all__ = ["LIMITS", "Limits", "Photo", "decode", "encode", "read_photo", "write_photo"]


@dataclass(frozen=True)
class Limits:
    """What a photograph may take; a file beyond is refused before its pixels are unpacked."""

    bytes: int = 2**30
    """Of the file."""
    pixels: int = 178_956_970
    """Height times width. The default is Pillow's own limit for a decompression bomb: 0.5 GiB of 8-bit colour."""


LIMITS = Limits()
"""For files that the user has chosen; a service that takes them from anyone sets its own."""

SUFFIXES = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".bmp": "BMP",
}
_HOLDS_ALPHA = frozenset({"PNG", "TIFF", "WEBP"})
_HOLDS_16_BITS = frozenset({"PNG", "TIFF"})

# Ancillary PNG chunks that stay true when the pixels change.
_KEPT_CHUNKS = frozenset(
    [b"eXIf", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"pHYs", b"tEXt", b"iTXt", b"zTXt", b"tIME"]
)
# TIFF tags that say how pixels are laid out in the file; the writer states them anew.
_LAYOUT_TAGS = frozenset(
    {*range(254, 260), 262, 266, 273, *range(277, 282), 284, 292, 293, 317, 320, *range(322, 326), 330}
    | {*range(338, 342), 347, *range(512, 515), *range(529, 533)}
)
# Tags that stand beside EXIF in other formats: XMP, IPTC, Photoshop's, the ICC profile.
_TIFF_ONLY_TAGS = frozenset({700, 33723, 34377, 34675, 37724})

# What Pillow and imagecodecs raise for damaged files; Pillow's TIFF reader also trips over missing or odd tags.
DECODE_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, struct.error),
    *(imagecodecs.PngError, imagecodecs.TiffError),
)

_ORIENTATION = 274
# Pillow turns a TIFF (and no other format) upright while it loads; these turn it back.
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
class Photo:
    """One photograph and what has to be kept of its file."""

    name: str
    """What messages call it: a path, or what the sender named it."""
    pixels: NDArray[np.float32]
    """(3, h, w) in [0, 1]; a grey photograph has three equal channels."""
    format: str
    """JPEG, PNG, TIFF, WEBP or BMP."""
    bits: int = 8
    grey: bool = False
    alpha: NDArray[np.uint8] | NDArray[np.uint16] | None = None
    """(h, w), in the file's own depth."""
    exif: bytes = b""
    """For TIFF every tag that is not about layout, with its sub-directories."""
    icc: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    comment: bytes = b""
    chunks: tuple[bytes, ...] = ()
    """PNG only: whole chunks, carried over as they are."""
    lossless: bool = True

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.pixels.shape[1], self.pixels.shape[2]


@contextmanager
def open_image(data: bytes) -> Iterator[Image.Image]:
    """Open the bytes of an image file of a known format. Only its header is read; Pillow's errors come as they are."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # about metadata, and about Pillow's own limit of pixels: callers have theirs
        with Image.open(io.BytesIO(data), formats=sorted(set(SUFFIXES.values()))) as image:
            yield image


def decode(data: bytes, name: str, limits: Limits = LIMITS) -> Photo:
    """Unpack the bytes of a JPEG, PNG, TIFF, WebP or BMP file, which messages call `name`. Raises PhotoError."""
    if len(data) > limits.bytes:
        raise PhotoError(f"{name}: takes {len(data) / 2**20:.1f} MiB, more than {limits.bytes / 2**20:.1f}.")
    try:
        with open_image(data) as image:
            if image.width * image.height > limits.pixels:
                raise _too_large(name, limits)
            return _decode(name, data, image)
    except UnidentifiedImageError as error:
        raise PhotoError(
            f"{name}: not a JPEG, PNG, TIFF, WebP or BMP file. Convert it to one first."
        ) from error
    except Image.DecompressionBombError as error:
        raise _too_large(name, limits) from error
    except DECODE_ERRORS as error:
        raise PhotoError(f"{name}: damaged or incomplete ({error})") from error


def encode(restored: NDArray[np.float32], like: Photo, kind: str | None = None) -> bytes:
    """Return `restored`, (3, h, w) in [0, 1], as the bytes of a file like that of `like`.

    `kind` may name another format; then EXIF and ICC profile are kept, and the depth where that format has 16
    bits. JPEG and lossy WebP are written at quality 95, JPEG without chroma subsampling. Raises ResultError where
    `restored` is not finite, PhotoError where the format cannot hold it.
    """
    kind = kind or like.format
    if restored.shape != like.pixels.shape:
        raise ValueError(f"restored has shape {restored.shape}, the photograph {like.pixels.shape}")
    if not np.isfinite(restored).all():
        raise ResultError(f"{like.name}: the model's result is not finite. Use another model.")
    _check_alpha(like.name, kind, like)
    samples = _to_samples(restored, like, like.bits if kind in _HOLDS_16_BITS else 8)
    try:
        return _encode(kind, samples, like)
    except (OSError, ValueError) as error:  # too many pixels a side, too long an EXIF block
        raise PhotoError(f"{like.name}: cannot be written as {kind} ({error}). Use .png.") from error


def format_for(name: str, like: Photo) -> str:
    """Return the format of a result called `name`: its suffix decides, unless that is the photograph's own.

    A PNG that is called .jpg stays one under that suffix. Raises PhotoError where the format cannot hold it.
    """
    suffix = Path(name).suffix.lower()
    if suffix == Path(like.name).suffix.lower():
        kind = like.format
    elif suffix in SUFFIXES:
        kind = SUFFIXES[suffix]
    else:
        raise PhotoError(f"{name}: the name must end in one of {', '.join(SUFFIXES)}")
    _check_alpha(name, kind, like)
    return kind


def read_photo(path: str | Path, limits: Limits = LIMITS) -> Photo:
    """Read a JPEG, PNG, TIFF, WebP or BMP file. Raises PhotoError: which file, and what is wrong with it."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise PhotoError(f"{path}: cannot be read ({error.strerror})") from error
    return decode(data, str(path), limits)


def write_photo(path: str | Path, restored: NDArray[np.float32], like: Photo) -> None:
    """Write `restored` as a file in the format that the suffix of `path` names; whole or not at all.

    The photograph that was read is never overwritten. Raises PhotoError.
    """
    path, source = Path(path), Path(like.name)
    if path.exists() and source.exists() and path.samefile(source):
        raise PhotoError(f"{path}: is the photograph itself. Choose another name for the result.")
    data = encode(restored, like, format_for(str(path), like))
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise PhotoError(f"{path}: cannot be written ({error.strerror})") from error


def _check_alpha(name: str, kind: str, like: Photo) -> None:
    if like.alpha is not None and kind not in _HOLDS_ALPHA:
        raise PhotoError(f"{name}: {like.name} is partly transparent, which {kind} cannot hold. Use .png.")


def _too_large(name: str, limits: Limits) -> PhotoError:
    return PhotoError(f"{name}: holds more than {limits.pixels / 1e6:.0f} million pixels. Split it.")


# ----------------------------------------------------------------------------------------------- reading


def _decode(name: str, data: bytes, image: Image.Image) -> Photo:
    kind = "JPEG" if image.format == "MPO" else str(image.format)  # an MPO's first picture is a plain JPEG
    pictures = 1 if kind == "JPEG" else getattr(image, "n_frames", 1)
    if pictures > 1:
        raise PhotoError(f"{name}: holds {pictures} pictures, a photograph is one. Split it.")
    exif = _tiff_tags(image) if kind == "TIFF" else image.info.get("exif") or b""
    width, height = (image.tag_v2[256], image.tag_v2[257]) if kind == "TIFF" else image.size  # type: ignore[attr-defined]
    samples = _samples_16(name, data, image) if _has_16_bits(kind, data, image) else _samples_8(name, image)
    if samples.shape[:2] != (height, width) or samples.shape[2] > 4:
        raise PhotoError(f"{name}: has an unusual layout {samples.shape}. Save it as RGB first.")
    top = np.float32(np.iinfo(samples.dtype).max)
    channels = samples.shape[2]
    has_alpha = channels in (2, 4)
    colour = samples[..., : channels - has_alpha]  # (h, w, 1 or 3)
    pixels = np.broadcast_to(np.moveaxis(colour, 2, 0), (3, *colour.shape[:2])).astype(np.float32) / top
    info = image.info
    return Photo(
        name=name,
        pixels=pixels,
        format=kind,
        bits=samples.dtype.itemsize * 8,
        grey=channels < 3,
        alpha=samples[..., -1].copy() if has_alpha else None,
        exif=exif,
        icc=info.get("icc_profile") or b"",
        xmp=info.get("xmp") or b"",
        dpi=info.get("dpi"),
        comment=info.get("comment") or b"" if kind == "JPEG" else b"",
        chunks=tuple(whole for name, whole in _png_chunks(data) if name in _KEPT_CHUNKS)
        if kind == "PNG"
        else (),
        lossless=kind in ("PNG", "TIFF", "BMP") or (kind == "WEBP" and b"VP8L" in _webp_chunks(data)),
    )


def _has_16_bits(kind: str, data: bytes, image: Image.Image) -> bool:
    if kind == "PNG":
        return data[24] == 16  # IHDR's bit depth
    return kind == "TIFF" and set(image.tag_v2.get(258, ())) == {16}  # type: ignore[attr-defined]


def _samples_16(name: str, data: bytes, image: Image.Image) -> NDArray[np.uint16]:
    """Return (h, w, c) of a PNG or TIFF file with 16 bits per sample."""
    if image.format == "PNG":
        samples = np.asarray(imagecodecs.png_decode(data))
    else:
        samples = np.asarray(imagecodecs.tiff_decode(data))
        # Photometric: 1 and 2 are grey and RGB. Extra samples: 2 is alpha that is not multiplied in.
        tags = image.tag_v2  # type: ignore[attr-defined]
        if samples.dtype != np.uint16 or tags.get(262) not in (1, 2) or tags.get(338, (2,)) != (2,):
            raise PhotoError(
                f"{name}: has an unusual kind of 16-bit samples. Save it as plain grey or RGB first."
            )
    return samples.reshape(*samples.shape[:2], -1)


def _samples_8(name: str, image: Image.Image) -> NDArray[np.uint8]:
    """Return (h, w, c) of a file with at most 8 bits per sample; a palette is resolved."""
    orientation = image.getexif().get(_ORIENTATION, 1) if image.format == "TIFF" else 1
    image.load()
    if orientation in _AS_STORED:
        image = image.transpose(_AS_STORED[orientation])
    mode = image.mode
    transparent = "transparency" in image.info  # a colour, or entries of the palette
    if mode == "PA" or (mode in ("P", "RGB") and transparent):
        image = image.convert("RGBA")
    elif mode == "L" and transparent:
        image = image.convert("LA")
    elif mode == "P":
        image = image.convert("RGB")
    elif mode not in ("L", "LA", "RGB", "RGBA"):
        raise PhotoError(f"{name}: has colour mode {mode}. Save it as 8- or 16-bit grey or RGB first.")
    samples = np.asarray(image)
    return samples.reshape(*samples.shape[:2], -1)


def _tiff_tags(image: Image.Image) -> bytes:
    tags = image.getexif()
    for directory in (34665, 34853, 40965):  # EXIF, GPS, interoperability: read now, written with the rest
        if directory in tags:
            tags.get_ifd(directory)
    return _without(tags, _LAYOUT_TAGS)


def _without(tags: Image.Exif, left_out: frozenset[int]) -> bytes:
    kept = Image.Exif()
    kept.load(tags.tobytes())
    for tag in left_out.intersection(kept):
        del kept[tag]
    return bytes(kept.tobytes())


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (type, whole chunk) of a PNG file."""
    at = 8
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        yield name, data[at : at + length + 12]
        at += length + 12


def _webp_chunks(data: bytes) -> Iterator[bytes]:
    """Yield the types of a WebP file's chunks."""
    at = 12
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        yield name
        at += 8 + length + length % 2


# ----------------------------------------------------------------------------------------------- writing


def _to_samples(
    restored: NDArray[np.float32], like: Photo, bits: int
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return (h, w, c), for grey (h, w), in the file's depth, rounded to nearest, with alpha as it was."""
    dtype, top = (np.uint16, 65535) if bits == 16 else (np.uint8, 255)
    colour = restored.mean(axis=0, keepdims=True) if like.grey else restored
    samples = np.rint(np.clip(colour, 0, 1).astype(np.float64) * top).astype(dtype)
    if like.alpha is not None:
        alpha = like.alpha if like.alpha.dtype == dtype else (like.alpha >> 8).astype(dtype)
        samples = np.concatenate([samples, alpha[None]])
    return np.ascontiguousarray(np.moveaxis(samples, 0, 2)) if len(samples) > 1 else samples[0]


def _encode(kind: str, samples: NDArray[np.uint8] | NDArray[np.uint16], like: Photo) -> bytes:
    if kind == "PNG":
        return _encode_png(samples, like)
    if kind == "TIFF":
        return _encode_tiff(samples, like)
    image = Image.fromarray(samples)
    exif = _portable_exif(like)
    out = io.BytesIO()
    if kind == "JPEG":
        image.save(
            out,
            kind,
            quality=95,
            subsampling=0,
            exif=exif,
            icc_profile=like.icc,
            xmp=like.xmp,
            dpi=like.dpi or (0, 0),
            comment=like.comment,
        )
    elif kind == "WEBP":
        image.save(
            out,
            kind,
            quality=95,
            lossless=like.lossless,
            exact=True,
            exif=exif,
            icc_profile=like.icc,
            xmp=like.xmp,
        )
    else:
        image.save(out, kind, dpi=like.dpi or (96, 96))
    return out.getvalue()


def _portable_exif(like: Photo) -> bytes:
    if like.format != "TIFF":
        return like.exif
    tags = Image.Exif()
    tags.load(like.exif)
    return _without(tags, _TIFF_ONLY_TAGS)


def _encode_png(samples: NDArray[np.uint8] | NDArray[np.uint16], like: Photo) -> bytes:
    """Return a PNG with the kept chunks right after its header, where every one of them may stand."""
    kept = list(like.chunks)
    if like.format != "PNG" and like.icc:
        kept.append(_png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(like.icc)))
    if like.format != "PNG" and like.exif:
        kept.append(_png_chunk(b"eXIf", _portable_exif(like).removeprefix(b"Exif\0\0")))
    data = bytes(imagecodecs.png_encode(samples))
    header_end = 8 + 25
    return data[:header_end] + b"".join(kept) + data[header_end:]


def _png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _encode_tiff(samples: NDArray[np.uint8] | NDArray[np.uint16], like: Photo) -> bytes:
    """Return a TIFF whose pixels are one uncompressed strip behind the tags."""
    height, width = samples.shape[:2]
    channels = samples.size // (height * width)
    tags = Image.Exif()
    tags.load(like.exif)
    if like.icc:
        tags[34675] = like.icc
    pixels = samples.astype(samples.dtype.newbyteorder("<")).tobytes()
    tags.endian = "<"
    tags[256], tags[257] = width, height
    tags[258] = (8 * samples.itemsize,) * channels
    tags[259] = 1  # no compression
    tags[262] = 1 if channels < 3 else 2  # black is zero, RGB
    tags[273] = 0  # Pillow adds where the tags end
    tags[277] = channels
    tags[278] = height
    tags[279] = len(pixels)
    if channels in (2, 4):
        tags[338] = 2  # alpha that is not multiplied in
    return bytes(tags.tobytes().removeprefix(b"Exif\0\0")) + pixels
