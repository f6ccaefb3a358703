"""Tell the format of an image file from its first bytes."""

from __future__ import annotations

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

READ_SUFFIXES = {**SUFFIXES, ".avif": "AVIF", ".gif": "GIF"}
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
_HEIC = ("a HEIC", "Convert it to JPEG or PNG first, for example by `heif-convert`")
_BRANDS = {
    **dict.fromkeys([b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"], _HEIC),
    b"avis": ("an animated AVIF", "Save one of its pictures as PNG first"),
    b"crx ": ("a raw file of a camera", _DEVELOP),
}


def identify(data: bytes, name: str) -> str:
    """Return JPEG, PNG, TIFF, WEBP, BMP, AVIF or GIF. Raises UnsupportedPhotoError for another file, called `name`."""
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
    raise UnsupportedPhotoError(f"{name}: {_what_else(data)}")


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
    return "not a JPEG, PNG, TIFF, WebP, BMP, AVIF or GIF file. Convert it to one first."
