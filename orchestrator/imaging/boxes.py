"""Read what an AVIF or HEIC file says of its picture, from its boxes (ISO 14496-12 and 23008-12).

Decoders tell neither the numbers of the colour space nor the EXIF block as it is in the file, and decode a stream of
any size into a picture that says that it is small.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .streams import Cursor, av1_pixels, hevc_pixels

__all__ = ["READERS", "Still"]

_MAX_BOXES = 100_000
_SPARE_PIXELS = 2**18
"""Pixels that a stream may code beyond those of the picture, its alpha and its smaller copies."""
_SPARE_PIXELS_OF_TILES = 2**21
"""The same where tiles of 512 x 512 pixels reach beyond the picture."""


@dataclass(frozen=True)
class Still:
    """What a file says of its picture."""

    height: int
    width: int
    bits: int = 8
    orientation: int = 1
    """How viewers turn the picture, as in EXIF."""
    icc: bytes = b""
    cicp: bytes = b""
    """Numbers of primaries and transfer function as H.273 has them, then 0 and 1, as in a PNG; none if not said."""
    exif: bytes = b""
    xmp: bytes = b""
    others: tuple[str, ...] = ()
    """What there is beside the picture."""


def _read_avif(data: bytes) -> Still:
    """Return what a file says. Raises as READERS say."""
    meta = _Meta(data)
    found = meta.properties(meta.primary)
    # Alpha, a thumbnail and a second version for brighter screens have no more pixels than the picture.
    coded = sum(av1_pixels(meta.content(item)) for item, (kind, _) in meta.items.items() if kind == b"av01")
    height, width = _size(found, coded, _SPARE_PIXELS)
    flags = found.get(b"av1C", b"\0\0\0")[2]
    bits = _bits(found, 8 + 2 * (flags >> 6 & 1) + 2 * (flags >> 5 & 1))
    others = ["the crop"] if b"clap" in found else []
    return _still(meta, found, (height, width), bits, _orientation(found), others)


def _read_heic(data: bytes) -> Still:
    """Return what a file says of the picture as viewers show it: cropped and turned. Raises as READERS say."""
    meta = _Meta(data)
    found = meta.properties(meta.primary)
    streams = {item: meta.properties(item) for item, (kind, _) in meta.items.items() if kind == b"hvc1"}
    settings = {item: each.get(b"hvcC", b"").ljust(23, b"\0") for item, each in streams.items()}
    coded = {item: hevc_pixels(each, meta.content(item)) for item, each in settings.items()}
    # A grid may show one tile many times, and each time it is decoded.
    shown = sum(coded.get(tile, 0) for tile in meta.tiles())
    height, width = _size(found, sum(coded.values()) + shown, _SPARE_PIXELS_OF_TILES)
    for item, (kind, _) in meta.items.items():
        if kind == b"grid" and not 0 < _pixels_of_grid(meta.content(item)) <= height * width:
            raise ValueError("a grid is larger than the picture")
    if meta.items.get(meta.primary, (b"",))[0] not in (b"hvc1", b"grid", b"iden"):
        raise ValueError("the picture is made from others")
    bits = _bits(found, 8 + (next(iter(settings.values()))[17] & 7) if settings else 8)
    if b"clap" in found:
        across, across_parts, down, down_parts = struct.unpack_from(">4I", found[b"clap"])
        if not 0 < across <= width * across_parts or not 0 < down <= height * down_parts:
            raise ValueError("its crop is larger than the picture")
        height, width = down // down_parts, across // across_parts
    if found.get(b"irot", b"\0")[0] & 1:
        height, width = width, height
    others = []
    for item in meta.describing(b"auxl", meta.primary):
        kind = meta.properties(item).get(b"auxC", b"")
        if b":alpha" not in kind and b"hevc:2015:auxid:1\0" not in kind:
            others.append("depth and gain maps")
    return _still(meta, found, (height, width), bits, 1, list(dict.fromkeys(others)))


def _size(found: dict[bytes, bytes], coded: int, spare: int) -> tuple[int, int]:
    if b"ispe" not in found:
        raise ValueError("it says no size")
    width, height = struct.unpack_from(">II", found[b"ispe"], 4)
    if coded > 4 * width * height + spare:
        raise ValueError(f"it says {width} x {height} pixels and codes {coded:,}")
    return height, width


def _pixels_of_grid(content: bytes) -> int:
    """Return width times height of a grid of tiles (ISO 23008-12, 6.6.2.3)."""
    width, height = struct.unpack_from(">II" if content[1] & 1 else ">HH", content, 4)
    return int(width * height)


def _still(
    meta: _Meta,
    found: dict[bytes, bytes],
    size: tuple[int, int],
    bits: int,
    orientation: int,
    others: list[str],
) -> Still:
    exif = xmp = b""
    for item in meta.describing(b"cdsc", meta.primary):
        kind, media = meta.items.get(item, (b"", b""))
        if kind == b"Exif" and len(content := meta.content(item)) > 4:
            exif = content[4 + int.from_bytes(content[:4], "big") :].removeprefix(b"Exif\0\0")
        elif kind == b"mime" and media == b"application/rdf+xml":
            xmp = meta.content(item)
    if list(meta.describing(b"thmb", meta.primary)):
        others.append("thumbnails")
    if any(kind == b"tmap" for kind, _ in meta.items.values()):
        others.append("the gain map")
    return Still(*size, bits, orientation, *_colours(found), exif, xmp, tuple(others))


def _bits(found: dict[bytes, bytes], of_stream: int) -> int:
    return found[b"pixi"][5] if len(found.get(b"pixi", b"")) > 5 else of_stream


def _orientation(found: dict[bytes, bytes]) -> int:
    """Return the rotation, then the mirror, as one value of EXIF."""
    angle = found.get(b"irot", b"\0")[0] & 3  # anticlockwise quarters
    if b"imir" not in found:
        return (1, 8, 3, 6)[angle]
    swaps_sides = found[b"imir"][0] & 1
    return ((4, 5, 2, 7), (2, 7, 4, 5))[swaps_sides][angle]


def _colours(found: dict[bytes, bytes]) -> tuple[bytes, bytes]:
    profile = found.get(b"colrprof") or found.get(b"colrrICC")
    if profile:
        return profile[4:], b""
    primaries, transfer = struct.unpack_from(">HH", found.get(b"colrnclx", b"").ljust(8, b"\0"), 4)
    # 0 and 2 say nothing; 1 with 13 is sRGB, as in a file without numbers.
    is_said = {primaries, transfer}.isdisjoint({0, 2}) and max(primaries, transfer) < 256
    return b"", bytes([primaries, transfer, 0, 1]) if is_said and (primaries, transfer) != (1, 13) else b""


READERS: dict[str, Callable[[bytes], Still]] = {"AVIF": _read_avif, "HEIC": _read_heic}
"""What reads a file of a format. Raises ValueError or struct.error if it is damaged, or if it codes more pixels."""


class _Meta:
    """The `meta` box of a file."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._left = 2 * len(data)  # bytes of items; they may overlap
        self._boxes = 0
        outer = self._inside(0, len(data))
        start, end = next(
            (place for name, place in outer if name == b"meta"), (0, 0)
        )  # what follows may be anything
        if not end:
            raise ValueError("it has no picture")
        inner = dict(self._inside(start + 4, end))
        self._idat = inner.get(b"idat", (0, 0))[0]
        self._inner = inner
        self.primary = self._numbers(b"pitm", "HI")[0]
        self.items: dict[int, tuple[bytes, bytes]] = dict(self._types())
        """Type of each item, and its media type."""
        self._extents = dict(self._locations())
        self._references = list(self._all_references())

    def properties(self, item: int) -> dict[bytes, bytes]:
        """Return the boxes that describe an item; of several of a type, the first."""
        parts = dict(self._inside(*self._inner.get(b"iprp", (0, 0))))
        boxes = list(self._inside(*parts.get(b"ipco", (0, 0))))
        found: dict[bytes, bytes] = {}
        for index in self._associated(parts.get(b"ipma", (0, 0)), item):
            if 0 < index <= len(boxes):
                name, (start, end) = boxes[index - 1]
                # A colour may be described in two ways.
                key = name + self._data[start : start + 4] if name == b"colr" else name
                found.setdefault(key, self._data[start:end] or b"\0")
        return found

    def content(self, item: int) -> bytes:
        """Return the bytes of an item."""
        parts = []
        for start, length in self._extents.get(item, ()):
            self._left -= length
            if start + length > len(self._data) or self._left < 0:
                raise ValueError("an item is cut")
            parts.append(self._data[start : start + length])
        return b"".join(parts)

    def describing(self, kind: bytes, item: int) -> Iterator[int]:
        """Yield the items that refer to an item in a way."""
        return (source for name, source, target in self._references if (name, target) == (kind, item))

    def tiles(self) -> Iterator[int]:
        """Yield the items that others are made from, as often as they are used."""
        return (target for name, _, target in self._references if name == b"dimg")

    def _inside(self, at: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
        """Yield name, start and end of the boxes between two positions. Raises ValueError."""
        while at + 8 <= end:
            length, name = struct.unpack_from(">I4s", self._data, at)
            start = at + 8
            if length == 1:
                (length,), start = struct.unpack_from(">Q", self._data, start), start + 8
            stop = end if length == 0 else at + length
            self._boxes += 1
            if not start <= stop <= end or self._boxes > _MAX_BOXES:
                raise ValueError("a box is cut")
            yield name, (start, stop)
            at = stop

    def _numbers(self, box: bytes, layouts: str) -> tuple[int, int, int]:
        """Return the number that a box begins with, the position after it, and the version of the box.

        layouts: its type in version 0, and in later ones.
        """
        start, end = self._inner.get(box, (0, 0))
        if end < start + 6:
            raise ValueError(f"it has no {box.decode()}")
        version = self._data[start]
        layout = ">" + layouts[min(version, 1)]
        return (
            struct.unpack_from(layout, self._data, start + 4)[0],
            start + 4 + struct.calcsize(layout),
            version,
        )

    def _types(self) -> Iterator[tuple[int, tuple[bytes, bytes]]]:
        _, at, _ = self._numbers(b"iinf", "HI")
        for name, (start, end) in self._inside(at, self._inner[b"iinf"][1]):
            if name != b"infe" or self._data[start] not in (2, 3):
                continue
            number, _, kind = struct.unpack_from(
                ">HH4s" if self._data[start] == 2 else ">IH4s", self._data, start + 4
            )
            texts = self._data[start + (12 if self._data[start] == 2 else 14) : end].split(b"\0", 2)
            yield number, (kind, texts[1] if len(texts) > 1 else b"")

    def _locations(self) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        start, end = self._inner.get(b"iloc", (0, 0))
        sizes, version = int.from_bytes(self._data[start + 4 : start + 6], "big"), self._data[start]
        offset, length, base, index = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
        index = index if version else 0
        if not {offset, length, base, index} <= {0, 4, 8} or not length:
            raise ValueError("its items have no length")
        cursor = Cursor(self._data[:end], start + 6)
        for _ in range(cursor.take(2 if version < 2 else 4)):
            number = cursor.take(2 if version < 2 else 4)
            method = cursor.take(2) & 15 if version else 0
            cursor.take(2)
            first = cursor.take(base) + (self._idat if method == 1 else 0)
            if method > 1:
                raise ValueError("an item is made from others")
            extents = []
            for _ in range(cursor.take(2)):
                cursor.take(index)
                extents.append((first + cursor.take(offset), cursor.take(length)))
            yield number, extents

    def _associated(self, box: tuple[int, int], item: int) -> Iterator[int]:
        start, end = box
        if end < start + 8:
            return
        version, is_wide = self._data[start], self._data[start + 3] & 1
        cursor = Cursor(self._data[:end], start + 4)
        for _ in range(cursor.take(4)):
            number = cursor.take(4 if version else 2)
            indexes = [
                cursor.take(2) & 0x7FFF if is_wide else cursor.take(1) & 0x7F for _ in range(cursor.take(1))
            ]
            if number == item:
                yield from indexes

    def _all_references(self) -> Iterator[tuple[bytes, int, int]]:
        if b"iref" not in self._inner:
            return
        start, end = self._inner[b"iref"]
        width = 4 if self._data[start] else 2
        for name, (at, stop) in self._inside(start + 4, end):
            cursor = Cursor(self._data[:stop], at)
            source = cursor.take(width)
            for _ in range(cursor.take(2)):
                yield name, source, cursor.take(width)
