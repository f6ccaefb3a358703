"""Tell the format of an image file from its first bytes."""

from __future__ import annotations

import importlib.util

# Relative, because each registered model version contains a copy of this package and of the errors.
from ..errors import UnsupportedPhotoError

__all__ = ["PICTURE_SUFFIXES", "READ_SUFFIXES", "SUFFIXES", "identify"]

SUFFIXES = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".bmp": "BMP",
}
"""Suffixes of the formats that are read and written."""

HAS_HEIC = importlib.util.find_spec("pi_heif") is not None
"""Whether HEIC files are read: the package for it is optional, since its libraries have the licence LGPL."""
_HEIC_SUFFIXES = {".heic": "HEIC", ".heif": "HEIC"}
READ_SUFFIXES = {**SUFFIXES, ".avif": "AVIF", ".gif": "GIF", **(_HEIC_SUFFIXES if HAS_HEIC else {})}
"""Suffixes of the formats that are read."""

_OTHER_SUFFIXES = """
avif bpg exr gif hdr heic heif j2k jfif jp2 jpe jxl jxr pbm pdf pgm pnm ppm psb psd qoi svg tga xcf
3fr arw cr2 cr3 dng erf iiq kdc mef mrw nef nrw orf pef raf raw rw2 sr2 srw x3f
"""
PICTURE_SUFFIXES = frozenset(f".{suffix}" for suffix in _OTHER_SUFFIXES.split())
"""Suffixes of pictures in formats that are not written."""

_CONVERT = "Convert it to PNG or JPEG first"
_DEVELOP = "Develop it into a TIFF or JPEG first"
_OTHERS = (
    (b"8BPS", "a Photoshop file", "Export it as TIFF or PNG first"),
    (b"%PDF", "a PDF", "Export its pages as PNG first"),
    (b"%!PS", "a PostScript program", "Export it as PNG first"),
    (b"\xff\x0a", "a JPEG XL", _CONVERT),
    (b"\0\0\0\x0cJXL ", "a JPEG XL", _CONVERT),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000", _CONVERT),
    (b"\xff\x4f\xff\x51", "a JPEG 2000", _CONVERT),
    (b"II\xbc", "a JPEG XR", _CONVERT),
    (b"v/1\x01", "an OpenEXR", "Convert it to a 16-bit TIFF first"),
    (b"#?RADIANCE", "a Radiance HDR", "Convert it to a 16-bit TIFF first"),
    (b"qoif", "a QOI", _CONVERT),
    (b"FUJIFILMCCD-RAW", "a raw file of a camera", _DEVELOP),
    (b"IIU\0", "a raw file of a camera", _DEVELOP),
    (b"IIRO", "a raw file of a camera", _DEVELOP),
    (b"\0MRM", "a raw file of a camera", _DEVELOP),
    (b"FOVb", "a raw file of a camera", _DEVELOP),
    (b"gimp xcf", "a GIMP file", "Export it as TIFF or PNG first"),
    (b"<svg", "an SVG drawing", "Export it as PNG first"),
)
_HEIC = (
    "a HEIC",
    "Install what reads it (pip install 'mirage-orchestrator[heic]'), or convert it to JPEG or PNG first",
)
_HEIC_FILM = ("a HEIC of several pictures", "Save one of its pictures as JPEG or PNG first")
_STILL_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis"})
_BRANDS = {
    **dict.fromkeys([*_STILL_HEIC, b"mif1"], _HEIC),
    **dict.fromkeys([b"hevc", b"hevx", b"msf1"], _HEIC_FILM),
    b"avis": ("an animated AVIF", "Save one of its pictures as PNG first"),
    b"crx ": ("a raw file of a camera", _DEVELOP),
}


def identify(data: bytes, name: str) -> str:
    """Return JPEG, PNG, TIFF, WEBP, BMP, AVIF, GIF or HEIC.

    Raises UnsupportedPhotoError for another file, called `name`, and for a HEIC where the package for it is missing.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") and data[8:11] != b"CR\x02":
        return "TIFF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:2] == b"BM":
        return "BMP"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[4:8] == b"ftyp" and data[8:12] != b"avis" and b"avif" in _brands(data):
        return "AVIF"
    if HAS_HEIC and data[4:8] == b"ftyp" and data[8:12] in (*_STILL_HEIC, b"mif1") and _is_heic(data):
        return "HEIC"
    raise UnsupportedPhotoError(f"{name}: {_what_else(data)}")


def _is_heic(data: bytes) -> bool:
    return not _STILL_HEIC.isdisjoint(_brands(data))


def _brands(data: bytes) -> tuple[bytes, ...]:
    """Return the brands of an ISO base media file; those from the second on are compatible ones."""
    end = min(int.from_bytes(data[:4], "big"), len(data), 512)
    return tuple(data[at : at + 4] for at in (8, *range(16, end, 4)))


def _what_else(data: bytes) -> str:
    if data[4:8] == b"ftyp":
        what, remedy = _BRANDS.get(data[8:12], ("a video", "Save its frames as PNG first"))
        return f"is {what}, which is not read here. {remedy}."
    if data[:4] in (b"II*\0", b"MM\0*"):
        return f"is a raw file of a camera, which is not read here. {_DEVELOP}."
    for magic, what, remedy in _OTHERS:
        if data.startswith(magic):
            return f"is {what}, which is not read here. {remedy}."
    return "not a JPEG, PNG, TIFF, WebP, BMP, AVIF, GIF or HEIC file. Convert it to one first."
