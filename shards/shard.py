"""One shard: the task of packing it, the tar, and the record that lets an interrupted packing go on.

One group is one WebDataset sample: a clean image, stored once, with all the degraded images that share it.

    000000-astronaut.clean.tiles        the clean image
    000000-astronaut.json               which rows the group holds
    000000-astronaut.rain-0.tiles       degraded images, numbered within the group

A task holds no pixels, so it can be sent to another process or machine. Its result is written beside the shards,
under the digest of the task, until the dataset is published: the same task again is then done already.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards import manifest as manifests
from shards import tiles
from shards.errors import ManifestError, MissingObjectError, PackError
from shards.images import decode_image, read_bytes, read_header, read_samples
from shards.manifest import ORIGINAL, Manifest, ManifestRow, Member, Shard
from shards.processes import RowsCallback
from shards.sources.image import SourceImage
from shards.sources.pair import Pair
from shards.store import Store

RECORDS = "packing/"
_BLOCK = 512  # tar's unit: every header takes one, every member is padded to one
_JPEG = "JPEG"


@dataclass(frozen=True)
class ShardTask:
    """All that packing one shard takes."""

    store: Store
    groups: tuple[tuple[int, tuple[Pair, ...]], ...]
    """Number of each group in the dataset, and its pairs: they share a clean image."""
    encoding: str
    keep_jpeg: bool

    @property
    def pairs(self) -> int:
        """How many pairs it packs."""
        return sum(len(pairs) for _, pairs in self.groups)

    def digest(self) -> str:
        """Changes when anything does that the shard's bytes depend on."""
        content = [
            [
                number,
                [
                    [p.id, p.split, p.degradation, p.source, p.degraded and p.degraded.stamp, p.clean.stamp]
                    for p in pairs
                ],
            ]
            for number, pairs in self.groups
        ]
        return hashlib.sha256(_json([self.encoding, self.keep_jpeg, content])).hexdigest()


@dataclass(frozen=True)
class PackedShard:
    """What came of a task."""

    shard: Shard | None
    """None when no pair could be packed."""
    rows: tuple[ManifestRow, ...]
    """Their members are in shard 0."""
    misses: tuple[tuple[str, str], ...]
    """Id of a pair, and why it could not be packed."""
    psnr: tuple[tuple[str, str, int, float], ...]
    """Split, degradation, pairs and the sum of their PSNR against the clean image, in dB."""
    jpeg_bytes: tuple[int, int]
    """Of JPEG files that were tiled: before and after."""


def pack_shard(task: ShardTask, on_rows: RowsCallback) -> PackedShard:
    """Write one shard to the store, unless its record says that it is there."""
    key = f"{RECORDS}{task.digest()}.json"
    known = _read_record(task.store, key)
    if known is not None:
        on_rows(task.pairs, task.groups[-1][1][-1].id)
        return known
    with _room(), tempfile.TemporaryDirectory(prefix="shards-") as folder:
        writer = _ShardWriter(Path(folder) / "shard.tar", task)
        with writer:
            for number, pairs in task.groups:
                writer.add(f"{number:06d}-{_safe(pairs[0].id)}", pairs, on_rows)
        packed = writer.seal(task.store)
    task.store.write(key, _record(packed))
    return packed


def decode_tiles(key: str, data: bytes) -> Any:
    """Decoder for vanilla WebDataset: `wds.WebDataset(urls).decode(decode_tiles)` gives uint8 RGB arrays."""
    return tiles.decode(data) if key.endswith(".tiles") else None


def decode_images(key: str, data: bytes) -> Any:
    """`decode_tiles` for every encoding: files that were kept as they are give their own channels and depth."""
    suffix = key.rpartition(".")[2]
    if suffix == "tiles":
        return tiles.decode(data)
    return read_samples(data, key) if suffix in SUFFIX.values() else None


SUFFIX = {
    "JPEG": "jpg",
    "PNG": "png",
    "BMP": "bmp",
    "TIFF": "tif",
    "WEBP": "webp",
    "PPM": "ppm",
    "MPO": "jpg",
}
"""Suffix of a kept file in a shard, by its format as Pillow names it."""


@dataclass(frozen=True, slots=True)
class _EncodedImage:
    """One image as it goes into the tar."""

    suffix: str
    encoding: str
    data: bytes
    pixels: NDArray[Any]


class _ShardWriter:
    """One shard that is being written to a local file."""

    def __init__(self, path: Path, task: ShardTask) -> None:
        self._path, self._task = path, task
        self._rows: list[ManifestRow] = []
        self._misses: list[tuple[str, str]] = []
        self._psnr: dict[tuple[str, str], list[float]] = {}
        self._jpeg = [0, 0]

    def __enter__(self) -> None:
        self._tar = tarfile.open(self._path, "w", format=tarfile.USTAR_FORMAT)

    def __exit__(self, *error: object) -> None:
        self._tar.close()

    def add(self, key: str, pairs: tuple[Pair, ...], on_rows: RowsCallback) -> None:
        """Write one group; a pair that cannot be read is missed, and the others are packed."""
        try:
            clean = self._store(pairs[0].clean)
        except PackError as error:
            self._misses += [(pair.id, str(error)) for pair in pairs]
            on_rows(len(pairs), pairs[-1].id)
            return
        members = {f"clean.{clean.suffix}": clean}
        held: list[tuple[Pair, str | None]] = []
        for number, pair in enumerate(pairs):
            name = None
            if pair.degraded is not None:
                try:
                    stored = self._store(pair.degraded)
                    if stored.pixels.shape[:2] != clean.pixels.shape[:2]:
                        raise PackError(
                            f"{pair.degraded.name}: the degraded image is {stored.pixels.shape}, the clean one "
                            f"{clean.pixels.shape}."
                        )
                except PackError as error:
                    self._misses.append((pair.id, str(error)))
                    on_rows(1, pair.id)
                    continue
                name = f"{pair.degradation}-{number}.{stored.suffix}"
                members[name] = replace(
                    stored, pixels=stored.pixels[:0]
                )  # its pixels are not needed any more
                self._compare(pair, stored.pixels, clean.pixels)
            held.append((pair, name))
            on_rows(1, pair.id)
        if held:
            self._write(key, held, members, clean)

    def seal(self, store: Store) -> PackedShard:
        """Name the tar by its content and upload it."""
        psnr = tuple((*key, len(values), sum(values)) for key, values in sorted(self._psnr.items()))
        shard = None
        if self._rows:
            with self._path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            shard = Shard(f"shards/{digest}.tar", self._path.stat().st_size, digest)
            store.write_file(shard.key, self._path)
        return PackedShard(
            shard, tuple(self._rows), tuple(self._misses), psnr, (self._jpeg[0], self._jpeg[1])
        )

    def _write(
        self,
        key: str,
        held: list[tuple[Pair, str | None]],
        members: dict[str, _EncodedImage],
        clean: _EncodedImage,
    ) -> None:
        clean_name = f"clean.{clean.suffix}"
        listed = [
            {
                "id": pair.id,
                "split": pair.split,
                "degradation": pair.degradation,
                "clean": clean_name,
                "degraded": name,
                "source": pair.source,
            }
            for pair, name in held
        ]
        height, width = clean.pixels.shape[:2]
        places = {}
        for name in sorted([*members, "json"]):
            stored = members.get(name)
            data = _json(listed) if stored is None else stored.data
            offset = self._put(f"{key}.{name}", data)
            if stored is not None:
                crc = zlib.crc32(data)
                places[name] = Member(0, offset, len(data), crc, stored.encoding, height, width)
        self._rows += [
            ManifestRow(
                pair.id,
                pair.split,
                pair.degradation,
                None if name is None else places[name],
                places[clean_name],
                pair.source,
            )
            for pair, name in held
        ]

    def _put(self, name: str, data: bytes) -> int:
        """Append one member and return where its bytes begin."""
        info = tarfile.TarInfo(name)
        # Fixed owner, mode and time: the bytes, and with them the shard's name, depend on the pairs alone.
        info.size, info.mtime, info.mode = len(data), 0, 0o444
        info.uname = info.gname = "shards"
        offset = self._tar.offset + _BLOCK
        self._tar.addfile(info, io.BytesIO(data))
        return offset

    def _store(self, picture: SourceImage) -> _EncodedImage:
        """The image as the task wants it stored; reading it proves that it is whole."""
        encoding = self._task.encoding
        if picture.file is not None:
            header = read_header(picture.file)
            is_jpeg = header.format in (_JPEG, "MPO")
            if encoding == ORIGINAL or (is_jpeg and self._task.keep_jpeg):
                if header.format not in SUFFIX:
                    raise PackError(f"{picture.name}: {header.format} files cannot be kept. Save it as PNG.")
                data = read_bytes(picture.file)
                decode = decode_image if header.plain else read_samples
                return _EncodedImage(SUFFIX[header.format], ORIGINAL, data, decode(data, picture.name))
        pixels = picture.pixels()
        data = tiles.encode(pixels, encoding)
        if picture.file is not None and is_jpeg:
            self._jpeg[0] += picture.file.stat().st_size
            self._jpeg[1] += len(data)
        return _EncodedImage("tiles", tiles.CODECS[encoding], data, pixels)

    def _compare(self, pair: Pair, degraded: NDArray[Any], clean: NDArray[Any]) -> None:
        if degraded.shape == clean.shape and degraded.dtype == clean.dtype == np.uint8:
            difference = np.subtract(degraded, clean, dtype=np.int16)
            error = int(np.square(difference, dtype=np.int32).sum(dtype=np.int64)) / difference.size
            psnr = 100.0 if error == 0 else float(10 * np.log10(255**2 / error))
            self._psnr.setdefault((pair.split, pair.degradation), []).append(psnr)


def _record(packed: PackedShard) -> bytes:
    """A manifest of one shard, with what else there is to know in its provenance."""
    extra = {"misses": packed.misses, "psnr": packed.psnr, "jpeg_bytes": packed.jpeg_bytes}
    shards = () if packed.shard is None else (packed.shard,)
    return manifests.to_bytes(Manifest("one shard", shards, packed.rows, provenance=extra))


def _read_record(store: Store, key: str) -> PackedShard | None:
    """What an earlier packing wrote, if nothing was missed and its shard is there too."""
    try:
        data = store.read(key)
    except MissingObjectError:
        return None
    try:
        found = manifests.from_bytes(data, f"{store.uri}/{key}")
    except ManifestError:
        store.delete(key)  # damaged, and it can be made again
        return None
    extra = found.provenance
    shard = found.shards[0] if found.shards else None
    if extra["misses"] or (shard is not None and not store.exists(shard.key)):
        store.delete(key)  # what could not be read may be mended, with nothing to show for it on the file
        return None
    return PackedShard(
        shard,
        found.rows,
        (),
        tuple((split, degradation, n, total) for split, degradation, n, total in extra["psnr"]),
        (extra["jpeg_bytes"][0], extra["jpeg_bytes"][1]),
    )


@contextmanager
def _room() -> Iterator[None]:
    """Say which disk is full: the shard is first written to the folder for temporary files."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise PackError(
            f"{tempfile.gettempdir()}: no space left for a shard that is being written. Free some, or name another "
            "folder with TMPDIR. What is packed already is kept: pack again to go on."
        ) from error


def _safe(name: str) -> str:
    """A key without dots and slashes, which WebDataset would read as suffix and folder."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:48]


def _json(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
