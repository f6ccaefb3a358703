"""Published datasets opened for random access to rows and their pixels.

WebDataset reads a tar from its first byte to its last. Training needs single images in random order, and crops of
them, so shards are read here at the offsets in the manifest. `shards.pipeline` reads in sequence.
"""

from __future__ import annotations

import os
import zlib
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain
from typing import Any, BinaryIO, overload

import numpy as np
from numpy.typing import NDArray

from shards.augment import CropWindow
from shards.cache import ShardCache
from shards.columns import Rows
from shards.encodings import WINDOWED
from shards.errors import CorruptObjectError, ManifestError, MissingObjectError, PackError
from shards.images import decode_image, reduce_image
from shards.manifest import ORIGINAL, Manifest, ManifestRow, Member, Shard, load_manifest
from shards.sample import row_degradation
from shards.store import LocalStore, Store, open_store

Image = NDArray[np.uint8]
Decoder = Callable[[bytes, str], Image]

_OPEN_SHARDS = 128
"""Number of shards that a process keeps open; each takes a descriptor, of which a process may have 1,024."""


class _OpenShard:
    """A shard that is open for reading until nothing refers to it."""

    def __init__(self, file: BinaryIO) -> None:
        with file:
            self._descriptor = os.dup(file.fileno())

    def __del__(self) -> None:
        os.close(self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the shard. Raises CorruptObjectError when it ends before them."""
        data = os.pread(self._descriptor, size, offset)
        while len(data) < size:  # a call returns at most 2 GiB
            more = os.pread(self._descriptor, size - len(data), offset + len(data))
            if not more:
                raise CorruptObjectError(f"its shard ends at byte {offset + len(data)}.")
            data += more
        return data


class _ImageBytes:
    """The bytes of one image in a shard, read in slices: a crop needs a few of its parts."""

    def __init__(self, shard: _OpenShard, member: Member) -> None:
        self._shard, self._member = shard, member

    def __len__(self) -> int:
        return self._member.size

    def __getitem__(self, span: slice) -> bytes:
        start, stop, _ = span.indices(self._member.size)
        return self._shard.read(self._member.offset + start, stop - start)


@dataclass(frozen=True)
class DatasetRows(Sequence[ManifestRow]):
    """Rows of several manifests, one after another; each is made when it is asked for."""

    parts: tuple[Rows, ...]

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        return tuple(accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> ManifestRow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ManifestRow]: ...
    def __getitem__(self, index: int | slice) -> ManifestRow | Sequence[ManifestRow]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        part = bisect_right(self._ends, number)
        return self.parts[part][number - self._ends[part] + len(self.parts[part])]

    def __iter__(self) -> Iterator[ManifestRow]:
        return chain.from_iterable(self.parts)

    def ids(self) -> list[str]:
        """Return the ids of all rows."""
        return [id_ for part in self.parts for id_ in part.ids()]

    def clean_images(self) -> Iterator[NDArray[Any]]:
        """Yield the clean images of all rows as arrays with the fields of `shards.columns.IMAGE`, block by block."""
        return chain.from_iterable(part.clean_images() for part in self.parts)

    def clean_shards(self) -> NDArray[np.int64]:
        """Return the shard of each row's clean image, which normally holds all its images."""
        found = [block["shard"].astype(np.int64) for block in self.clean_images()]
        return np.concatenate([np.empty(0, np.int64), *found])


class Dataset:
    """The rows of one or more manifests as one table.

    Rows are those of the manifests, with shards numbered over all manifests. A pickled copy opens its own files.
    `digests` selects exact manifests, whatever has been published at the URIs since.
    """

    def __init__(self, uris: Sequence[str], cache: ShardCache, digests: Sequence[str] = ()) -> None:
        if not uris:
            raise ManifestError("no dataset was named; give at least one URI.")
        self.uris = tuple(uris)
        self.manifests: list[Manifest] = []
        self._cache = cache
        self._stores: list[Store] = []
        self._first_shards: list[int] = []
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._last_eviction = 0
        self._damaged: dict[int, tuple[type[CorruptObjectError | MissingObjectError], str]] = {}
        asked: Sequence[str | None] = digests or [None] * len(uris)
        for uri, digest in zip(uris, asked, strict=True):
            store = open_store(uri)
            manifest = load_manifest(store, digest, cache.folder)
            if manifest.digest in self.digests:
                raise ManifestError(
                    f"{uri} holds the same dataset as another URI of {', '.join(uris)}. Name it once."
                )
            self._first_shards.append(sum(len(earlier.shards) for earlier in self.manifests))
            self._stores.append(store)
            self.manifests.append(manifest)

    @property
    def digests(self) -> tuple[str, ...]:
        """Manifest digest of each dataset, in the order of the URIs."""
        return tuple(manifest.digest for manifest in self.manifests)

    def rows(self, split: str, degradation: str) -> DatasetRows:
        """Return the rows of a degradation in manifest order; each noise level has the clean-only rows."""
        label = row_degradation(degradation)
        selected = (
            replace(manifest.columns.select(split, label), first_shard=first)
            for manifest, first in zip(self.manifests, self._first_shards, strict=True)
        )
        return DatasetRows(tuple(rows for rows in selected if len(rows)))

    @property
    def cache(self) -> ShardCache:
        """Cache of shards on this machine."""
        return self._cache

    def row_of(self, uri: str, row: ManifestRow) -> ManifestRow:
        """Return a row of the manifest at `uri` with its shards numbered over all manifests."""
        known = dict(zip(self.uris, self._first_shards, strict=True))
        if uri not in known:
            raise ValueError(f"{uri} is not among {self.uris}")
        return _renumber(row, known[uri])

    def available(self, split: str) -> str:
        """Return what a split holds, for messages: `noise (17), rain (34)`."""
        held: Counter[str] = Counter()
        for manifest in self.manifests:
            held.update(manifest.counts().get(split, {}))
        return (
            ", ".join(f"{degradation} ({number})" for degradation, number in sorted(held.items()))
            or "nothing"
        )

    def fetch(self, shard: int) -> None:
        """Download a shard of a remote store into the cache."""
        store, found = self._shard(shard)
        if not isinstance(store, LocalStore):
            self._cache.path(store, found)

    def remote_bytes(self) -> tuple[int, int, int]:
        """Return the bytes of all remote shards, of the largest one, and the limit of the cache."""
        remote = [
            manifest.columns.shards["size"]
            for store, manifest in zip(self._stores, self.manifests, strict=True)
            if not isinstance(store, LocalStore) and len(manifest.shards)
        ]
        largest = max((int(sizes.max()) for sizes in remote), default=0)
        return sum(int(sizes.sum()) for sizes in remote), largest, self._cache.max_bytes

    def read(self, row: ManifestRow, window: CropWindow | None = None) -> tuple[Image | None, Image]:
        """Return degraded (None in a clean-only row) and clean pixels, (h, w, 3) uint8, whole or of one window.

        Raises CorruptObjectError for images that are damaged, or of two sizes.
        """
        if row.degraded is not None and _size(row.degraded) != _size(row.clean):
            a, b = (f"{width} x {height}" for height, width in map(_size, (row.degraded, row.clean)))
            raise CorruptObjectError(
                f"sample {row.id!r}: its degraded image has {a} pixels and its clean one {b}. Pack it again."
            )
        degraded = None if row.degraded is None else self._pixels(row, row.degraded, window)
        return degraded, self._pixels(row, row.clean, window)

    def read_for_display(self, row: ManifestRow) -> tuple[Image | None, Image]:
        """Return the images of `read`, reduced to 8-bit RGB where a source file has another depth or alpha."""
        degraded = None if row.degraded is None else self._pixels(row, row.degraded, None, reduce_image)
        return degraded, self.clean_for_display(row)

    def clean_for_display(self, row: ManifestRow) -> Image:
        """Return the clean image of a row, (h, w, 3) uint8, reduced to 8-bit RGB where it has another kind."""
        return self._pixels(row, row.clean, None, reduce_image)

    def _pixels(
        self, row: ManifestRow, member: Member, window: CropWindow | None, decode: Decoder = decode_image
    ) -> Image:
        kind = WINDOWED.get(member.encoding)
        if kind is None and member.encoding != ORIGINAL:
            raise ManifestError(
                f"sample {row.id!r} is encoded as {member.encoding!r}, which this program cannot read."
            )
        data = _ImageBytes(self._opened(member.shard), member)
        try:
            if kind is None:
                return _decode_file(data[:], member, window, decode)
            if window is not None:
                image = kind(data)
                _require_size(image.shape, member)
                return image.crop(*window)
            whole = data[:]
            _require_checksum(whole, member)
            image = kind(whole)
            _require_size(image.shape, member)
            return image.crop(0, 0, *image.shape)
        except CorruptObjectError as error:
            store, shard = self._shard(member.shard)
            raise CorruptObjectError(
                f"{store.uri}/{shard.key}, sample {row.id!r} at byte {member.offset}: {error}"
            ) from error

    def _shard(self, number: int) -> tuple[Store, Shard]:
        """Return a shard, numbered over all manifests, and its store."""
        part = bisect_right(self._first_shards, number) - 1
        return self._stores[part], self.manifests[part].shards[number - self._first_shards[part]]

    def _opened(self, index: int) -> _OpenShard:
        if index in self._open:
            self._open.move_to_end(index)
            return self._open[index]
        if index in self._damaged:
            kind, message = self._damaged[index]
            raise kind(message)  # a new one: raising an old error again keeps every traceback it ever had
        try:
            opened = _OpenShard(self._cache.open(*self._shard(index), buffering=0))
        except (CorruptObjectError, MissingObjectError) as error:
            self._damaged[index] = type(error), str(error)  # do not download it again for each of its samples
            raise
        self._close_unused()
        self._open[index] = opened
        return opened

    def _close_unused(self) -> None:
        """Close evicted shards, so that their bytes leave the disk, and the least recently used one when full."""
        last = self._cache.last_eviction()
        if last != self._last_eviction:  # to ask about every open shard takes longer than to read a sample
            self._last_eviction = last
            for index in [i for i in self._open if not self._cache.holds(*self._shard(i))]:
                del self._open[index]
        if len(self._open) >= _OPEN_SHARDS:
            self._open.popitem(last=False)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict()}


def _decode_file(data: bytes, member: Member, window: CropWindow | None, decode: Decoder) -> Image:
    """Return the pixels of an unchanged source file, which is decoded whole even for one window."""
    _require_checksum(data, member)
    try:
        image = decode(data, "a kept file")
    except PackError as error:
        raise CorruptObjectError(f"{error} Samples that are read must be 8-bit grey or RGB.") from error
    _require_size(image.shape[:2], member)
    return image if window is None else window.of(image)


def _size(member: Member) -> tuple[int, int]:
    return member.height, member.width


def _require_checksum(data: bytes, member: Member) -> None:
    if zlib.crc32(data) != member.crc32:
        raise CorruptObjectError("its checksum does not match.")


def _require_size(found: tuple[int, ...], member: Member) -> None:
    if found != (member.height, member.width):
        raise CorruptObjectError(
            f"it has {found[1]} x {found[0]} pixels, and the manifest says {member.width} x {member.height}."
        )


def _renumber(row: ManifestRow, first: int) -> ManifestRow:
    if first == 0:
        return row
    degraded = None if row.degraded is None else replace(row.degraded, shard=row.degraded.shard + first)
    return replace(row, degraded=degraded, clean=replace(row.clean, shard=row.clean.shard + first))
