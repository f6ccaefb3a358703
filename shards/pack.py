"""Pairs in, WebDataset shards and a manifest out.

One group is one WebDataset sample: a clean image, stored once, with all the degraded images that share it.

    000000-astronaut.clean.tiles        the clean image
    000000-astronaut.json               which rows the group holds
    000000-astronaut.rain-0.tiles       degraded images, numbered within the group

Shards are named by their content and the manifest comes last, so packing can be killed at any moment: a
reader sees the whole dataset or none, and packing again writes only what is missing.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from shards import tiles
from shards.errors import PackError
from shards.listing import digest_of, listing_key
from shards.manifest import VERSION, Manifest, Member, Row, Shard, publish
from shards.sample import NOISE
from shards.sources import Pair, Source
from shards.store import Store

Progress = Callable[[int, int, str], None]

_BLOCK = 512  # tar's unit: every header takes one, every member is padded to one


def pack(
    source: Source,
    store: Store,
    *,
    name: str,
    encoding: str = "fast",
    shard_bytes: int = 64 << 20,
    on_progress: Progress | None = None,
) -> Manifest:
    """Write `source` to `store` and publish it; returns the manifest.

    The same pairs and options give the same bytes, so a second run changes nothing. A shard is closed as
    soon as it holds `shard_bytes`. `on_progress(done, total, id)` is called after every row.
    """
    if encoding not in tiles.CODECS:
        raise PackError(f"encoding {encoding!r} is unknown; use one of {', '.join(tiles.CODECS)}.")
    store.ensure_bucket()
    rows: list[Row] = []
    shards: list[Shard] = []
    licences: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    with tempfile.TemporaryDirectory(prefix="shards-") as folder, ExitStack() as open_tars:
        tar: _Tar | None = None
        for index, group in enumerate(_groups(source)):
            for pair in group:
                _check(pair, seen)
                licences[pair.source] = pair.licence
            if tar is None:
                tar = _Tar(Path(folder) / f"{len(shards)}.tar", len(shards))
                open_tars.callback(tar.close)
            for row in tar.add(f"{index:06d}-{_safe(group[0].id)}", group, encoding):
                rows.append(row)
                if on_progress is not None:
                    on_progress(len(rows), len(source), row.id)
            if tar.size >= shard_bytes:
                shards.append(tar.seal(store))
                tar = None
        if tar is not None:
            shards.append(tar.seal(store))
    if not rows:
        raise PackError(f"dataset {name!r}: the source has no pairs, so nothing was published.")
    provenance = {
        **source.provenance,
        "sources": [_store_listing(store, listing) for listing in source.listings],
        "encoding": encoding,
        "shard_bytes": shard_bytes,
        "format": VERSION,
    }
    manifest = Manifest(name, tuple(shards), tuple(rows), licences, provenance)
    publish(store, manifest)
    return manifest


def decode_tiles(key: str, data: bytes) -> Any:
    """Decoder for vanilla WebDataset: `wds.WebDataset(urls).decode(decode_tiles)` gives uint8 RGB arrays."""
    return tiles.decode(data) if key.endswith(".tiles") else None


class _Tar:
    """One shard that is being written to a local file."""

    def __init__(self, path: Path, shard: int) -> None:
        import webdataset

        self._path, self._shard = path, shard
        self._file = path.open("wb")
        # Fixed owner and time: the bytes, and with them the shard's name, depend on the pairs alone.
        self._writer = webdataset.TarWriter(self._file, encoder=False, mtime=0, user="shards", group="shards")

    @property
    def size(self) -> int:
        return int(self._writer.tarstream.offset)

    def add(self, key: str, group: list[Pair], encoding: str) -> list[Row]:
        """Write one group and return its rows."""
        names = [None if p.degraded is None else f"{p.degradation}-{i}.tiles" for i, p in enumerate(group)]
        members = {"clean.tiles": tiles.encode(group[0].clean, encoding)}
        for pair, member in zip(group, names, strict=True):
            if pair.degraded is not None and member is not None:
                members[member] = tiles.encode(pair.degraded, encoding)
        members["json"] = _json(
            [
                {
                    "id": p.id,
                    "split": p.split,
                    "degradation": p.degradation,
                    "degraded": m,
                    "source": p.source,
                }
                for p, m in zip(group, names, strict=True)
            ]
        )
        offset, places = self.size, {}
        height, width, _ = group[0].clean.shape
        for member in sorted(members):  # the order that TarWriter writes them in
            data = members[member]
            places[member] = Member(
                self._shard,
                offset + _BLOCK,
                len(data),
                zlib.crc32(data),
                tiles.CODECS[encoding],
                height,
                width,
            )
            offset += _BLOCK + -(-len(data) // _BLOCK) * _BLOCK
        self._writer.write({"__key__": key, **members})
        if self.size != offset:
            raise PackError(f"group {key!r} took {self.size} bytes of its shard instead of {offset}.")
        return [
            Row(
                p.id,
                p.split,
                p.degradation,
                places[member] if member is not None else None,
                places["clean.tiles"],
                p.source,
            )
            for p, member in zip(group, names, strict=True)
        ]

    def close(self) -> None:
        """Finish the tar; once is enough."""
        if not self._file.closed:
            self._writer.close()
            self._file.close()

    def seal(self, store: Store) -> Shard:
        """Close the tar, name it by its content and upload it."""
        self.close()
        with self._path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        shard = Shard(f"shards/{digest}.tar", self._path.stat().st_size, digest)
        store.write_file(shard.key, self._path)
        self._path.unlink()
        return shard


def _store_listing(store: Store, listing: bytes) -> str:
    digest = digest_of(listing)
    store.write(listing_key(digest), listing)
    return digest


def _groups(source: Source) -> Iterator[list[Pair]]:
    """Runs of pairs with the same clean image."""
    group: list[Pair] = []
    for pair in source:
        if group and not (pair.clean is group[0].clean or np.array_equal(pair.clean, group[0].clean)):
            yield group
            group = []
        group.append(pair)
    if group:
        yield group


def _check(pair: Pair, seen: set[tuple[str, str]]) -> None:
    if (pair.degraded is None) != (pair.degradation == NOISE):
        raise PackError(
            f"pair {pair.id!r}: only {NOISE!r} goes without a degraded image, not {pair.degradation!r}."
        )
    if pair.degraded is not None and pair.degraded.shape != pair.clean.shape:
        raise PackError(
            f"pair {pair.id!r}: the degraded image is {pair.degraded.shape}, the clean {pair.clean.shape}."
        )
    if (pair.degradation, pair.id) in seen:
        raise PackError(f"pair {pair.id!r} ({pair.degradation}) comes twice; names must be unique.")
    seen.add((pair.degradation, pair.id))


def _safe(name: str) -> str:
    """A key without dots and slashes, which WebDataset would read as suffix and folder."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:48]


def _json(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
