"""Read and write TIFF directories, the form of EXIF too, with the values as bytes.

Values are copied and never interpreted, so texts in any alphabet and types that a library would change come back as
they were.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Directory", "Tag", "dump", "read_chain", "read_exif"]

SHORT, LONG, UNDEFINED = 3, 4, 7
_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
"""Bytes of one value of each type."""
_LETTERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_CLASSIC = {16: LONG, 17: 9, 18: LONG}
"""Types of BigTIFF, and what a classic TIFF has instead."""
_POINTERS = frozenset({34665, 34853, 40965})
"""Tags that hold the position of another directory: EXIF, GPS, interoperability."""
_MAX_DIRECTORIES = 1_000


@dataclass(frozen=True)
class Tag:
    """One entry of a directory."""

    kind: int
    """Type of the values, by its number in TIFF."""
    count: int
    value: bytes
    children: dict[int, Tag] | None = None
    """The directory that this entry points to."""


@dataclass
class Directory:
    """The tags of one picture of a file."""

    order: str = "<"
    """Byte order: < or >."""
    tags: dict[int, Tag] = field(default_factory=dict)

    def numbers(self, code: int) -> tuple[int, ...]:
        """Return the values of a tag of whole numbers; none if it is missing or has another type."""
        tag = self.tags.get(code)
        if tag is None or tag.kind not in _LETTERS:
            return ()
        return struct.unpack(f"{self.order}{tag.count}{_LETTERS[tag.kind]}", tag.value)

    def number(self, code: int, default: int) -> int:
        """Return the first value of a tag, or `default`."""
        return next(iter(self.numbers(code)), default)

    def raw(self, code: int) -> bytes:
        """Return a tag's value as it is in the file."""
        return self.tags[code].value if code in self.tags else b""

    def set(self, code: int, kind: int, *values: int) -> None:
        """Set a tag to whole numbers."""
        self.tags[code] = Tag(
            kind, len(values), struct.pack(f"{self.order}{len(values)}{_LETTERS[kind]}", *values)
        )

    def set_bytes(self, code: int, value: bytes, kind: int = UNDEFINED) -> None:
        """Set a tag to bytes."""
        self.tags[code] = Tag(kind, len(value), value)


def read_chain(data: bytes) -> list[Directory]:
    """Return the directories of a TIFF or BigTIFF file. Raises ValueError if its header or first one is damaged."""
    reader = _Reader(data)
    found: list[Directory] = []
    seen = set()
    at = reader.first
    while at and at not in seen and len(found) < _MAX_DIRECTORIES:
        seen.add(at)
        tags, at = reader.read(at)
        found.append(Directory(reader.order, tags))
    if not found:
        raise ValueError("no TIFF directory")
    return found


def read_exif(data: bytes) -> Directory | None:
    """Return the first directory of an EXIF block, or None if it cannot be read."""
    try:
        return read_chain(data)[0]
    except ValueError:
        return None


def dump(directory: Directory, pixels: bytes = b"") -> bytes:
    """Return a classic TIFF file of one directory, followed by `pixels`, whose position becomes tag 273.

    Raises struct.error if the file is longer than 4 GiB.
    """
    if pixels:
        directory.set(273, LONG, 0)
    head = (b"II*\0" if directory.order == "<" else b"MM\0*") + struct.pack(directory.order + "I", 8)
    length = len(head) + len(_laid_out(directory.order, directory.tags, len(head)))
    if pixels:
        directory.set(273, LONG, length)
    return head + _laid_out(directory.order, directory.tags, len(head)) + pixels


class _Reader:
    """Reader of the directories of one file."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
        version = struct.unpack_from(self.order + "H", data, 2)[0] if self.order and len(data) >= 16 else 0
        if version not in (42, 43):
            raise ValueError("no TIFF header")
        self._count, self._entry, self._offset = ("Q", "HHQ", "Q") if version == 43 else ("H", "HHI", "I")
        (self.first,) = struct.unpack_from(self.order + self._offset, data, 8 if version == 43 else 4)
        # Values may not overlap, so no file has more bytes of values than bytes; some writers share small ones.
        self._left = len(data) + 2**20

    def read(self, at: int, depth: int = 0) -> tuple[dict[int, Tag], int]:
        """Return the tags of the directory at a position, without damaged ones, and the position of the next one."""
        data, order = self._data, self.order
        width, room = struct.calcsize("<" + self._offset), struct.calcsize("<" + self._entry)
        start = at + struct.calcsize("<" + self._count)
        if start > len(data):
            raise ValueError("a TIFF directory lies behind the end of the file")
        end = start + struct.unpack_from(order + self._count, data, at)[0] * (room + width)
        if end > len(data):
            raise ValueError("a TIFF directory is cut")
        tags: dict[int, Tag] = {}
        for entry in range(start, end, room + width):
            code, kind, count = struct.unpack_from(order + self._entry, data, entry)
            length, where = count * _SIZES.get(kind, 0), entry + room
            if length > width:
                (where,) = struct.unpack_from(order + self._offset, data, where)
            if kind not in _SIZES or where + length > len(data) or length > self._left:
                continue
            self._left -= length
            tag = _classic(order, Tag(kind, count, data[where : where + length]))
            if code in _POINTERS and tag is not None:
                tag = self._with_children(tag, depth)
            if tag is not None:
                tags[code] = tag
        following = struct.unpack_from(order + self._offset, data, end)[0] if end + width <= len(data) else 0
        return tags, following

    def _with_children(self, tag: Tag, depth: int) -> Tag | None:
        if tag.kind not in (LONG, 13) or tag.count != 1 or depth > 1:
            return None
        try:
            children, _ = self.read(struct.unpack(self.order + "I", tag.value)[0], depth + 1)
        except ValueError:
            return None
        return Tag(LONG, 1, tag.value, children)


def _classic(order: str, tag: Tag) -> Tag | None:
    """Return a tag with a type that classic TIFF has; None if the values are too large for it."""
    if tag.kind not in _CLASSIC:
        return tag
    kind = _CLASSIC[tag.kind]
    values = struct.unpack(f"{order}{tag.count}{_LETTERS[tag.kind]}", tag.value)
    try:
        return Tag(kind, tag.count, struct.pack(f"{order}{tag.count}{_LETTERS[kind]}", *values))
    except struct.error:
        return None


def _laid_out(order: str, tags: Mapping[int, Tag], at: int) -> bytes:
    """Return a directory that begins at an even position, with its values and the directories below it."""
    entries: list[Any] = []
    start = at + 2 + 12 * len(tags) + 4
    body = bytearray()
    for code, tag in sorted(tags.items()):
        kind, count, value = tag.kind, tag.count, tag.value
        if tag.children is not None:
            value = struct.pack(order + "I", start + len(body))
            body += _laid_out(order, tag.children, start + len(body))
        elif len(value) > 4:
            position = struct.pack(order + "I", start + len(body))
            body += value + bytes(len(value) % 2)
            value = position
        entries.append(struct.pack(order + "HHI", code, kind, count) + value.ljust(4, b"\0"))
    return struct.pack(order + "H", len(tags)) + b"".join(entries) + bytes(4) + bytes(body)
