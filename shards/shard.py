"""Pack one shard: the task, the tar file, and the record that makes packing resumable.

A WebDataset sample is a *group*: one clean image, stored once, and all degraded images made from it.

    000000-astronaut.clean.tiles        the clean image
    000000-astronaut.json               the rows of the group
    000000-astronaut.rain-0.tiles       degraded images, numbered within the group

A task holds no pixels, so it can be sent to another process or machine. Its result is stored beside the shards under
the digest of the task until the dataset is published; running the same task again returns the stored result.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards import jpeg_intervals, tiles
from shards import manifest as manifests
from shards.errors import ManifestError, MissingObjectError, PackError
from shards.filesystem import temporary_folder
from shards.images import ImageHeader, decode_image, read_bytes, read_header, read_samples
from shards.manifest import ORIGINAL, Manifest, ManifestRow, Member, Shard
from shards.processes import RowsCallback
from shards.scan import Jpeg
from shards.sources.image import SourceImage
from shards.sources.pair import Pair
from shards.store import Store

RECORDS = "packing/"
_CONTINUE = " Finished shards are kept: run the same command again to continue."
_BLOCK = 512  # a tar header takes one block, and each member is padded to whole blocks
_JPEG = ("JPEG", "MPO")


@dataclass(frozen=True)
class ShardTask:
    """Everything that packing one shard needs."""

    store: Store
    groups: tuple[tuple[int, tuple[Pair, ...]], ...]
    """Number of each group in the dataset, and its pairs, which share a clean image."""
    encoding: str
    jpeg: Jpeg

    @property
    def pairs(self) -> int:
        """Number of pairs in the task."""
        return sum(len(pairs) for _, pairs in self.groups)

    def digest(self) -> str:
        """Return a digest of everything that the shard's bytes depend on."""
        content = [[number, [_identity(pair) for pair in pairs]] for number, pairs in self.groups]
        jpeg = {"keep": True, "tile": False}.get(
            self.jpeg, self.jpeg
        )  # as records of earlier versions have it
        return hashlib.sha256(_json([self.encoding, jpeg, content])).hexdigest()


@dataclass(frozen=True)
class PackedShard:
    """Result of a task."""

    shard: Shard | None
    """None when no pair could be packed."""
    rows: Sequence[ManifestRow]
    """Rows of the shard; their members name shard 0."""
    misses: tuple[tuple[str, str], ...]
    """Id of each pair that could not be packed, and the reason."""
    psnr: tuple[tuple[str, str, int, float], ...]
    """Split, degradation, number of pairs, and the sum of their PSNR against the clean image in dB."""
    jpeg_bytes: tuple[int, int]
    """Bytes of the JPEG files that were converted, to tiles or to intervals, before and after."""
    whole_jpegs: int
    """Number of JPEG files that were to be cut into intervals, and had to be kept as they are."""


def pack_shard(task: ShardTask, on_rows: RowsCallback) -> PackedShard:
    """Write one shard to the store, or return the recorded result of the same task."""
    key = f"{RECORDS}{task.digest()}.json"
    recorded = _read_record(task.store, key)
    if recorded is not None:
        on_rows(task.pairs, task.groups[-1][1][-1].id)
        return recorded
    with temporary_folder(PackError, "a shard that is being written", _CONTINUE) as folder:
        writer = _ShardWriter(folder / "shard.tar", task)
        with writer:
            for number, pairs in task.groups:
                writer.add(f"{number:06d}-{_safe(pairs[0].id)}", pairs, on_rows)
        packed = writer.upload(task.store)
    task.store.write(key, _record(packed))
    return packed


def decode_tiles(key: str, data: bytes) -> Any:
    """Decode tiled images for WebDataset: `wds.WebDataset(urls).decode(decode_tiles)` yields uint8 RGB arrays."""
    return tiles.decode(data) if key.endswith(".tiles") else None


def decode_images(key: str, data: bytes) -> Any:
    """Decode images of every encoding for WebDataset; unchanged source files keep their channels and depth."""
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
"""Suffix in a shard of an unchanged source file, by its format as Pillow names it."""


@dataclass(frozen=True, slots=True)
class _EncodedImage:
    """One image as it is stored in the tar."""

    suffix: str
    encoding: str
    data: bytes
    pixels: NDArray[Any]


class _ShardWriter:
    """Writer of one shard to a local file."""

    def __init__(self, path: Path, task: ShardTask) -> None:
        self._path, self._task = path, task
        self._rows: list[ManifestRow] = []
        self._misses: list[tuple[str, str]] = []
        self._psnr: dict[tuple[str, str], list[float]] = {}
        self._jpeg_bytes = [0, 0]
        self._whole_jpegs = 0

    def __enter__(self) -> None:
        from webdataset import TarWriter  # imports torch: only a process that packs pays for it

        self._file = self._path.open("wb")
        # Fixed owner, mode and time: the bytes, and therefore the shard's name, depend on the pairs alone.
        self._tar = TarWriter(self._file, user="shards", group="shards", mode=0o444, mtime=0, encoder=False)

    def __exit__(self, *error: object) -> None:
        with self._file:
            self._tar.close()

    def add(self, key: str, pairs: tuple[Pair, ...], on_rows: RowsCallback) -> None:
        """Write one group; a pair that cannot be read becomes a miss, the others are packed."""
        try:
            clean = self._encode(pairs[0].clean)
        except PackError as error:
            self._misses += [(pair.id, str(error)) for pair in pairs]
            on_rows(len(pairs), pairs[-1].id)
            return
        images = {f"clean.{clean.suffix}": clean}
        packed: list[tuple[Pair, str | None]] = []
        for number, pair in enumerate(pairs):
            try:
                degraded = self._encode_degraded(pair, clean)
            except PackError as error:
                self._misses.append((pair.id, str(error)))
            else:
                name = None
                if degraded is not None:
                    name = f"{pair.degradation}-{number}.{degraded.suffix}"
                    images[name] = replace(degraded, pixels=degraded.pixels[:0])  # free its pixels
                packed.append((pair, name))
            on_rows(1, pair.id)
        if packed:
            self._write(key, packed, images, clean)

    def upload(self, store: Store) -> PackedShard:
        """Name the tar by its content, upload it, and return the task's result."""
        psnr = tuple((*key, len(values), sum(values)) for key, values in sorted(self._psnr.items()))
        shard = None
        if self._rows:
            with self._path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            shard = Shard(f"shards/{digest}.tar", self._path.stat().st_size, digest)
            store.write_file(shard.key, self._path)
        before, after = self._jpeg_bytes
        rows, misses = tuple(self._rows), tuple(self._misses)
        return PackedShard(shard, rows, misses, psnr, (before, after), self._whole_jpegs)

    def _write(
        self,
        key: str,
        packed: list[tuple[Pair, str | None]],
        images: dict[str, _EncodedImage],
        clean: _EncodedImage,
    ) -> None:
        """Write a group of `packed` pairs, each with the name of its degraded image, and note its rows."""
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
            for pair, name in packed
        ]
        offsets = self._append(
            key, {"json": _json(listed), **{name: image.data for name, image in images.items()}}
        )
        height, width = clean.pixels.shape[:2]
        members = {}
        for name, image in images.items():
            size, checksum = len(image.data), zlib.crc32(image.data)
            members[name] = Member(0, offsets[name], size, checksum, image.encoding, height, width)
        for pair, degraded_name in packed:
            degraded = None if degraded_name is None else members[degraded_name]
            row = ManifestRow(
                pair.id, pair.split, pair.degradation, degraded, members[clean_name], pair.source
            )
            self._rows.append(row)

    def _append(self, key: str, files: dict[str, bytes]) -> dict[str, int]:
        """Append one WebDataset sample; return the offset in the tar of each file's first byte."""
        end, offsets = self._tar.tarstream.offset, {}
        for name in sorted(files):  # the order in which TarWriter writes them
            offsets[name] = end + _BLOCK
            end = offsets[name] + -(-len(files[name]) // _BLOCK) * _BLOCK
        self._tar.write({"__key__": key, **files})
        assert self._tar.tarstream.offset == end, "one header block per member, members in sorted order"
        return offsets

    def _encode(self, image: SourceImage) -> _EncodedImage:
        """Encode an image as the task asks. Decodes it, which proves that the file is complete."""
        file, encoding = image.file, self._task.encoding
        if file is None:
            return _tiled(image, encoding)
        header, jpeg = read_header(file), self._task.jpeg
        is_jpeg = header.format in _JPEG
        if encoding == ORIGINAL or (is_jpeg and jpeg == "keep"):
            return _unchanged(file, header, image.name)
        if is_jpeg and jpeg == "crop":
            kept = _unchanged(file, header, image.name)
            encoded = _cut(kept)
            if encoded is None:
                self._whole_jpegs += 1
                return kept
        else:
            encoded = _tiled(image, encoding)
        if is_jpeg:
            self._jpeg_bytes[0] += file.stat().st_size
            self._jpeg_bytes[1] += len(encoded.data)
        return encoded

    def _encode_degraded(self, pair: Pair, clean: _EncodedImage) -> _EncodedImage | None:
        """Encode the degraded image of a pair and record its PSNR; None for a clean-only pair."""
        if pair.degraded is None:
            return None
        degraded = self._encode(pair.degraded)
        if degraded.pixels.shape[:2] != clean.pixels.shape[:2]:
            raise PackError(
                f"{pair.degraded.name}: the degraded image is {degraded.pixels.shape}, the clean one "
                f"{clean.pixels.shape}."
            )
        psnr = _psnr(degraded.pixels, clean.pixels)
        if psnr is not None:
            self._psnr.setdefault((pair.split, pair.degradation), []).append(psnr)
        return degraded


def _tiled(image: SourceImage, encoding: str) -> _EncodedImage:
    pixels = image.pixels()
    data = tiles.encode(pixels, encoding)
    return _EncodedImage("tiles", tiles.CODECS[encoding], data, pixels)


def _unchanged(file: Path, header: ImageHeader, name: str) -> _EncodedImage:
    if header.format not in SUFFIX:
        raise PackError(f"{name}: {header.format} files cannot be kept. Save it as PNG.")
    data = read_bytes(file)
    decode = decode_image if header.plain else read_samples
    return _EncodedImage(SUFFIX[header.format], ORIGINAL, data, decode(data, name))


def _cut(kept: _EncodedImage) -> _EncodedImage | None:
    """Return a JPEG file cut into intervals; None if that would change a pixel."""
    data = jpeg_intervals.rewrite(kept.data, kept.pixels)
    return None if data is None else replace(kept, encoding=jpeg_intervals.NAME, data=data)


def _psnr(degraded: NDArray[Any], clean: NDArray[Any]) -> float | None:
    """Return the PSNR in dB of two 8-bit images, 100 for equal ones; None for other kinds of images."""
    if degraded.shape != clean.shape or degraded.dtype != np.uint8 or clean.dtype != np.uint8:
        return None
    difference = np.subtract(degraded, clean, dtype=np.int16)
    error = int(np.square(difference, dtype=np.int32).sum(dtype=np.int64)) / difference.size
    return 100.0 if error == 0 else float(10 * np.log10(255**2 / error))


def _identity(pair: Pair) -> list[object]:
    degraded = pair.degraded and pair.degraded.cache_key
    return [pair.id, pair.split, pair.degradation, pair.source, degraded, pair.clean.cache_key]


def _record(packed: PackedShard) -> bytes:
    """Return the result as a manifest of one shard; its provenance holds the other fields."""
    extra = {
        "misses": packed.misses,
        "psnr": packed.psnr,
        "jpeg_bytes": packed.jpeg_bytes,
        "whole_jpegs": packed.whole_jpegs,
    }
    shards = () if packed.shard is None else (packed.shard,)
    return manifests.to_bytes(Manifest("one shard", shards, packed.rows, provenance=extra))


def _read_record(store: Store, key: str) -> PackedShard | None:
    """Return the recorded result of a task; None, and no record, when it is incomplete or its shard is gone."""
    try:
        data = store.read(key)
    except MissingObjectError:
        return None
    try:
        found = manifests.from_bytes(data, f"{store.uri}/{key}")
    except ManifestError:
        store.delete(key)  # damaged: the task runs again
        return None
    extra = found.provenance
    shard = found.shards[0] if found.shards else None
    if extra["misses"] or (shard is not None and not store.exists(shard.key)):
        store.delete(key)  # an unreadable file may have been replaced without a change of its size and time
        return None
    before, after = extra["jpeg_bytes"]
    psnr = tuple((split, degradation, pairs, total) for split, degradation, pairs, total in extra["psnr"])
    return PackedShard(shard, found.rows, (), psnr, (before, after), extra.get("whole_jpegs", 0))


def _safe(name: str) -> str:
    """Return a key without dots and slashes, which WebDataset reads as suffix and folder."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:48]


def _json(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
