"""The manifest of a packed dataset: its samples, and the shard and bytes of every image.

A manifest is one gzipped JSON object at `manifests/<sha256 of the JSON>.json.gz`, written after all of its shards; the
pointer `manifest` holds the digest. A reader therefore sees a whole dataset or none. docs/shards.md specifies the
format.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import zlib
from collections import Counter
from dataclasses import astuple, dataclass, field
from functools import cached_property
from typing import Any, Literal

from shards.errors import CorruptObjectError, ManifestError, MissingObjectError
from shards.json_text import parse_json
from shards.sample import NOISE
from shards.store import Store
from shards.store.checked import read_checked
from shards.store.files import BLOCK

READABLE = (1, 2)
"""Readable versions of the format. Version 2 has images of encoding `original`; version 1 has tiles only."""
ORIGINAL = "original"
"""Encoding of an image that is the unchanged source file."""
POINTER = "manifest"
MAX_BYTES = 1 << 30
"""Maximum size of an uncompressed manifest; a forged archive can decompress to much more."""
Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Member:
    """One image inside a shard."""

    shard: int
    """Index of the shard in the manifest."""
    offset: int
    """Offset of the image's first byte in the shard."""
    size: int
    crc32: int
    encoding: str
    """`tiles-qoi`, `tiles-webp`, or `original` (the unchanged source file)."""
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One sample. Rows with degradation `noise` have a clean image only."""

    id: str
    split: Split
    degradation: str
    degraded: Member | None
    clean: Member
    source: str


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar file of a dataset."""

    key: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Description of one packed dataset, complete for a reader."""

    name: str
    shards: tuple[Shard, ...]
    rows: tuple[ManifestRow, ...]
    licences: dict[str, str] = field(default_factory=dict)
    """Licence and attribution of each source named by a row."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """How the dataset was packed; without times, so that packing again gives the same digest."""

    @cached_property
    def digest(self) -> str:
        """Sha256 of the canonical bytes, the identity of the dataset."""
        return hashlib.sha256(to_bytes(self)).hexdigest()

    @property
    def version(self) -> int:
        """Lowest version of the format that can represent the content."""
        members = (member for row in self.rows for member in (row.clean, row.degraded) if member is not None)
        return 2 if any(member.encoding == ORIGINAL for member in members) else 1

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of samples by split and row degradation: `{"train": {"noise": 17, "rain": 34}}`."""
        found: dict[str, dict[str, int]] = {}
        counted = Counter((row.split, row.degradation) for row in self.rows)
        for (split, degradation), number in sorted(counted.items()):
            found.setdefault(split, {})[degradation] = number
        return found


def manifest_key(digest: str) -> str:
    """Return the key of the manifest with this digest."""
    return f"manifests/{digest}.json.gz"


def publish(store: Store, manifest: Manifest) -> None:
    """Write the manifest and move the pointer to it. All its shards must be in the store already."""
    key = manifest_key(manifest.digest)
    if store.exists(key):
        _read(store, manifest.digest)  # not compared byte by byte: another zlib compresses differently
    else:
        store.write(key, gzip.compress(to_bytes(manifest), compresslevel=6, mtime=0))
    if store.read_pointer(POINTER) != manifest.digest.encode():
        store.write_pointer(POINTER, manifest.digest.encode())


def load_manifest(store: Store, digest: str | None = None) -> Manifest:
    """Return the manifest with this digest, by default the one that the pointer names.

    Raises ManifestError, or CorruptObjectError when it does not match its digest.
    """
    if digest is None:
        pointed = store.read_pointer(POINTER)
        if pointed is None:
            raise ManifestError(f"{store.uri} holds no manifest. Pack a dataset there, or correct the URI.")
        if re.fullmatch(rb"[0-9a-f]{64}", pointed) is None:
            raise ManifestError(
                f"{store.uri}/{POINTER} points to {pointed[:80]!r}, which is not a digest. Pack again."
            )
        digest = pointed.decode()
    return _read(store, digest)


def to_bytes(manifest: Manifest) -> bytes:
    """Return the manifest as canonical JSON; an image that several rows share is listed once."""
    members: dict[Member, int] = {}

    def index(member: Member | None) -> int | None:
        return None if member is None else members.setdefault(member, len(members))

    rows = [
        [row.id, row.split, row.degradation, index(row.degraded), index(row.clean), row.source]
        for row in manifest.rows
    ]
    content = {
        "version": manifest.version,
        "name": manifest.name,
        "licences": manifest.licences,
        "provenance": manifest.provenance,
        "shards": [astuple(shard) for shard in manifest.shards],
        "members": [astuple(member) for member in members],
        "rows": rows,
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def from_bytes(data: bytes, where: str) -> Manifest:
    """Parse the JSON of `to_bytes`; `where` names the object in errors. Raises ManifestError."""
    try:
        content = parse_json(data)
        version = content["version"]
    except (ValueError, TypeError, KeyError) as error:
        raise ManifestError(
            f"{where} is not a manifest ({error}). Correct the URI, or pack again."
        ) from error
    if version not in READABLE:
        raise ManifestError(
            f"{where} has format version {version!r}; this program reads versions {READABLE[0]} to {READABLE[-1]}. "
            "Pack again, or use the release that wrote it."
        )
    try:
        members = [Member(*member) for member in content["members"]]
        numbers = range(len(members))  # it refuses negative ones
        rows = tuple(
            ManifestRow(
                id_,
                split,
                label,
                None if degraded is None else members[numbers.index(degraded)],
                members[numbers.index(clean)],
                source,
            )
            for id_, split, label, degraded, clean, source in content["rows"]
        )
        shards = tuple(Shard(*shard) for shard in content["shards"])
        manifest = Manifest(content["name"], shards, rows, content["licences"], content["provenance"])
        _check(manifest, where)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ManifestError(f"{where} is damaged ({error!r}). Pack again.") from error
    return manifest


def _check(manifest: Manifest, where: str) -> None:
    """Raise ManifestError unless the manifest is consistent and every value has its type."""
    if not _are(str, manifest.name, *manifest.licences, *manifest.licences.values()):
        raise ManifestError(f"{where}: the name, or a licence, is not text.")
    if not isinstance(manifest.provenance, dict):
        raise ManifestError(f"{where}: `provenance` is not an object.")
    if not _is_unicode(json.dumps(manifest.provenance, ensure_ascii=False)):
        raise ManifestError(f"{where}: `provenance` holds half of a character pair.")
    for shard in manifest.shards:
        if not (_are(str, shard.key, shard.sha256) and _are(int, shard.size) and shard.size >= 0):
            raise ManifestError(f"{where}: {shard} has a value of a wrong type.")
        if re.fullmatch("[0-9a-f]+", shard.sha256) is None:  # it names a file of the cache
            raise ManifestError(
                f"{where}: shard {shard.key!r} has sha256 {shard.sha256!r}, which is not a digest."
            )
    checked: set[int] = set()
    seen: set[tuple[str, str, str]] = set()
    for row in manifest.rows:
        if not _are(str, row.id, row.split, row.degradation, row.source):
            raise ManifestError(f"{where}: row {row.id!r} has a name that is not text.")
        if row.split not in ("train", "test"):
            raise ManifestError(
                f"{where}: row {row.id!r} has split {row.split!r}, neither 'train' nor 'test'."
            )
        if (row.degraded is None) != (row.degradation == NOISE):
            raise ManifestError(
                f"{where}: row {row.id!r} ({row.degradation}) must have a degraded image unless it is noise."
            )
        if (row.split, row.degradation, row.id) in seen:
            raise ManifestError(f"{where}: sample {row.id!r} ({row.degradation}) is listed twice.")
        seen.add((row.split, row.degradation, row.id))
        for member in filter(None, (row.degraded, row.clean)):
            if id(member) not in checked:  # rows share members
                _check_member(member, manifest.shards, f"{where}: row {row.id!r}")
                checked.add(id(member))


def _check_member(member: Member, shards: tuple[Shard, ...], where: str) -> None:
    numbers = (member.shard, member.offset, member.size, member.crc32, member.height, member.width)
    if not (_are(int, *numbers) and _are(str, member.encoding)):
        raise ManifestError(f"{where} has a value of a wrong type: {member}.")
    if min(numbers) < 0 or not (member.height and member.width):
        raise ManifestError(f"{where} has a number below its minimum: {member}.")
    if member.shard >= len(shards):
        raise ManifestError(f"{where} is in shard {member.shard}, which is not listed.")
    if member.offset > shards[member.shard].size - member.size:
        raise ManifestError(f"{where} is outside its shard.")


def _are(kind: type, *values: object) -> bool:
    """Return whether all values have this type: `int` without booleans, `str` without lone surrogates."""
    if not all(type(value) is kind for value in values):
        return False
    return kind is not str or all(str(value).isascii() or _is_unicode(str(value)) for value in values)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read(store: Store, digest: str) -> Manifest:
    key = manifest_key(digest)
    try:
        data = read_checked(store, key, lambda packed: _unpack(packed, digest, f"{store.uri}/{key}"))
    except MissingObjectError as error:
        raise ManifestError(
            f"{store.uri}/{key} is missing although the pointer names it. Pack again."
        ) from error
    return from_bytes(data, f"{store.uri}/{key}")


def _unpack(packed: bytes, digest: str, where: str) -> bytes:
    """Return the JSON of a manifest. Its digest is checked before it is held in memory: a small archive can be huge."""
    found, size = hashlib.sha256(), 0
    try:
        with gzip.open(io.BytesIO(packed)) as file:
            for block in iter(lambda: file.read(BLOCK), b""):
                found.update(block)
                size += len(block)
                if size > MAX_BYTES:
                    break
    except (OSError, EOFError, zlib.error) as error:
        raise CorruptObjectError(
            f"{where} is not a gzip file ({error}). Delete it and pack again."
        ) from error
    if size > MAX_BYTES:
        raise CorruptObjectError(
            f"{where} decompresses to more than {MAX_BYTES:,} bytes, the maximum of a manifest. Delete it."
        )
    if found.hexdigest() != digest:
        raise CorruptObjectError(f"{where} does not match its digest. Delete it and pack again.")
    return gzip.decompress(packed)
