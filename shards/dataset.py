"""Published datasets, opened for reading: rows and their pixels."""

from __future__ import annotations

import mmap
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shards import tiles
from shards.augment import CropWindow
from shards.cache import ShardCache
from shards.errors import CorruptObjectError, ManifestError, MissingObjectError, PackError
from shards.images import decode_image, reduce_image
from shards.manifest import ORIGINAL, Manifest, ManifestRow, Member, Shard, load_manifest
from shards.sample import row_degradation
from shards.store import LocalStore, Store, open_store

Image = NDArray[np.uint8]
Decoder = Callable[[bytes, str], Image]

_OPEN_SHARDS = 128
_ATTEMPTS = 3


class Dataset:
    """The rows of one or more manifests as one table.

    Rows are as in their manifest, except that their shards are numbered over all manifests. Opened files
    are not pickled: a copy in another process opens its own. `digests` asks for those very manifests, whatever
    has been published at the URIs since.
    """

    def __init__(self, uris: Sequence[str], cache: ShardCache, digests: Sequence[str] = ()) -> None:
        if not uris:
            raise ManifestError("no dataset was named; give at least one URI.")
        self.uris = tuple(uris)
        self.manifests: list[Manifest] = []
        self._cache = cache
        self._shards: list[tuple[Store, Shard]] = []
        self._rows: dict[tuple[str, str], list[ManifestRow]] = {}
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()
        self._damaged: dict[int, tuple[type[CorruptObjectError | MissingObjectError], str]] = {}
        asked: Sequence[str | None] = digests or [None] * len(uris)
        for uri, digest in zip(uris, asked, strict=True):
            store = open_store(uri)
            manifest = load_manifest(store, digest)
            if manifest.digest in self.digests:
                raise ManifestError(
                    f"{uri} holds the same dataset as another URI of {', '.join(uris)}. Name it once."
                )
            first = len(self._shards)
            for row in manifest.rows:
                self._rows.setdefault((row.split, row.degradation), []).append(_renumber(row, first))
            self._shards.extend((store, shard) for shard in manifest.shards)
            self.manifests.append(manifest)

    @property
    def digests(self) -> tuple[str, ...]:
        """Identity of each dataset, in the order of the URIs."""
        return tuple(manifest.digest for manifest in self.manifests)

    def rows(self, split: str, degradation: str) -> Sequence[ManifestRow]:
        """Rows that can show a degradation, in manifest order; every noise level has the clean-only rows."""
        return self._rows.get((split, row_degradation(degradation)), [])

    @property
    def cache(self) -> ShardCache:
        """Where shards are kept on this machine."""
        return self._cache

    def row_of(self, uri: str, row: ManifestRow) -> ManifestRow:
        """A row of the manifest at `uri`, its shards numbered as `read` wants them."""
        first = 0
        for known, manifest in zip(self.uris, self.manifests, strict=True):
            if known == uri:
                return _renumber(row, first)
            first += len(manifest.shards)
        raise ValueError(f"{uri} is not among {self.uris}")

    def available(self, split: str) -> str:
        """What a split holds, in words, for messages: `noise (17), rain (34)`."""
        found = [
            f"{degradation} ({len(rows)})"
            for (s, degradation), rows in sorted(self._rows.items())
            if s == split
        ]
        return ", ".join(found) or "nothing"

    def shard_of(self, row: ManifestRow) -> int:
        """Shard that a row's images lie in; the clean one's, should they be apart."""
        return row.clean.shard

    def fetch(self, shard: int) -> None:
        """Bring a shard of a remote store into the cache."""
        store, found = self._shards[shard]
        if not isinstance(store, LocalStore):
            self._cache.path(store, found)

    def remote_bytes(self) -> tuple[int, int, int]:
        """Bytes of all shards of remote stores, of the largest of them, and that the cache may hold."""
        sizes = [shard.size for store, shard in self._shards if not isinstance(store, LocalStore)]
        return sum(sizes), max(sizes, default=0), self._cache.max_bytes

    def read(self, row: ManifestRow, window: CropWindow | None = None) -> tuple[Image | None, Image]:
        """Degraded (None in a clean-only row) and clean pixels, (h, w, 3) uint8, whole or of one window."""
        degraded = None if row.degraded is None else self._pixels(row, row.degraded, window)
        return degraded, self._pixels(row, row.clean, window)

    def read_for_display(self, row: ManifestRow) -> tuple[Image | None, Image]:
        """`read` for people to look at: kept files of any kind, reduced to 8-bit RGB."""
        degraded = None if row.degraded is None else self._pixels(row, row.degraded, None, reduce_image)
        return degraded, self._pixels(row, row.clean, None, reduce_image)

    def clean_for_display(self, row: ManifestRow) -> Image:
        """Clean pixels of a row to look at and compare, (h, w, 3) uint8, whole; others are reduced to 8-bit RGB."""
        return self._pixels(row, row.clean, None, reduce_image)

    def _pixels(
        self, row: ManifestRow, member: Member, window: CropWindow | None, decode: Decoder = decode_image
    ) -> Image:
        if member.encoding not in (*tiles.CODECS.values(), ORIGINAL):
            raise ManifestError(
                f"sample {row.id!r} is encoded as {member.encoding!r}, which this program cannot read."
            )
        store, shard = self._shards[member.shard]
        with memoryview(self._map(member.shard))[member.offset : member.offset + member.size] as view:
            try:
                if member.encoding == ORIGINAL:
                    return _of_file(bytes(view), member, window, decode)
                if window is not None:
                    return tiles.crop(view, *window)
                if zlib.crc32(view) != member.crc32:
                    raise CorruptObjectError("its checksum does not fit.")
                return tiles.decode(view)
            except CorruptObjectError as error:
                raise CorruptObjectError(
                    f"{store.uri}/{shard.key}, sample {row.id!r} at byte {member.offset}: {error}"
                ) from error

    def _map(self, index: int) -> mmap.mmap:
        if index in self._maps:
            self._maps.move_to_end(index)
            return self._maps[index]
        if index in self._damaged:
            kind, message = self._damaged[index]
            raise kind(message)  # a fresh one: an error that is raised again holds all that it ever passed
        try:
            opened = self._open(index)
        except (CorruptObjectError, MissingObjectError) as error:
            self._damaged[index] = type(error), str(error)  # not fetched again for every sample of it
            raise
        self._let_go()
        self._maps[index] = opened
        return opened

    def _let_go(self) -> None:
        """Close the shards that were evicted meanwhile, so that their bytes leave the disk, and the oldest."""
        for index in list(self._maps):
            store, shard = self._shards[index]
            if len(self._maps) >= _OPEN_SHARDS or not self._cache.holds(store, shard):
                del self._maps[index]

    def _open(self, index: int) -> mmap.mmap:
        store, shard = self._shards[index]
        for _ in range(_ATTEMPTS):
            try:
                with self._cache.path(store, shard).open("rb") as file:
                    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except FileNotFoundError:
                continue  # another process evicted it between the two calls
        raise CorruptObjectError(
            f"{store.uri}/{shard.key} is evicted from the cache {self._cache.folder} as fast as it comes. "
            "Give the cache more room."
        )

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_maps": OrderedDict()}


def _of_file(data: bytes, member: Member, window: CropWindow | None, decode: Decoder) -> Image:
    """Pixels of a source file that was kept as it is; it is decoded whole, whatever the window."""
    if zlib.crc32(data) != member.crc32:
        raise CorruptObjectError("its checksum does not fit.")
    try:
        image = decode(data, "a kept file")
    except PackError as error:
        raise CorruptObjectError(f"{error} Samples that are read must be 8-bit grey or RGB.") from error
    return image if window is None else window.of(image)


def _renumber(row: ManifestRow, first: int) -> ManifestRow:
    if first == 0:
        return row
    degraded = None if row.degraded is None else replace(row.degraded, shard=row.degraded.shard + first)
    return replace(row, degraded=degraded, clean=replace(row.clean, shard=row.clean.shard + first))
