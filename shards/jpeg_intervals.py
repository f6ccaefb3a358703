"""JPEG files that give up any crop without decoding the rest.

`jpegtran` rewrites a JPEG without loss: the coefficients, and therefore the pixels, stay the same, and a restart marker
follows every few MCUs, the blocks of 8 x 8 to 32 x 32 pixels of which a JPEG is made. What ends with a marker, an
*interval*, can be decoded alone. A crop takes the intervals that it overlaps, with one pixel of context on each side
because chroma is interpolated, and joins them to a small JPEG.

The result stays a JPEG file that every decoder reads. An index of its intervals is in a segment APP9:

    offset  bytes  field, big-endian
    0       4      marker FF E9 and the length of the segment without the marker, as in every segment
    4       8      ASCII "INTERVAL"
    12      4      crc32 of the bytes before this segment, of this segment from offset 16 on, and of the tables
    16      4      offset in the file of the tables (DQT, SOF, DHT, DRI, SOS), which are one piece
    20      4      offset in the file of the frame header (SOF), whose height and width a crop replaces
    24      4      offset in the file of the first interval: the end of the tables
    28      4      height of an interval in pixels
    32      4      width of an interval in pixels
    36      4n     bytes (u16) and the lower half of the crc32 (u16) of each interval with the marker that ends it

Only JFIF (APP0) and Adobe (APP14) segments come before the index: with the tables they are the header of a crop. Other
segments (EXIF, ICC) are between the index and the tables.
"""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from shards.errors import CorruptObjectError, PackError, ToolError
from shards.images import MAX_PIXELS, decode_image
from shards.tiles import Buffer, require_inside

Image = NDArray[np.uint8]

NAME = "jpeg-intervals"
"""Name of the encoding in a manifest."""
INSTALL = "apt install libjpeg-turbo-progs"
"""Command that installs jpegtran on Debian and Ubuntu."""

_MAGIC = b"INTERVAL"
_FIXED = struct.Struct(">HH8sIIIIII")
_CHECKED = 16
"""Offset in the index from which its checksum counts."""
_ENTRY = np.dtype([("bytes", ">u2"), ("crc32", ">u2")])
_MAX_INTERVALS = (0xFFFF + 2 - _FIXED.size) // _ENTRY.itemsize
_FIRST_READ = 1 << 14
"""Bytes that are read first: they hold the index and the tables of most files."""

_WIDTH = 80
"""Maximum width in pixels that an interval should have: with wider ones a crop decodes more pixels."""
_GROWTH = 1.25
"""Maximum growth of a file for intervals of that width; if it grows more, intervals are wider."""
_MAX_SECONDS = 600
"""Time limit of jpegtran for one file."""
_CONTEXT = 1
_SMALLEST = 16
"""Pixels from which libjpeg interpolates the chroma of a small image as that of a large one."""

_SOI, _EOI, _SOS = 0xFFD8, 0xFFD9, 0xFFDA
_APP0, _APP2, _APP9, _APP14 = 0xFFE0, 0xFFE2, 0xFFE9, 0xFFEE
_SEQUENTIAL, _PROGRESSIVE = (0xFFC0, 0xFFC1), 0xFFC2
"""Frames with Huffman codes."""
_DHT, _DQT, _DRI = 0xFFC4, 0xFFDB, 0xFFDD
_HEADER_MARKERS = {_APP0, _APP14, _DQT, *_SEQUENTIAL, _DHT, _DRI, _SOS}
"""Markers in the header of a crop."""


def tool() -> str | None:
    """Return the path of jpegtran, None if it is not installed."""
    return shutil.which("jpegtran")


def rewrite(data: bytes, pixels: Image) -> bytes | None:
    """Return a JPEG as a file of intervals that decodes to `pixels`, or None if it has to be kept as it is.

    Every pixel is compared, and so are a few crops. Pictures behind the first one are left out.
    Raises ToolError if jpegtran is missing or was killed, which says nothing about the file.
    """
    try:
        made = _rewritten(data)
        same = np.array_equal(decode_image(made, NAME), pixels) and np.array_equal(decode(made), pixels)
    except (_UnfitError, CorruptObjectError, PackError):
        return None
    return made if same and _has_same_crops(made, pixels) else None


def decode(buffer: Buffer) -> Image:
    """Return all pixels, (h, w, 3) uint8. Raises CorruptObjectError."""
    image = IntervalJpeg(buffer)
    return image.crop(0, 0, *image.shape)


class IntervalJpeg:
    """A file of intervals, of which windows are decoded."""

    def __init__(self, buffer: Buffer) -> None:
        """Read the index and the header. Raises CorruptObjectError."""
        head = bytes(buffer[:_FIRST_READ])
        at = 2
        while head[at : at + 2] in (b"\xff\xe0", b"\xff\xee"):
            at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
        if len(head) < at + _FIXED.size:
            raise CorruptObjectError("it is not a JPEG with an index of intervals.")
        marker, length, magic, crc, tables, frame, scan, *cell = _FIXED.unpack_from(head, at)
        end = at + 2 + length
        ordered = end <= tables <= frame <= scan - 9 <= len(buffer) - 9
        if (marker, magic) != (_APP9, _MAGIC) or not ordered:
            raise CorruptObjectError("it is not a JPEG with an index of intervals.")
        described = head[tables:scan] if scan <= len(head) else bytes(buffer[tables:scan])
        head = head if end <= len(head) else bytes(buffer[:end])
        found = zlib.crc32(described, zlib.crc32(head[at + _CHECKED : end], zlib.crc32(head[:at])))
        if found != crc or 0 in cell or (length + 2 - _FIXED.size) % _ENTRY.itemsize:
            raise CorruptObjectError("its header or its index of intervals is damaged.")
        self._header, self._frame = head[:at] + described, at + frame - tables
        height, width = _checked_size(self._header, self._frame, cell[0], cell[1])
        entries = np.frombuffer(head[at + _FIXED.size : end], _ENTRY)
        starts = np.cumsum(np.concatenate([[scan], entries["bytes"]]), dtype=np.int64)
        self.shape: tuple[int, int] = height, width
        """Height and width in pixels."""
        self._cell: tuple[int, int] = cell[0], cell[1]
        self._columns = -(-width // cell[1])
        fitting = 0 < len(entries) == self._columns * -(-height // cell[0]) and height * width <= MAX_PIXELS
        if not fitting or starts[-1] != len(buffer):
            raise CorruptObjectError("its index of intervals does not fit its size.")
        self._buffer, self._starts, self._checksums = buffer, starts, entries["crc32"]

    def crop(self, top: int, left: int, height: int, width: int) -> Image:
        """Return one window, (height, width, 3) uint8, equal to the same slice of the whole image."""
        whole = self.shape
        require_inside(whole, top, left, height, width)
        rows = _intervals(top, height, self._cell[0], whole[0])
        columns = _intervals(left, width, self._cell[1], whole[1])
        y, x = rows.start * self._cell[0], columns.start * self._cell[1]
        bottom, right = min(rows.stop * self._cell[0], whole[0]), min(columns.stop * self._cell[1], whole[1])
        pixels = _decoded(self._small(rows, columns, bottom - y, right - x), (bottom - y, right - x))
        pixels = pixels[top - y : top - y + height, left - x : left - x + width]
        return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels

    def _small(self, rows: range, columns: range, height: int, width: int) -> bytearray:
        """Return a JPEG of some of the intervals. Raises CorruptObjectError if one is damaged."""
        numbers = np.array(rows)[:, None] * self._columns + np.array(columns)
        begins, ends = self._starts[numbers[:, 0]].tolist(), self._starts[numbers[:, -1] + 1].tolist()
        pieces = [self._buffer[begin:end] for begin, end in zip(begins, ends, strict=True)]
        small = bytearray().join([self._header, *pieces])
        numbers = numbers.ravel()
        start, view = len(self._header), memoryview(small)
        stops = start + np.cumsum(self._starts[numbers + 1] - self._starts[numbers])
        for stop, checksum in zip(stops.tolist(), self._checksums[numbers].tolist(), strict=True):
            if zlib.crc32(view[start:stop]) & 0xFFFF != checksum:
                raise CorruptObjectError("the checksum of a part of it does not match.")
            start = stop
        struct.pack_into(">HH", small, self._frame + 5, height, width)
        array = np.frombuffer(small, np.uint8)
        array[stops - 1] = _restart_markers(len(stops))
        return small


def _checked_size(header: bytes, at_frame: int, height: int, width: int) -> tuple[int, int]:
    """Return the height and width of an image by the header of its crops and the size of its intervals.

    Raises CorruptObjectError if a decoder may take another size than that at `at_frame`, and so allocate any memory.
    """
    place, marker = 2, 0
    found: list[int] = []
    try:
        while marker != _SOS:
            marker, length = struct.unpack_from(">HH", header, place)
            if marker not in _HEADER_MARKERS:
                raise _UnfitError
            if marker in _SEQUENTIAL:
                found.append(place)
            place += 2 + length
        if place != len(header) or found != [at_frame]:
            raise _UnfitError
        frame = _frame([_Segment(_SEQUENTIAL[0], header[at_frame:])])
        if height != frame.mcu_height or width % frame.mcu_width:
            raise _UnfitError
    except (struct.error, _UnfitError):
        raise CorruptObjectError("its header does not fit its index of intervals.") from None
    return frame.height, frame.width


def _intervals(start: int, length: int, cell: int, whole: int) -> range:
    """Return which intervals along one axis hold pixels [start, start + length) and their context."""
    stop = min(-(-(start + length + _CONTEXT) // cell), -(-whole // cell))
    covered = min(stop * cell, whole)
    return range(max(0, min(start - _CONTEXT, covered - _SMALLEST)) // cell, stop)


def _decoded(data: bytearray, shape: tuple[int, int]) -> Image:
    """Return the pixels of a JPEG, grey as (h, w). Raises CorruptObjectError."""
    try:
        pixels: Image = imagecodecs.jpeg8_decode(data)
    except (imagecodecs.Jpeg8Error, ValueError) as error:
        raise CorruptObjectError(f"it cannot be decoded: {error}") from error
    if pixels.dtype != np.uint8 or pixels.shape not in (shape, (*shape, 3)):
        raise CorruptObjectError(f"a part of {shape} pixels is decoded as {pixels.dtype} of {pixels.shape}.")
    return pixels


def _restart_markers(intervals: int) -> NDArray[np.uint8]:
    """Return the second byte of the marker that ends each interval: restart markers 0 to 7, then the end."""
    markers = (0xD0 + (np.arange(intervals) & 7)).astype(np.uint8)
    markers[-1:] = _EOI & 0xFF
    return markers


class _UnfitError(Exception):
    """A JPEG that cannot be rewritten."""


class _Segment(NamedTuple):
    marker: int
    data: bytes
    """The whole segment with its marker."""

    @property
    def tells_colours(self) -> bool:
        """Whether a decoder needs it to know how colours are stored."""
        return (self.marker, self.data[4:9]) in ((_APP0, b"JFIF\0"), (_APP14, b"Adobe"))

    @property
    def tells_places(self) -> bool:
        """Whether it is an index of intervals (the file was cut before) or of pictures behind the first one."""
        cut_before = self.marker == _APP9 and self.data[4:12] == _MAGIC
        return cut_before or (self.marker == _APP2 and self.data[4:8] == b"MPF\0")


class _Frame(NamedTuple):
    height: int
    width: int
    mcu_height: int
    mcu_width: int


def _rewritten(data: bytes) -> bytes:
    """Return a JPEG with restart markers and an index. Raises _UnfitError."""
    frame = _frame(list(_segments(data)))
    columns, rows = -(-frame.width // frame.mcu_width), -(-frame.height // frame.mcu_height)
    # A divisor of the MCUs in a row, so that all rows are cut alike.
    fitting = [n for n in range(1, columns + 1) if columns % n == 0 and columns // n * rows <= _MAX_INTERVALS]
    if not fitting:
        raise _UnfitError
    preferred = max((n for n in fitting if n * frame.mcu_width <= _WIDTH), default=fitting[0])
    made = None
    for mcus in fitting[fitting.index(preferred) :]:
        try:
            made = _with_index(_with_restarts(data, mcus), frame, mcus * frame.mcu_width)
        except _UnfitError:  # so wide that an interval has more than 64 KiB
            break
        if len(made) <= _GROWTH * len(data):
            break
    if made is None:
        raise _UnfitError
    return made


def _with_restarts(data: bytes, mcus: int) -> bytes:
    """Return a JPEG with a restart marker after each `mcus` MCUs. Raises _UnfitError, or ToolError."""
    command = [tool() or "jpegtran", "-restart", f"{mcus}B", "-optimize", "-copy", "all"]
    try:
        done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=_MAX_SECONDS)
        if done.returncode < 0:
            raise OSError(None, f"ended by signal {-done.returncode}")
    except (OSError, subprocess.TimeoutExpired) as error:
        why = error.strerror if isinstance(error, OSError) else f"it ran for more than {_MAX_SECONDS} seconds"
        raise ToolError(
            f"jpegtran cannot be used on {socket.gethostname()} ({why}). Install it there ({INSTALL}), "
            "or pack with --jpeg keep. Finished shards are kept: run the same command again to continue."
        ) from error
    if done.returncode:  # it is 2 after a warning: the file is damaged
        raise _UnfitError
    return done.stdout


def _with_index(data: bytes, frame: _Frame, width: int) -> bytes:
    """Return a JPEG with an index of its intervals, which are `width` pixels wide."""
    segments = list(_segments(data))
    if _frame(segments) != frame or any(one.marker == _PROGRESSIVE for one in segments):
        raise _UnfitError
    scan = data[2 + sum(len(one.data) for one in segments) :]
    entries = _entries(scan)
    if len(entries) != -(-frame.width // width) * -(-frame.height // frame.mcu_height):
        raise _UnfitError
    segments = [one for one in segments if not one.tells_places]
    first = _SOI.to_bytes(2, "big") + b"".join(one.data for one in segments if one.tells_colours)
    tables = b"".join(one.data for one in segments if not _is_metadata(one))
    others = b"".join(one.data for one in segments if _is_metadata(one) and not one.tells_colours)
    before_frame = next(number for number, one in enumerate(segments) if one.marker in _SEQUENTIAL)
    length = _FIXED.size + entries.nbytes
    at = len(first) + length + len(others)
    at_frame = at + sum(len(one.data) for one in segments[:before_frame] if not _is_metadata(one))
    places = struct.pack(">IIIII", at, at_frame, at + len(tables), frame.mcu_height, width)
    content = places + entries.tobytes()
    crc = zlib.crc32(tables, zlib.crc32(content, zlib.crc32(first)))
    index = struct.pack(">HH8sI", _APP9, length - 2, _MAGIC, crc) + content
    return first + index + others + tables + scan


def _entries(scan: bytes) -> NDArray[np.void]:
    """Return the index of the intervals of a scan. Raises _UnfitError if there are other markers in it."""
    array = np.frombuffer(scan, np.uint8)
    at = np.flatnonzero(array[:-1] == 0xFF)
    at = at[array[at + 1] != 0]
    sizes = np.diff(at + 2, prepend=0)
    ends_whole = len(at) > 0 and at[-1] + 2 == len(scan) and sizes.max() <= 0xFFFF
    if not ends_whole or (array[at + 1] != _restart_markers(len(at))).any():
        raise _UnfitError
    entries = np.empty(len(at), _ENTRY)
    entries["bytes"] = sizes
    spans = zip((at + 2 - sizes).tolist(), (at + 2).tolist(), strict=True)
    entries["crc32"] = [zlib.crc32(scan[start:stop]) & 0xFFFF for start, stop in spans]
    return entries


def _segments(data: bytes) -> Iterator[_Segment]:
    """Yield the segments of a JPEG up to its first scan."""
    at = 2
    marker = 0
    while marker != _SOS:
        if at + 4 > len(data):
            raise _UnfitError
        marker, length = struct.unpack_from(">HH", data, at)
        if marker < 0xFFC0 or length < 2 or at + 2 + length > len(data):
            raise _UnfitError
        yield _Segment(marker, data[at : at + 2 + length])
        at += 2 + length


def _frame(segments: list[_Segment]) -> _Frame:
    """Return what the frame header says. Raises _UnfitError unless it is 8-bit grey or colour with Huffman codes."""
    for marker, data in segments:
        if marker in (*_SEQUENTIAL, _PROGRESSIVE) and len(data) > 10:
            precision, height, width, components = struct.unpack_from(">BHHB", data, 4)
            sampling = data[11 : 10 + 3 * components : 3]
            if precision != 8 or components not in (1, 3) or not height or not width:
                break
            if len(sampling) != components or not all(one >> 4 and one & 15 for one in sampling):
                break
            if components == 1:
                return _Frame(height, width, 8, 8)  # whatever its sampling factors say
            sides = 8 * max(one & 15 for one in sampling), 8 * max(one >> 4 for one in sampling)
            return _Frame(height, width, *sides)
    raise _UnfitError


def _is_metadata(segment: _Segment) -> bool:
    """Return whether it is an APPn segment or a comment."""
    return segment.marker >= _APP0


def _has_same_crops(made: bytes, pixels: Image) -> bool:
    """Return whether crops in the corners and in the middle are those of the image."""
    image = IntervalJpeg(made)
    height, width = (min(128, side) for side in pixels.shape[:2])
    bottom, right = pixels.shape[0] - height, pixels.shape[1] - width
    places = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    return all(
        np.array_equal(image.crop(y, x, height, width), pixels[y : y + height, x : x + width])
        for y, x in places
    )
