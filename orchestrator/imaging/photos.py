"""Read and write photographs, as files or bytes, and keep their metadata through a restoration.

Size, format, bit depth, grey or colour, alpha and all metadata are kept; AVIF, GIF and HEIC become PNG. Pixels are used
as stored: no profile and no orientation is applied, since viewers apply both to the result as they did to the original.
Exceptions: CMYK and CIELAB become sRGB, and a HEIC is used as it is shown, cropped and turned. Alpha and an unlabelled
extra channel are copied, not restored.

formats    which format a file has
samples    its pixels
metadata   everything else, as bytes
boxes      what an AVIF or HEIC says
streams    how many pixels it codes
decoders   its pixels, from a process of its own
tags       the directories of TIFF and EXIF
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Relative, because each registered model version contains a copy of this package and of the errors.
from ..errors import PhotoError, ResultError
from .formats import SUFFIXES, identify
from .metadata import NONE, Metadata, attach, fitting, read_metadata, tiff_tags
from .samples import DECODE_ERRORS, SRGB, Pixels, Samples, decode_samples, open_image, pages_of, size_of
from .tags import LONG, SHORT, dump

__all__ = ["LIMITS", "SUFFIXES", "Limits", "Photo", "decode", "encode", "image_size", "losses", "read_photo"]


@dataclass(frozen=True)
class Limits:
    """Maximum size of a photograph. A larger file is refused before its pixels are decoded."""

    bytes: int = 2**30
    """Size of the file in bytes."""
    pixels: int = 178_956_970
    """Height times width. The default is Pillow's limit for a decompression bomb: 0.5 GiB of 8-bit colour."""


LIMITS = Limits()
"""Limits for files that the user chose. A service, whose files are untrusted, sets its own."""

_HOLDS_ALPHA = frozenset({"PNG", "TIFF", "WEBP"})
_JPEG_QUALITY = 95
_BLOCK_PIXELS = 2**20


@dataclass(frozen=True)
class Photo:
    """A photograph and the metadata of its file."""

    name: str
    """Name in messages: a path, or the sender's file name."""
    pixels: NDArray[np.float32]
    """(3, h, w) in [0, 1]. A grey photograph has three equal channels."""
    format: str
    """JPEG, PNG, TIFF, WEBP, BMP, AVIF, GIF or HEIC."""
    bits: int = 8
    """8 or 16, 12 in a JPEG, 10 or 12 in an AVIF or HEIC, 16 to 64 of floats in a TIFF."""
    floats: bool = False
    grey: bool = False
    extra: Pixels | None = None
    """(h, w), in the file's depth: a channel that is not a colour."""
    has_alpha: bool = False
    """Whether `extra` is transparency."""
    lossless: bool = True
    metadata: Metadata = field(default=NONE)
    notes: tuple[str, ...] = ()
    """What the result will lack or change in every format, in words."""

    @property
    def size(self) -> tuple[int, int]:
        """Return (height, width)."""
        return self.pixels.shape[1], self.pixels.shape[2]

    @property
    def result_format(self) -> str:
        """Return the format of a result unless another is asked for."""
        return self.format if self.format in SUFFIXES.values() else "PNG"


def decode(data: bytes, name: str, limits: Limits = LIMITS) -> Photo:
    """Decode a JPEG, PNG, TIFF, WebP, BMP, AVIF, GIF or HEIC file, called `name` in messages. Raises PhotoError."""
    kind = identify(data, name)
    if len(data) > limits.bytes:
        raise PhotoError(
            f"{name}: has {len(data) / 2**20:.1f} MiB, more than the limit of {limits.bytes / 2**20:.1f}."
        )
    try:
        return _decode(kind, data, name, limits)
    except Image.DecompressionBombError as error:
        raise _too_large(name, limits) from error
    except DECODE_ERRORS as error:
        raise _damaged(name, error) from error


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """Return (height, width) as the header of a file says, without decoding it.

    Raises UnsupportedPhotoError for another format, PhotoError for a damaged header.
    """
    kind = identify(data, name)
    try:
        return size_of(kind, data, pages_of(data, name).main if kind == "TIFF" else None)
    except Image.DecompressionBombError:
        return 2**31, 2**31  # Pillow's own limit; it does not tell the size
    except DECODE_ERRORS as error:
        raise _damaged(name, error) from error


def encode(restored: NDArray[np.float32], like: Photo, kind: str | None = None) -> bytes:
    """Return `restored`, (3, h, w) in [0, 1], as the bytes of a file with the format and metadata of `like`.

    Another format `kind` keeps what it has a place for; `losses` names the rest. JPEG and lossy WebP are written at
    quality 95, JPEG without chroma subsampling. Raises ResultError when `restored` is not finite, PhotoError when the
    format cannot hold it.
    """
    kind = kind or like.result_format
    if restored.shape != like.pixels.shape:
        raise ValueError(f"restored has shape {restored.shape}, the photograph {like.pixels.shape}")
    if not np.isfinite(restored).all():
        raise ResultError(
            f"{like.name}: the model's result has values that are not finite. Use another model."
        )
    _check_alpha(like.name, kind, like)
    try:
        return _encode(kind, _to_samples(restored, like, kind), like)
    except DECODE_ERRORS as error:  # for example too many pixels per side
        remedy = "Use .png." if kind != "PNG" else "Use .tif."
        raise PhotoError(f"{like.name}: cannot be written as {kind} ({error}). {remedy}") from error


def losses(like: Photo, kind: str | None = None) -> str:
    """Return what a result in a format does not keep of the photograph's file, as one sentence; "" if it keeps all."""
    kind = kind or like.result_format
    lost = [*like.notes, *fitting(like.metadata, kind)[1]]
    if like.extra is not None and not like.has_alpha and kind != "TIFF":
        lost.append("the unlabelled extra channel")
    if like.bits > _depth(kind, like)[0]:
        lost.append(f"the depth of {like.bits} bits")
    return f"{like.name}: not kept in the {kind}: {', '.join(lost)}." if lost else ""


def format_for(name: str, like: Photo) -> str:
    """Return the format of a result called `name`, by its suffix, or the photograph's if both have the same suffix.

    So a PNG file with the suffix .jpg stays a PNG; an AVIF with that suffix becomes a JPEG. Raises PhotoError when the
    format cannot hold the photograph.
    """
    suffix = Path(name).suffix.lower()
    if suffix == Path(like.name).suffix.lower() and (
        like.format == like.result_format or suffix not in SUFFIXES
    ):
        kind = like.result_format
    elif suffix in SUFFIXES:
        kind = SUFFIXES[suffix]
    else:
        raise PhotoError(f"{name}: the name must end in one of {', '.join(SUFFIXES)}")
    _check_alpha(name, kind, like)
    return kind


def read_photo(path: Path) -> Photo:
    """Read a JPEG, PNG, TIFF, WebP, BMP, AVIF, GIF or HEIC file. Raises PhotoError."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise PhotoError(f"{path}: cannot be read (not a regular file)")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PhotoError(f"{path}: cannot be read ({error.strerror})") from error
    return decode(data, str(path))


def _check_alpha(name: str, kind: str, like: Photo) -> None:
    if like.has_alpha and kind not in _HOLDS_ALPHA:
        raise PhotoError(f"{name}: {like.name} has transparency, which {kind} cannot store. Use .png.")


def _damaged(name: str, error: Exception) -> PhotoError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return PhotoError(f"{name}: damaged or incomplete ({reason})")


def _too_large(name: str, limits: Limits) -> PhotoError:
    return PhotoError(f"{name}: has more than {limits.pixels / 1e6:.0f} million pixels. Split it.")


def _decode(kind: str, data: bytes, name: str, limits: Limits) -> Photo:
    pages = pages_of(data, name) if kind == "TIFF" else None
    directory = pages.main if pages else None
    height, width = size_of(kind, data, directory)
    if height * width > limits.pixels:
        raise _too_large(name, limits)
    info: dict[str, Any] = {}
    if kind in ("WEBP", "BMP", "GIF"):
        with open_image(data, kind) as image:
            info = {str(key): value for key, value in image.info.items()}
    metadata = read_metadata(kind, data, info, directory)
    samples = decode_samples(kind, data, name, pages, metadata.icc)
    notes = []
    if samples.converted:
        metadata = _with_srgb(metadata)
        notes.append(f"the colours as {samples.converted}, which became sRGB")
    if pages and pages.others:
        notes.append("thumbnails and masks")
    return Photo(
        name=name,
        pixels=_to_rgb(samples),
        format=kind,
        bits=samples.bits,
        floats=samples.colour.dtype.kind == "f",
        grey=samples.colour.shape[2] == 1,
        extra=samples.extra,
        has_alpha=samples.extra is not None and samples.is_alpha,
        lossless=kind in ("PNG", "TIFF", "BMP", "GIF") or (kind == "WEBP" and _is_lossless_webp(data)),
        metadata=metadata,
        notes=tuple(notes),
    )


def _with_srgb(metadata: Metadata) -> Metadata:
    """Return metadata for pixels that were converted: as of another format, with the profile of sRGB."""
    named = tuple((name, b"") for name, _ in metadata.own if name)
    return replace(metadata, format="", icc=SRGB, own=named)


def _to_rgb(samples: Samples) -> NDArray[np.float32]:
    """Return the colours as (3, h, w) in [0, 1]."""
    height, width, _ = samples.colour.shape
    planes = np.broadcast_to(np.moveaxis(samples.colour, 2, 0), (3, height, width))
    pixels = planes.astype(np.float32)
    pixels /= np.float32(samples.white)
    return pixels


def _is_lossless_webp(data: bytes) -> bool:
    at = 12
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        if name == b"VP8L":
            return True
        at += 8 + length + length % 2
    return False


def _depth(kind: str, like: Photo) -> tuple[int, np.dtype[Any]]:
    """Return bits and type of the samples of a result."""
    if kind == "TIFF":
        kept = like.bits if like.floats or like.bits in (8, 16) else 16
        return kept, np.dtype(f"{'f' if like.floats else 'u'}{kept // 8}")
    if kind == like.format == "JPEG" and like.bits == 12:
        return 12, np.dtype(np.uint16)
    bits = 16 if kind == "PNG" and like.bits > 8 else 8
    return bits, np.dtype(f"u{bits // 8}")


def _to_samples(restored: NDArray[np.float32], like: Photo, kind: str) -> NDArray[Any]:
    """Return (h, w, c) samples, or (h, w) for grey, rounded to nearest, with the original extra channel."""
    bits, dtype = _depth(kind, like)
    height, width = like.size
    colours = 1 if like.grey else 3
    extra = like.extra if like.has_alpha or kind == "TIFF" else None
    samples = np.empty((height, width, colours + (extra is not None)), dtype)
    rows = max(
        1, _BLOCK_PIXELS // width
    )  # by blocks, since each of 8 bytes a sample would be the peak of memory
    for top in range(0, height, rows):
        block = restored[:, top : top + rows]
        colour = np.clip(block.mean(axis=0, keepdims=True) if like.grey else block, 0, 1)
        if dtype.kind == "u":
            colour = np.rint(colour.astype(np.float64) * (2**bits - 1))
        samples[top : top + rows, :, :colours] = np.moveaxis(colour, 0, 2)
    if extra is not None:
        samples[..., -1] = _in_depth(extra, dtype)
    return samples if samples.shape[2] > 1 else samples.reshape(height, width)


def _in_depth(extra: Pixels, dtype: np.dtype[Any]) -> NDArray[Any]:
    if extra.dtype == dtype:
        return extra
    if extra.dtype == np.uint16 and dtype == np.uint8:
        return (extra >> 8).astype(dtype)
    white = 1.0 if extra.dtype.kind == "f" else float(np.iinfo(extra.dtype).max)
    return np.rint(np.clip(extra.astype(np.float64) / white, 0, 1) * np.iinfo(dtype).max).astype(dtype)


def _encode(kind: str, samples: NDArray[Any], like: Photo) -> bytes:
    metadata, _ = fitting(like.metadata, kind)
    if kind == "PNG":
        return attach(kind, bytes(imagecodecs.png_encode(samples)), metadata)
    if kind == "TIFF":
        return _encode_tiff(samples, like, metadata)
    if kind == "JPEG" and samples.dtype == np.uint16:
        file = imagecodecs.jpeg8_encode(samples, level=_JPEG_QUALITY, bitspersample=12, subsampling="444")
        return attach(kind, bytes(file), metadata)
    options: dict[str, Any] = {"quality": _JPEG_QUALITY}
    if kind == "JPEG":
        options |= {"subsampling": 0}
    elif kind == "WEBP":
        options |= {"lossless": like.lossless, "exact": True}
        options |= {"exif": metadata.exif, "icc_profile": metadata.icc, "xmp": metadata.xmp}
    else:
        options = {"dpi": metadata.dpi or (96, 96)}
    out = io.BytesIO()
    Image.fromarray(samples).save(out, kind, **options)
    return attach(kind, out.getvalue(), metadata) if kind == "JPEG" else out.getvalue()


def _encode_tiff(samples: NDArray[Any], like: Photo, metadata: Metadata) -> bytes:
    """Return a TIFF whose pixels are one uncompressed strip after the tags."""
    height, width = samples.shape[:2]
    channels = samples.size // (height * width)
    page = tiff_tags(metadata)
    pixels = samples.astype(samples.dtype.newbyteorder(page.order)).tobytes()  # type: ignore[arg-type]
    page.set(256, LONG, width)
    page.set(257, LONG, height)
    page.set(258, SHORT, *[8 * samples.itemsize] * channels)
    page.set(259, SHORT, 1)  # no compression
    page.set(262, SHORT, 1 if like.grey else 2)  # black is zero, RGB
    page.set(277, SHORT, channels)
    page.set(278, LONG, height)
    page.set(279, LONG, len(pixels))
    if like.floats:
        page.set(339, SHORT, *[3] * channels)
    if like.extra is not None:
        page.set(338, SHORT, 2 if like.has_alpha else 0)  # alpha that is not premultiplied, or not said
    return dump(page, pixels)
