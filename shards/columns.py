"""The shards, images and rows of a manifest as arrays, which processes share as mapped files.

A manifest of ten million samples has no Python object for each of them: `Rows` and `Shards` are sequences that make
one when it is asked for.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from shards.errors import ManifestError
from shards.rows import ManifestRow, Member, Shard

T = TypeVar("T")

BLOCK = 1 << 16
"""Rows or images in memory at a time."""
MAX_ROWS = (1 << 32) - 1
"""Most rows, and most images, of a manifest: they are counted with 32 bits."""
NO_IMAGE = MAX_ROWS
"""Index of the degraded image of a row that has a clean image only."""
IMAGE = np.dtype(
    [
        *(("shard", "<u4"), ("offset", "<i8"), ("size", "<i8"), ("crc32", "<u4")),
        *(("encoding", "<u4"), ("height", "<u4"), ("width", "<u4")),
    ]
)
ROW = np.dtype(
    [
        *(("id", "<u8"), ("id_bytes", "<u4"), ("kind", "<u4")),
        *(("degraded", "<u4"), ("clean", "<u4"), ("source", "<u4")),
    ]
)
SHARD = np.dtype(
    [("key", "<u8"), ("key_bytes", "<u4"), ("size", "<i8"), ("sha256", "<u8"), ("sha256_bytes", "<u4")]
)
_IMAGE_VALUES, _ROW_VALUES = struct.Struct("<IqqIIII"), struct.Struct("<QIIIII")
assert (_IMAGE_VALUES.size, _ROW_VALUES.size) == (IMAGE.itemsize, ROW.itemsize), "the same fields"
TYPES = {
    "shards": SHARD,
    "images": IMAGE,
    "rows": ROW,
    "text": np.dtype(np.uint8),
    "order": np.dtype("<u4"),
}
"""Type of each array, and the name of its file."""


@dataclass(frozen=True, eq=False, repr=False)
class Columns:
    """Arrays of a manifest, in memory or mapped from files."""

    shards: NDArray[Any]
    images: NDArray[Any]
    rows: NDArray[Any]
    text: NDArray[np.uint8]
    """Ids of the rows, and keys and digests of the shards, in UTF-8; other arrays say where each begins."""
    order: NDArray[np.uint32]
    """Numbers of the rows, sorted by kind, otherwise in the order of the manifest."""
    kinds: tuple[tuple[str, str], ...]
    """Split and degradation by the number in `kind`."""
    sources: tuple[str, ...]
    encodings: tuple[str, ...]
    counts: tuple[int, ...]
    """Number of rows of each kind."""
    reopen: Callable[[], Columns] | None = None
    """What another process does instead of receiving the arrays."""

    def select(self, split: str, degradation: str) -> Rows:
        """Return the rows of a split and degradation, in the order of the manifest."""
        if (split, degradation) not in self.kinds:
            return Rows(self, self.order[:0])
        kind = self.kinds.index((split, degradation))
        start = sum(self.counts[:kind])
        return Rows(self, self.order[start : start + self.counts[kind]], kind=(split, degradation))

    def string(self, start: int, length: int) -> str:
        """Return a piece of the text."""
        return str(self._bytes["text"][start : start + length], "utf-8")

    def member(self, number: int, first_shard: int = 0) -> Member:
        """Return an image, its shard numbered from `first_shard` on."""
        values = _IMAGE_VALUES.unpack_from(self._bytes["images"], number * _IMAGE_VALUES.size)
        shard, offset, size, crc32, encoding, height, width = values
        return Member(shard + first_shard, offset, size, crc32, self.encodings[encoding], height, width)

    def row(self, number: int) -> tuple[int, ...]:
        """Return the fields of a row."""
        return _ROW_VALUES.unpack_from(self._bytes["rows"], number * _ROW_VALUES.size)

    @cached_property
    def _bytes(self) -> dict[str, memoryview]:
        """The arrays as bytes, from which single values are read in a tenth of the time that NumPy takes."""
        return {name: getattr(self, name).view(np.uint8).data for name in ("rows", "images", "text")}

    def __reduce__(self) -> tuple[Any, ...]:
        if self.reopen is not None:
            return _call, (self.reopen,)
        return Columns, tuple(getattr(self, name) for name in self.__dataclass_fields__)


def _selected(columns: Columns, kind: tuple[str, str], first_shard: int) -> Rows:
    return replace(columns.select(*kind), first_shard=first_shard)


def _call(reopen: Callable[[], Columns]) -> Columns:
    return reopen()


@dataclass(frozen=True, eq=False)
class Rows(Sequence[ManifestRow]):
    """Rows of a manifest, all of them or those that are selected."""

    columns: Columns
    selected: NDArray[np.uint32] | None = None
    """Numbers of the rows; None for all."""
    first_shard: int = 0
    """What is added to the number of every shard."""
    kind: tuple[str, str] | None = None
    """Split and degradation, when these are all rows of them."""

    def __reduce__(self) -> tuple[Any, ...]:
        if self.kind is not None:  # another process finds their numbers itself
            return _selected, (self.columns, self.kind, self.first_shard)
        return Rows, (self.columns, self.selected, self.first_shard)

    @property
    def is_whole(self) -> bool:
        """Whether these are all rows of the manifest as it is."""
        return self.selected is None and self.first_shard == 0

    def __len__(self) -> int:
        return len(self.columns.rows if self.selected is None else self.selected)

    @overload
    def __getitem__(self, index: int) -> ManifestRow: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> ManifestRow | Rows:
        if isinstance(index, slice):
            numbers = np.arange(*index.indices(len(self)), dtype=np.uint32)
            selected = numbers if self.selected is None else self.selected[numbers]
            return Rows(self.columns, selected, self.first_shard)
        number = range(len(self))[index]
        return self._row(self.columns.row(number if self.selected is None else int(self.selected[number])))

    def __iter__(self) -> Iterator[ManifestRow]:
        for block in self.blocks():
            yield from map(self._row, block.tolist())

    def __eq__(self, other: object) -> bool:
        """Return whether the other sequence has equal rows."""
        if not isinstance(other, (Rows, tuple, list)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield the rows as arrays of type ROW, a limited number at a time."""
        if self.selected is None:
            yield from blocks(self.columns.rows)
        else:
            for numbers in blocks(self.selected):
                yield self.columns.rows[numbers]

    def clean_images(self) -> Iterator[NDArray[Any]]:
        """Yield the clean images of the rows as arrays of type IMAGE, a limited number at a time."""
        for block in self.blocks():
            images = self.columns.images[block["clean"]]
            images["shard"] += self.first_shard
            yield images

    def ids(self) -> list[str]:
        """Return the ids of all rows."""
        return [
            self.columns.string(start, length)
            for block in self.blocks()
            for start, length in zip(block["id"].tolist(), block["id_bytes"].tolist(), strict=True)
        ]

    def _row(self, values: tuple[int, ...]) -> ManifestRow:
        columns, first = self.columns, self.first_shard
        id_, length, kind, degraded, clean, source = values
        split, degradation = columns.kinds[kind]
        return ManifestRow(
            columns.string(id_, length),
            split,  # type: ignore[arg-type]  # checked when the manifest was read
            degradation,
            None if degraded == NO_IMAGE else columns.member(degraded, first),
            columns.member(clean, first),
            columns.sources[source],
        )


@dataclass(frozen=True, eq=False)
class Shards(Sequence[Shard]):
    """All shards of a manifest."""

    columns: Columns

    def __len__(self) -> int:
        return len(self.columns.shards)

    @overload
    def __getitem__(self, index: int) -> Shard: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Shard]: ...
    def __getitem__(self, index: int | slice) -> Shard | Sequence[Shard]:
        if isinstance(index, slice):
            return tuple(self[number] for number in range(len(self))[index])
        key, key_bytes, size, sha256, sha256_bytes = self.columns.shards[range(len(self))[index]].item()
        return Shard(self.columns.string(key, key_bytes), size, self.columns.string(sha256, sha256_bytes))

    def __eq__(self, other: object) -> bool:
        """Return whether the other sequence has equal shards."""
        if not isinstance(other, (Shards, tuple, list)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


def copied(rows: Iterable[ManifestRow]) -> Rows:
    """Return rows with arrays of their own: smaller than objects, in memory and on the way to another process."""
    writer = ColumnsWriter()
    writer.add_rows(rows)
    return Rows(writer.columns())


class ColumnsWriter:
    """Arrays that grow block by block, in memory or in the files of a folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._parts: dict[str, list[NDArray[Any]]] = {name: [] for name in TYPES}
        self._text_bytes = self._images = 0
        self._kinds: dict[tuple[str, str], int] = {}
        self._sources: dict[str, int] = {}
        self._encodings: dict[str, int] = {}
        if folder is not None:
            for name in TYPES:
                (folder / f"{name}.bin").touch()

    def add_shards(self, shards: Iterable[Shard]) -> None:
        """Append shards."""
        for block in _batched(shards, BLOCK):
            added = np.zeros(len(block), SHARD)
            added["size"] = np.array([shard.size for shard in block], np.int64)
            for name in ("key", "sha256"):
                texts = [getattr(shard, name).encode() for shard in block]
                added[name], added[f"{name}_bytes"] = self.add_text(
                    b"".join(texts), np.fromiter(map(len, texts), np.int64, len(texts))
                )
            self._append("shards", added)

    def add_text(
        self, text: bytes | NDArray[np.uint8], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Append texts, given as one; return where each begins, and its length."""
        begins = self._text_bytes + np.cumsum(lengths) - lengths
        self._append("text", np.frombuffer(text, np.uint8))
        self._text_bytes += len(text)
        return begins, lengths

    def add_images(self, images: NDArray[Any], encodings: Sequence[str]) -> None:
        """Append images of type IMAGE; `encodings` names the numbers in their field `encoding`."""
        images["encoding"] = _renumbered(images["encoding"], encodings, self._encodings)
        self._images += len(images)
        self._append("images", images)

    def add_row_block(
        self, rows: NDArray[Any], kinds: Sequence[tuple[str, str]], sources: Sequence[str]
    ) -> None:
        """Append rows of type ROW whose ids were added; `kinds` and `sources` name the numbers in their fields."""
        rows["kind"] = _renumbered(rows["kind"], kinds, self._kinds)
        rows["source"] = _renumbered(rows["source"], sources, self._sources)
        self._append("rows", rows)

    def add_rows(self, rows: Iterable[ManifestRow], first_shard: int = 0) -> None:
        """Append rows and their images, one that several of these rows share once."""
        numbers: dict[Member, int] = {}
        first = self._images
        for block in _batched(rows, BLOCK):
            known = len(numbers)
            ids = [row.id.encode() for row in block]
            added = np.zeros(len(block), ROW)
            added["id"], added["id_bytes"] = self.add_text(
                b"".join(ids), np.fromiter(map(len, ids), np.int64, len(ids))
            )
            pairs = [  # the degraded image is numbered first, as in the specification
                (
                    NO_IMAGE
                    if row.degraded is None
                    else first + numbers.setdefault(row.degraded, len(numbers)),
                    first + numbers.setdefault(row.clean, len(numbers)),
                )
                for row in block
            ]
            added["degraded"], added["clean"] = zip(*pairs, strict=True)
            new = list(islice(numbers, known, None))
            images = np.zeros(len(new), IMAGE)
            for name in ("shard", "offset", "size", "crc32", "height", "width"):
                images[name] = np.array([getattr(member, name) for member in new], IMAGE[name])
            images["shard"] += first_shard
            images["encoding"] = np.arange(len(new))
            self.add_images(images, [member.encoding for member in new])
            added["kind"] = added["source"] = np.arange(len(block))
            self.add_row_block(
                added, [(row.split, row.degradation) for row in block], [row.source for row in block]
            )

    def columns(self) -> Columns:
        """Return what was added. Raises ManifestError for more than a manifest can hold."""
        rows = self._array("rows")
        if max(len(rows), self._images) >= MAX_ROWS:
            raise ManifestError(
                f"a manifest holds at most {MAX_ROWS - 1:,} rows and as many images, and this one has {len(rows):,} "
                f"and {self._images:,}. Pack several datasets; a job may name them all."
            )
        counts = self._add_order(rows)
        arrays: dict[str, Any] = {name: self._array(name) for name in TYPES}
        return Columns(
            **arrays,
            kinds=tuple(self._kinds),
            sources=tuple(self._sources),
            encodings=tuple(self._encodings),
            counts=counts,
        )

    def _add_order(self, rows: NDArray[Any]) -> tuple[int, ...]:
        """Make the array `order`; return the number of rows of each kind."""
        small = np.uint16 if len(self._kinds) <= 1 << 16 else np.uint32  # 16 bits are sorted in linear time
        counts = np.zeros(len(self._kinds), np.int64)
        for block in blocks(rows):
            counts += np.bincount(block["kind"], minlength=len(counts))
        order, places, first = np.empty(len(rows), np.uint32), np.cumsum(counts) - counts, 0
        for block in blocks(rows):
            kinds = block["kind"].astype(small)
            found = np.argsort(kinds, kind="stable")
            numbers = np.bincount(kinds, minlength=len(counts))
            begins = places - (np.cumsum(numbers) - numbers)
            order[begins[kinds[found]] + np.arange(len(found))] = found + first
            places += numbers
            first += len(block)
        self._append("order", order)
        return tuple(counts.tolist())

    def _append(self, name: str, array: NDArray[Any]) -> None:
        if self._folder is None:
            self._parts[name].append(array)
        else:
            with (self._folder / f"{name}.bin").open("ab") as file:
                file.write(np.ascontiguousarray(array).view(np.uint8).data if len(array) else b"")

    def _array(self, name: str) -> NDArray[Any]:
        if self._folder is not None:
            return mapped(self._folder / f"{name}.bin", TYPES[name])
        parts = self._parts[name]
        joined = np.concatenate([np.empty(0, TYPES[name]), *parts]) if len(parts) != 1 else parts[0]
        self._parts[name] = [joined]
        return joined


def mapped(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the content of a file as an array that reads it when it is used."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return np.empty(0, dtype)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype)


def blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield an array in pieces of a limited length."""
    return (array[start : start + BLOCK] for start in range(0, len(array), BLOCK))


def id_text(columns: Columns, rows: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the ids of rows of type ROW as one text, and the length of each."""
    lengths = rows["id_bytes"].astype(np.int64)
    starts = rows["id"].astype(np.int64)
    if not len(rows) or (starts[1:] == starts[:-1] + lengths[:-1]).all():  # as they were written
        first = int(starts[0]) if len(rows) else 0
        return columns.text[first : first + int(lengths.sum())], lengths
    begins = np.cumsum(lengths) - lengths
    return columns.text[np.repeat(starts - begins, lengths) + np.arange(int(lengths.sum()))], lengths


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    return iter(lambda: list(islice(rest, size)), [])


def _renumbered(numbers: NDArray[Any], names: Sequence[Any], known: dict[Any, int]) -> NDArray[np.uint32]:
    """Return numbers that index `known`, to which new names are added, in place of numbers that index `names`."""
    places = np.array([known.setdefault(name, len(known)) for name in names], np.uint32)
    found: NDArray[np.uint32] = places[numbers]
    return found
