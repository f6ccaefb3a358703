"""Carry what a file says beside its pixels to the restored file, as bytes.

A result in the format of the photograph gets the metadata of its file byte for byte. In another format, the parts
that several formats know (EXIF, ICC profile, XMP, Photoshop's with IPTC, resolution) get that format's frame, and
`fitting` names the parts that it has no place for.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from .boxes import READERS, Still
from .tags import SHORT, Directory, Tag, dump, read_exif

__all__ = ["NONE", "Metadata", "attach", "chunks_of", "fitting", "read_metadata", "segments_of", "tiff_tags"]


@dataclass(frozen=True)
class Metadata:
    """What a file says beside its pixels."""

    format: str = ""
    """Format of the file that it comes from."""
    exif: bytes = b""
    """EXIF block in its inner form, a TIFF structure."""
    icc: bytes = b""
    xmp: bytes = b""
    photoshop: bytes = b""
    """Image resources of Photoshop, which contain IPTC."""
    dpi: tuple[float, float] | None = None
    cicp: bytes = b""
    """Colour space in the four numbers of a PNG's cICP chunk, of a format that has no such chunk."""
    own: tuple[tuple[str, bytes], ...] = ()
    """Segments of a JPEG, chunks of a PNG, or the directory of a TIFF, whole and in the order of the file. Each has a
    name if no other field contains what it says."""
    unreadable: tuple[str, ...] = ()
    """Parts that are damaged, or are wrong once the pixels have changed."""

    @property
    def orientation(self) -> int:
        """How viewers turn the picture, 1 to 8; 1 is as stored."""
        directory = read_exif(self.exif) if self.exif else None
        found = directory.number(_ORIENTATION, 1) if directory else 1
        return found if 1 <= found <= 8 else 1


NONE = Metadata()

_EXIF_HEAD, _PHOTOSHOP_HEAD, _ICC_HEAD = b"Exif\0\0", b"Photoshop 3.0\0", b"ICC_PROFILE\0"
_XMP_HEAD, _MORE_XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
_SEGMENT = 65_533
"""Bytes of the body of a JPEG segment."""
_XMP_KEYWORD = b"XML:com.adobe.xmp"
_MAX_PROFILE = 2**26
"""Bytes of a profile or XMP packet after decompression."""
_INCH = 0.0254
_IPTC_RESOURCE = 0x0404

_ORIENTATION, _X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 274, 282, 283, 296
_XMP_TAG, _IPTC_TAG, _PHOTOSHOP_TAG, _ICC_TAG, _LAYERS_TAG = 700, 33723, 34377, 34675, 37724
_TIFF_ONLY_TAGS = frozenset({_XMP_TAG, _IPTC_TAG, _PHOTOSHOP_TAG, _ICC_TAG, _LAYERS_TAG})
"""Tags that other formats store outside EXIF."""
_LAYOUT_TAGS = frozenset(
    {*range(254, 260), 262, 266, 273, *range(277, 282), 284, 292, 293, 317, 320, *range(322, 326), 330}
    | {*range(338, 344), 347, *range(512, 522), *range(529, 533)}
)
"""TIFF tags about the layout of pixels in the file; the writer sets its own."""
_BIG_VALUE = 1_024
"""Values of EXIF that are left out first, in bytes, when a format has too little room."""


# ----------------------------------------------------------------------------------------------- reading


def read_metadata(kind: str, data: bytes, info: dict[str, Any], directory: Directory | None) -> Metadata:
    """Return the metadata of a file.

    info: what Pillow read of a WebP, BMP or GIF file. directory: the main one of a TIFF file.
    """
    if kind == "JPEG":
        return _of_jpeg(data)
    if kind == "PNG":
        return _of_png(data)
    if kind in READERS:
        return _of_still(kind, READERS[kind](data))
    if directory is not None:
        return _of_tiff(directory)
    return Metadata(
        kind,
        exif=(info.get("exif") or b"").removeprefix(_EXIF_HEAD),
        icc=info.get("icc_profile") or b"",
        xmp=info.get("xmp") or b"",
        dpi=info.get("dpi"),
        own=(("comment", b""),) if info.get("comment") else (),
    )


def segments_of(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Return the (marker, whole segment) of a JPEG before its first scan, and the rest. Raises ValueError."""
    found: list[tuple[int, bytes]] = []
    at = 2
    while True:
        if data[at : at + 1] != b"\xff" or at + 4 > len(data):
            raise ValueError("a JPEG segment is cut")
        marker = data[at + 1]
        if marker in (0xD8, 0xFF):  # a repeated start, or a byte that fills
            at += 2 if marker == 0xD8 else 1
            continue
        if marker in (0xDA, 0xD9):
            return found, data[at:]
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if end < at + 4 or end > len(data):
            raise ValueError("a JPEG segment is cut")
        found.append((marker, data[at:end]))
        at = end


def chunks_of(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the (name, whole chunk) of a PNG file."""
    at = 8
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        yield name, data[at : at + length + 12]
        at += length + 12


def _of_jpeg(data: bytes) -> Metadata:
    own: list[tuple[str, bytes]] = []
    parts: dict[str, bytes] = {"exif": b"", "xmp": b"", "photoshop": b""}
    profile: dict[int, bytes] = {}
    dropped = []
    dpi = None
    for marker, segment in segments_of(data)[0]:
        body = segment[4:]
        name = ""
        if marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 12:
            dpi = dpi or _jfif_dpi(body)
        elif marker == 0xE1 and body.startswith(_EXIF_HEAD):
            parts["exif"] = parts["exif"] or body.removeprefix(_EXIF_HEAD)
        elif marker == 0xE1 and body.startswith(_XMP_HEAD):
            parts["xmp"] = parts["xmp"] or body.removeprefix(_XMP_HEAD)
        elif marker == 0xE1 and body.startswith(_MORE_XMP_HEAD):
            name = "extended XMP"
        elif marker == 0xE2 and body.startswith(_ICC_HEAD) and len(body) > 14:
            profile[body[12]] = body[14:]
        elif marker == 0xE2 and body.startswith(b"MPF\0"):
            dropped.append("further pictures")
            continue
        elif marker == 0xED and body.startswith(_PHOTOSHOP_HEAD):
            parts["photoshop"] += body.removeprefix(_PHOTOSHOP_HEAD)
        elif marker == 0xEB:
            dropped.append("the signature or extension in APP11")
            continue
        elif marker == 0xEE and body.startswith(b"Adobe"):
            continue  # about the coding of the pixels
        elif marker == 0xFE:
            name = "comment"
        elif 0xE0 <= marker <= 0xEF:
            name = f"APP{marker - 0xE0}"
        else:
            continue
        own.append((name, segment))
    icc = b"".join(profile[number] for number in sorted(profile))
    return Metadata("JPEG", icc=icc, dpi=dpi, own=tuple(own), unreadable=_unique(dropped), **parts)


def _jfif_dpi(body: bytes) -> tuple[float, float] | None:
    unit, x, y = struct.unpack_from(">BHH", body, 7)
    scale = {1: 1.0, 2: 2.54}.get(unit)
    return (x * scale, y * scale) if scale and x and y else None


def _of_png(data: bytes) -> Metadata:
    own: list[tuple[str, bytes]] = []
    parts: dict[str, Any] = {}
    dropped = []
    for kind, chunk in chunks_of(data):
        name, body = kind.decode("latin-1"), chunk[8:-4]
        if not kind[0] & 0x20 or kind in (b"tRNS", b"iDOT"):
            continue  # about the coding of the pixels
        if len(chunk) < 12 or zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            dropped.append(f"damaged {name}")
            continue
        if not (kind[3] & 0x20 or name in _PNG_ABOUT_COLOURS):
            dropped.append(name)  # the standard says that such a chunk ends with a change of the pixels
            continue
        label = _PNG_NAMES.get(name, name)
        if name == "eXIf":
            parts["exif"], label = body.removeprefix(_EXIF_HEAD), ""
        elif name == "iCCP":
            if icc := _inflated(body.partition(b"\0")[2][1:]):
                parts["icc"], label = icc, ""
        elif name == "iTXt" and body.startswith(_XMP_KEYWORD + b"\0"):
            if xmp := _packet(body):
                parts["xmp"], label = xmp, ""
        elif name == "pHYs" and len(body) == 9:
            x, y, unit = struct.unpack(">IIB", body)
            label = ""
            if unit == 1 and x and y:
                parts["dpi"] = (x * _INCH, y * _INCH)
        own.append((label, chunk))
    if any(chunk[4:8] == b"sRGB" for _, chunk in own):  # which says what these two say
        own = [("" if name in ("gAMA", "cHRM") else name, chunk) for name, chunk in own]
    return Metadata("PNG", own=tuple(own), unreadable=_unique(dropped), **parts)


_PNG_ABOUT_COLOURS = frozenset(
    {"iCCP", "sRGB", "gAMA", "cHRM", "cICP", "mDCV", "cLLI", "mDCv", "cLLi", "sBIT"}
)
"""Chunks that stay valid, since a restored picture has the colours and the depth of the photograph."""
_PNG_NAMES = {"tEXt": "texts", "zTXt": "texts", "iTXt": "texts", "tIME": "", "sRGB": ""}
"""How messages name a chunk; "" are those whose loss changes nothing."""


def _packet(body: bytes) -> bytes:
    """Return the XMP packet of an iTXt chunk."""
    rest = body[len(_XMP_KEYWORD) + 1 :]
    _, _, after_language = rest[2:].partition(b"\0")
    _, _, text = after_language.partition(b"\0")
    return _inflated(text) if rest[:1] == b"\1" else text


def _inflated(data: bytes) -> bytes:
    """Return decompressed bytes, or none if they are damaged or too many."""
    try:
        stream = zlib.decompressobj()
        found = stream.decompress(data, _MAX_PROFILE)
    except zlib.error:
        return b""
    return found if stream.eof else b""


def _of_still(kind: str, found: Still) -> Metadata:
    exif, dropped = found.exif, list(found.others)
    directory = read_exif(exif) if exif else None
    if exif and directory is None:
        dropped.append("damaged EXIF")
    directory = directory or Directory()
    if directory.number(_ORIENTATION, 1) != found.orientation:  # viewers ignore the one of EXIF
        directory.set(_ORIENTATION, SHORT, found.orientation)
        exif = dump(directory)
    return Metadata(kind, exif, found.icc, found.xmp, cicp=found.cicp, unreadable=tuple(dropped))


def _of_tiff(directory: Directory) -> Metadata:
    kept = {code: tag for code, tag in directory.tags.items() if code not in _LAYOUT_TAGS}
    portable = {code: tag for code, tag in kept.items() if code not in _TIFF_ONLY_TAGS}
    iptc = directory.raw(_IPTC_TAG)
    own = [("", dump(Directory(directory.order, kept)))]
    if _LAYERS_TAG in kept:
        own.append(("layers of Photoshop", b""))
    return Metadata(
        "TIFF",
        exif=dump(Directory(directory.order, portable)) if portable else b"",
        icc=directory.raw(_ICC_TAG),
        xmp=directory.raw(_XMP_TAG),
        photoshop=directory.raw(_PHOTOSHOP_TAG) or (iptc and _resource(iptc)),
        dpi=_tiff_dpi(directory),
        own=tuple(own),
    )


def _tiff_dpi(directory: Directory) -> tuple[float, float] | None:
    scale = {2: 1.0, 3: 2.54}.get(directory.number(_RESOLUTION_UNIT, 2))
    values = []
    for code in (_X_RESOLUTION, _Y_RESOLUTION):
        tag = directory.tags.get(code)
        if scale is None or tag is None or (tag.kind, tag.count) != (5, 1):
            return None
        over, under = struct.unpack(directory.order + "II", tag.value)
        if not over or not under:
            return None
        values.append(over / under * scale)
    return values[0], values[1]


def _resource(iptc: bytes) -> bytes:
    """Return IPTC as an image resource of Photoshop."""
    head = b"8BIM" + struct.pack(">H", _IPTC_RESOURCE) + b"\0\0" + struct.pack(">I", len(iptc))
    return head + iptc + bytes(len(iptc) % 2)


def _iptc_of(photoshop: bytes) -> bytes:
    """Return the IPTC among image resources of Photoshop, or none."""
    at = 0
    while photoshop[at : at + 4] == b"8BIM" and at + 12 <= len(photoshop):
        (number,) = struct.unpack_from(">H", photoshop, at + 4)
        name = 1 + photoshop[at + 6]
        start = at + 6 + name + name % 2
        size = int.from_bytes(photoshop[start : start + 4], "big")
        if number == _IPTC_RESOURCE:
            return photoshop[start + 4 : start + 4 + size]
        at = start + 4 + size + size % 2
    return b""


# ----------------------------------------------------------------------------------------------- fitting


def fitting(metadata: Metadata, kind: str) -> tuple[Metadata, tuple[str, ...]]:
    """Return what a file of a format can carry of the metadata, and the names of what it cannot."""
    lost = list(metadata.unreadable)
    if metadata.format == kind:
        return metadata, _unique(lost)
    lost += [name for name, _ in metadata.own if name]
    kept = replace(metadata, own=())
    if kept.exif and kind != "BMP":
        kept = replace(kept, exif=_fitting_exif(kept.exif, kind, lost))
    room = {
        "exif": kind != "BMP",
        "icc": kind != "BMP" and not (kind == "JPEG" and len(kept.icc) > 255 * (_SEGMENT - 14)),
        "xmp": kind != "BMP" and not (kind == "JPEG" and len(kept.xmp) > _SEGMENT - len(_XMP_HEAD)),
        "photoshop": kind in ("JPEG", "TIFF"),
        "dpi": kind != "WEBP" or bool(kept.exif),
        "cicp": kind == "PNG",
    }
    for name, has_room in room.items():
        if getattr(kept, name) and not has_room:
            lost.append(_PART_NAMES[name])
            kept = replace(kept, **{name: getattr(NONE, name)})
    return kept, _unique(lost)


_PART_NAMES = {
    "exif": "EXIF (with the orientation)",
    "icc": "the colour profile",
    "xmp": "XMP",
    "photoshop": "IPTC and Photoshop's data",
    "dpi": "the resolution",
    "cicp": "the colour space (cICP)",
}


def _fitting_exif(exif: bytes, kind: str, lost: list[str]) -> bytes:
    """Return an EXIF block that a format can store, and add to `lost` what was left out."""
    room = _SEGMENT - len(_EXIF_HEAD)
    if kind != "TIFF" and (kind != "JPEG" or len(exif) <= room):
        return exif
    directory = read_exif(exif)
    if directory is None:
        lost.append("damaged EXIF")
        return b""
    if kind == "TIFF":
        return exif
    lost.append("large values of EXIF")
    small = dump(Directory(directory.order, _small(directory.tags)))
    return small if len(small) <= room else b""


def _small(tags: dict[int, Tag]) -> dict[int, Tag]:
    kept = {code: tag for code, tag in tags.items() if len(tag.value) <= _BIG_VALUE}
    return {
        code: replace(tag, children=_small(tag.children)) if tag.children else tag
        for code, tag in kept.items()
    }


def _unique(names: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


# ----------------------------------------------------------------------------------------------- writing


def attach(kind: str, file: bytes, metadata: Metadata) -> bytes:
    """Return a JPEG or PNG file, written without metadata, with metadata that fits."""
    return _with_segments(file, metadata) if kind == "JPEG" else _with_chunks(file, metadata)


def _with_segments(file: bytes, metadata: Metadata) -> bytes:
    """Return a JPEG with its JFIF segment or that of the photograph, then the other metadata."""
    segments, scan = segments_of(file)
    own = [segment for _, segment in metadata.own]
    if metadata.format != "JPEG":
        own = list(_new_segments(metadata))
    jfif = [segment for segment in own if segment[4:9] == b"JFIF\0"][:1]
    own = [segment for segment in own if segment[4:9] != b"JFIF\0"]
    first = jfif or [segment for marker, segment in segments if marker == 0xE0]
    rest = [segment for marker, segment in segments if marker != 0xE0]
    return b"".join([file[:2], *first, *own, *rest, scan])


def _new_segments(metadata: Metadata) -> Iterator[bytes]:
    if metadata.dpi:
        x, y = (min(max(round(value), 1), 65_535) for value in metadata.dpi)
        yield _segment(0xE0, b"JFIF\0\1\1" + struct.pack(">BHHBB", 1, x, y, 0, 0))
    if metadata.exif:
        yield _segment(0xE1, _EXIF_HEAD + metadata.exif)
    if metadata.xmp:
        yield _segment(0xE1, _XMP_HEAD + metadata.xmp)
    for part in _pieces(metadata.photoshop, _SEGMENT - len(_PHOTOSHOP_HEAD)):
        yield _segment(0xED, _PHOTOSHOP_HEAD + part)
    pieces = _pieces(metadata.icc, _SEGMENT - 14)
    for number, part in enumerate(pieces, 1):
        yield _segment(0xE2, _ICC_HEAD + bytes([number, len(pieces)]) + part)


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def _with_chunks(file: bytes, metadata: Metadata) -> bytes:
    """Return a PNG with its metadata right after the header, where each chunk is allowed."""
    header_end = 8 + 25
    own = [chunk for _, chunk in metadata.own]
    if metadata.format == "PNG":
        own = [chunk for chunk in own if chunk[4:8] != b"sBIT"] + list(_significant_bits(file, own))
    else:
        own = list(_new_chunks(metadata))
    return file[:header_end] + b"".join(own) + file[header_end:]


def _new_chunks(metadata: Metadata) -> Iterator[bytes]:
    if metadata.cicp:
        yield _chunk(b"cICP", metadata.cicp)
    if metadata.icc:
        yield _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc))
    if metadata.dpi:
        x, y = (min(max(round(value / _INCH), 1), 2**31 - 1) for value in metadata.dpi)
        yield _chunk(b"pHYs", struct.pack(">IIB", x, y, 1))
    if metadata.exif:
        yield _chunk(b"eXIf", metadata.exif)
    if metadata.xmp:
        yield _chunk(b"iTXt", _XMP_KEYWORD + b"\0\0\0\0\0" + metadata.xmp)


def _significant_bits(file: bytes, own: list[bytes]) -> Iterator[bytes]:
    """Yield the sBIT chunk for the channels of the result, which has alpha where the photograph had a colour key."""
    depth, colour = file[24], file[25]
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    for chunk in own:
        bits = chunk[8:-4]
        if chunk[4:8] == b"sBIT" and len(bits) == channels - 1:
            bits += bytes([depth])
        if chunk[4:8] == b"sBIT" and len(bits) == channels and all(0 < value <= depth for value in bits):
            yield _chunk(b"sBIT", bits)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def tiff_tags(metadata: Metadata) -> Directory:
    """Return the tags of a TIFF file with metadata that fits; the tags of the layout are missing."""
    if metadata.format == "TIFF":
        return read_exif(metadata.own[0][1]) or Directory()
    found = read_exif(metadata.exif) if metadata.exif else None
    directory = found or Directory()
    for code in _LAYOUT_TAGS.intersection(directory.tags):
        del directory.tags[code]
    if metadata.icc:
        directory.set_bytes(_ICC_TAG, metadata.icc)
    if metadata.xmp:
        directory.set_bytes(_XMP_TAG, metadata.xmp, kind=1)
    if metadata.photoshop:
        directory.set_bytes(_PHOTOSHOP_TAG, metadata.photoshop)
        if iptc := _iptc_of(metadata.photoshop):
            directory.set_bytes(_IPTC_TAG, iptc)
    if metadata.dpi and _X_RESOLUTION not in directory.tags:
        for code, value in zip((_X_RESOLUTION, _Y_RESOLUTION), metadata.dpi, strict=True):
            number = min(round(value * 1_000), 2**32 - 1)
            directory.tags[code] = Tag(5, 1, struct.pack(directory.order + "II", number, 1_000))
        directory.set(_RESOLUTION_UNIT, SHORT, 2)
    return directory
