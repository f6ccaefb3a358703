"""Read and write photographs, as files or bytes, and keep their metadata through a restoration.

Size, format, bit depth (8 or 16), grey or colour, alpha, EXIF, ICC profile, XMP and resolution are kept. Pixels are
used as stored: no profile and no orientation is applied, since viewers apply both to the result as they did to the
original. Alpha is copied, not restored.

Pillow reads 8-bit files. It has no mode for 16-bit colour, so imagecodecs reads and writes those pixels, and this
module copies PNG chunks and TIFF tags.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

# Relative, because each registered model version contains a copy of this module and of the errors.
from ..errors import PhotoError, ResultError

__all__ = ["LIMITS", "Limits", "Photo", "decode", "encode", "read_photo"]


@dataclass(frozen=True)
class Limits:
    """Maximum size of a photograph. A larger file is refused before its pixels are decoded."""

    bytes: int = 2**30
    """Size of the file in bytes."""
    pixels: int = 178_956_970
    """Height times width. The default is Pillow's limit for a decompression bomb: 0.5 GiB of 8-bit colour."""


LIMITS = Limits()
"""Limits for files that the user chose. A service with files of strangers sets its own."""

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

# Ancillary PNG chunks that stay valid when the pixels change.
_KEPT_CHUNKS = frozenset(
    [b"eXIf", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"pHYs", b"tEXt", b"iTXt", b"zTXt", b"tIME"]
)
# TIFF tags about the layout of pixels in the file; the writer sets its own.
_LAYOUT_TAGS = frozenset(
    {*range(254, 260), 262, 266, 273, *range(277, 282), 284, 292, 293, 317, 320, *range(322, 326), 330}
    | {*range(338, 342), 347, *range(512, 515), *range(529, 533)}
)
# TIFF tags that other formats store outside EXIF: XMP, IPTC, Photoshop's, the ICC profile.
_TIFF_ONLY_TAGS = frozenset({700, 33723, 34377, 34675, 37724})

# Errors of Pillow and imagecodecs for damaged files, including missing or invalid TIFF tags.
DECODE_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, struct.error),
    *(imagecodecs.PngError, imagecodecs.TiffError),
)

_ORIENTATION = 274
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
class Photo:
    """A photograph and the metadata of its file."""

    name: str
    """Name in messages: a path, or the sender's file name."""
    pixels: NDArray[np.float32]
    """(3, h, w) in [0, 1]. A grey photograph has three equal channels."""
    format: str
    """JPEG, PNG, TIFF, WEBP or BMP."""
    bits: int = 8
    grey: bool = False
    alpha: NDArray[np.uint8] | NDArray[np.uint16] | None = None
    """(h, w), in the file's depth."""
    exif: bytes = b""
    """EXIF block. For TIFF every tag that is not about layout, with its sub-directories."""
    icc: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    comment: bytes = b""
    chunks: tuple[bytes, ...] = ()
    """PNG only: whole chunks, copied unchanged."""
    lossless: bool = True

    @property
    def size(self) -> tuple[int, int]:
        """Return (height, width)."""
        return self.pixels.shape[1], self.pixels.shape[2]


@contextmanager
def open_image(data: bytes) -> Iterator[Image.Image]:
    """Open an image file of a known format and read its header only. Raises Pillow's errors."""
    with warnings.catch_warnings():
        # Warnings are about metadata, and about Pillow's own limit of pixels: callers check theirs.
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=sorted(set(SUFFIXES.values()))) as image:
            yield image


def decode(data: bytes, name: str, limits: Limits = LIMITS) -> Photo:
    """Decode a JPEG, PNG, TIFF, WebP or BMP file, called `name` in messages. Raises PhotoError."""
    if len(data) > limits.bytes:
        raise PhotoError(
            f"{name}: has {len(data) / 2**20:.1f} MiB, more than the limit of {limits.bytes / 2**20:.1f}."
        )
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
    """Return `restored`, (3, h, w) in [0, 1], as the bytes of a file with the format and metadata of `like`.

    With another format `kind`, EXIF and ICC profile are kept, and the depth if that format has 16 bits. JPEG and
    lossy WebP are written at quality 95, JPEG without chroma subsampling. Raises ResultError when `restored` is not
    finite, PhotoError when the format cannot hold it.
    """
    kind = kind or like.format
    if restored.shape != like.pixels.shape:
        raise ValueError(f"restored has shape {restored.shape}, the photograph {like.pixels.shape}")
    if not np.isfinite(restored).all():
        raise ResultError(
            f"{like.name}: the model's result has values that are not finite. Use another model."
        )
    _check_alpha(like.name, kind, like)
    samples = _to_samples(restored, like, like.bits if kind in _HOLDS_16_BITS else 8)
    try:
        return _encode(kind, samples, like)
    except (OSError, ValueError) as error:  # for example too many pixels per side, or too long an EXIF block
        raise PhotoError(f"{like.name}: cannot be written as {kind} ({error}). Use .png.") from error


def format_for(name: str, like: Photo) -> str:
    """Return the format of a result called `name`, by its suffix, or the photograph's if both have the same suffix.

    So a PNG file with the suffix .jpg stays a PNG. Raises PhotoError when the format cannot hold the photograph.
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


def read_photo(path: Path) -> Photo:
    """Read a JPEG, PNG, TIFF, WebP or BMP file. Raises PhotoError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PhotoError(f"{path}: cannot be read ({error.strerror})") from error
    return decode(data, str(path))


def _check_alpha(name: str, kind: str, like: Photo) -> None:
    if like.alpha is not None and kind not in _HOLDS_ALPHA:
        raise PhotoError(f"{name}: {like.name} has transparency, which {kind} cannot store. Use .png.")


def _too_large(name: str, limits: Limits) -> PhotoError:
    return PhotoError(f"{name}: has more than {limits.pixels / 1e6:.0f} million pixels. Split it.")


# ----------------------------------------------------------------------------------------------- reading


def _decode(name: str, data: bytes, image: Image.Image) -> Photo:
    """Return the photograph of an open image and its file's bytes."""
    kind = "JPEG" if image.format == "MPO" else str(image.format)  # an MPO begins with a plain JPEG
    pictures = 1 if kind == "JPEG" else getattr(image, "n_frames", 1)
    if pictures > 1:
        raise PhotoError(f"{name}: holds {pictures} pictures, and a photograph has one. Split the file.")
    # Before the pixels, because Pillow drops the orientation of a TIFF when it loads them.
    exif = _tiff_tags(image) if kind == "TIFF" else image.info.get("exif") or b""
    samples = _samples(name, kind, data, image)
    channels = samples.shape[2]
    has_alpha = channels in (2, 4)
    return Photo(
        name=name,
        pixels=_to_rgb(samples[..., : channels - has_alpha]),
        format=kind,
        bits=samples.dtype.itemsize * 8,
        grey=channels < 3,
        alpha=samples[..., -1].copy() if has_alpha else None,
        lossless=kind in ("PNG", "TIFF", "BMP") or (kind == "WEBP" and b"VP8L" in _webp_chunks(data)),
        exif=exif,
        **_metadata(kind, data, image),
    )


def _metadata(kind: str, data: bytes, image: Image.Image) -> dict[str, Any]:
    """Return the fields of `Photo` with other metadata of a loaded image: a PNG may have some after its pixels."""
    info = image.info
    kept = (chunk for name, chunk in _png_chunks(data) if name in _KEPT_CHUNKS) if kind == "PNG" else ()
    return {
        "icc": info.get("icc_profile") or b"",
        "xmp": info.get("xmp") or b"",
        "dpi": info.get("dpi"),
        "comment": info.get("comment") or b"" if kind == "JPEG" else b"",
        "chunks": tuple(kept),
    }


def _samples(name: str, kind: str, data: bytes, image: Image.Image) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return the (h, w, c) samples of the file, c from 1 to 4, in its own depth."""
    width, height = (image.tag_v2[256], image.tag_v2[257]) if kind == "TIFF" else image.size  # type: ignore[attr-defined]
    samples = _samples_16(name, data, image) if _has_16_bits(kind, data, image) else _samples_8(name, image)
    if samples.shape[:2] != (height, width) or samples.shape[2] > 4:
        raise PhotoError(f"{name}: has an unusual layout {samples.shape}. Save it as RGB first.")
    return samples


def _to_rgb(colour: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return (h, w, 1 or 3) samples as (3, h, w) in [0, 1]."""
    maximum = np.float32(np.iinfo(colour.dtype).max)
    planes = np.broadcast_to(np.moveaxis(colour, 2, 0), (3, *colour.shape[:2]))
    return planes.astype(np.float32) / maximum


def _has_16_bits(kind: str, data: bytes, image: Image.Image) -> bool:
    if kind == "PNG":
        return data[24] == 16  # IHDR's bit depth
    return kind == "TIFF" and set(image.tag_v2.get(258, ())) == {16}  # type: ignore[attr-defined]


def _samples_16(name: str, data: bytes, image: Image.Image) -> NDArray[np.uint16]:
    """Return the (h, w, c) samples of a PNG or TIFF file with 16 bits per sample."""
    if image.format == "PNG":
        samples = np.asarray(imagecodecs.png_decode(data))
    else:
        samples = np.asarray(imagecodecs.tiff_decode(data))
        # Photometric (262): 1 and 2 are grey and RGB. Extra samples (338): 2 is alpha that is not premultiplied.
        tags = image.tag_v2  # type: ignore[attr-defined]
        if samples.dtype != np.uint16 or tags.get(262) not in (1, 2) or tags.get(338, (2,)) != (2,):
            raise PhotoError(f"{name}: has unusual 16-bit samples. Save it as plain grey or RGB first.")
    return samples.reshape(*samples.shape[:2], -1)


def _samples_8(name: str, image: Image.Image) -> NDArray[np.uint8]:
    """Return the (h, w, c) samples of a file with at most 8 bits per sample, with palette colours resolved."""
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
    """Return the tags of a TIFF that are not about layout, as an EXIF block."""
    tags = image.getexif()
    for directory in (34665, 34853, 40965):  # EXIF, GPS, interoperability
        if directory in tags:  # loads it, so that `_without` copies it
            tags.get_ifd(directory)
    return _without(tags, _LAYOUT_TAGS)


def _without(tags: Image.Exif, left_out: frozenset[int]) -> bytes:
    kept = Image.Exif()
    kept.load(tags.tobytes())
    for tag in left_out.intersection(kept):
        del kept[tag]
    return bytes(kept.tobytes())


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (type, whole chunk) of each chunk of a PNG file."""
    at = 8
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        yield name, data[at : at + length + 12]
        at += length + 12


def _webp_chunks(data: bytes) -> Iterator[bytes]:
    """Yield the type of each chunk of a WebP file."""
    at = 12
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        yield name
        at += 8 + length + length % 2


# ----------------------------------------------------------------------------------------------- writing


def _to_samples(
    restored: NDArray[np.float32], like: Photo, bits: int
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return (h, w, c) samples, or (h, w) for grey, in `bits`, rounded to nearest, with the original alpha."""
    dtype, maximum = (np.uint16, 65535) if bits == 16 else (np.uint8, 255)
    colour = restored.mean(axis=0, keepdims=True) if like.grey else restored
    samples = np.rint(np.clip(colour, 0, 1).astype(np.float64) * maximum).astype(dtype)
    if like.alpha is not None:
        alpha = like.alpha if like.alpha.dtype == dtype else (like.alpha >> 8).astype(dtype)
        samples = np.concatenate([samples, alpha[None]])
    return np.ascontiguousarray(np.moveaxis(samples, 0, 2)) if len(samples) > 1 else samples[0]


def _encode(kind: str, samples: NDArray[np.uint8] | NDArray[np.uint16], like: Photo) -> bytes:
    if kind == "PNG":
        return _encode_png(samples, like)
    if kind == "TIFF":
        return _encode_tiff(samples, like)
    options: dict[str, Any] = {
        "exif": _portable_exif(like),
        "icc_profile": like.icc,
        "xmp": like.xmp,
        "quality": 95,
    }
    if kind == "JPEG":
        options |= {"subsampling": 0, "dpi": like.dpi or (0, 0), "comment": like.comment}
    elif kind == "WEBP":
        options |= {"lossless": like.lossless, "exact": True}
    else:
        options = {"dpi": like.dpi or (96, 96)}
    out = io.BytesIO()
    Image.fromarray(samples).save(out, kind, **options)
    return out.getvalue()


def _portable_exif(like: Photo) -> bytes:
    if like.format != "TIFF":
        return like.exif
    tags = Image.Exif()
    tags.load(like.exif)
    return _without(tags, _TIFF_ONLY_TAGS)


def _encode_png(samples: NDArray[np.uint8] | NDArray[np.uint16], like: Photo) -> bytes:
    """Return a PNG with the kept chunks right after its header, where each of them is allowed."""
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
    """Return a TIFF whose pixels are one uncompressed strip after the tags."""
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
    tags[273] = 0  # Pillow adds the offset of the end of the tags
    tags[277] = channels
    tags[278] = height
    tags[279] = len(pixels)
    if channels in (2, 4):
        tags[338] = 2  # alpha that is not premultiplied
    return bytes(tags.tobytes().removeprefix(b"Exif\0\0")) + pixels
