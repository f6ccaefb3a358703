"""The manifest of a packed dataset: its samples, and the shard and bytes of every image.

A manifest is three Parquet tables and a small JSON file, all named by its digest, written after all of its shards; the
pointer `manifest` holds the digest. A reader therefore sees a whole dataset or none. docs/shards.md specifies the
format.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from shards import manifest_cache
from shards.columns import Columns, ColumnsWriter, Rows, Shards
from shards.errors import (
    CorruptObjectError,
    ManifestError,
    MissingObjectError,
    ShardsError,
    StoreError,
    UnreachableStoreError,
)
from shards.filesystem import temporary_folder
from shards.json_text import parse_json
from shards.manifest_check import check
from shards.manifest_json import canonical, dumps, parse_lists, version_of
from shards.manifest_parquet import TABLES, read_tables, write_tables
from shards.rows import ORIGINAL, ManifestRow, Member, Shard, Split
from shards.store import LocalStore, Store
from shards.store.checked import read_again, read_checked
from shards.store.files import BLOCK

__all__ = [
    "ORIGINAL",
    "POINTER",
    "Manifest",
    "ManifestRow",
    "Member",
    "Shard",
    "Split",
    "archive_key",
    "from_bytes",
    "load_manifest",
    "manifest_key",
    "publish",
    "table_key",
    "to_bytes",
]

READABLE = (1, 2)
"""Readable versions of the JSON form. Version 2 has images of encoding `original`; version 1 has tiles only."""
TABLES_VERSION = 3
"""Version of the form with tables."""
POINTER = "manifest"
CHECKSUM = "checksum"
"""Key of the JSON file."""
MAX_BYTES = 1 << 30
"""Maximum size of a JSON file once it is decompressed; a forged archive can decompress to much more."""


@dataclass(frozen=True)
class Manifest:
    """Description of one packed dataset, complete for a reader."""

    name: str
    shards: Sequence[Shard]
    rows: Sequence[ManifestRow]
    licences: dict[str, str] = field(default_factory=dict)
    """Licence and attribution of each source named by a row."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """How the dataset was packed; without times, so that packing again gives the same digest."""

    @cached_property
    def digest(self) -> str:
        """Sha256 of the canonical JSON, the identity of the dataset."""
        return _digest_of(self.name, self.licences, self.provenance, self.columns)

    @cached_property
    def columns(self) -> Columns:
        """The lists as arrays. Raises ManifestError for values that no manifest can hold."""
        if isinstance(self.shards, Shards) and isinstance(self.rows, Rows):
            columns = self.rows.columns
            if self.rows.is_whole and columns is self.shards.columns:
                return columns
        writer = ColumnsWriter()
        try:
            writer.add_shards(self.shards)
            writer.add_rows(self.rows)
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            raise ManifestError(
                f"dataset {self.name!r} has a value that no manifest can hold ({error})."
            ) from error
        return writer.columns()

    @property
    def version(self) -> int:
        """Lowest version of the format that can represent the content."""
        return version_of(self.columns)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of samples by split and row degradation: `{"train": {"noise": 17, "rain": 34}}`."""
        found: dict[str, dict[str, int]] = {}
        counted = zip(self.columns.kinds, self.columns.counts, strict=True)
        for (split, degradation), number in sorted(counted):
            found.setdefault(split, {})[degradation] = number
        return found


def _digest_of(
    name: str, licences: Mapping[str, str], provenance: Mapping[str, Any], columns: Columns
) -> str:
    found = hashlib.sha256()
    for piece in canonical(name, licences, provenance, columns):
        found.update(piece)
    return found.hexdigest()


def manifest_key(digest: str) -> str:
    """Return the key of the JSON file of the manifest with this digest, which is written after its tables."""
    return f"manifests/{digest}.json"


def table_key(digest: str, table: str) -> str:
    """Return the key of a table of the manifest with this digest."""
    return f"manifests/{digest}.{table}.parquet"


def archive_key(digest: str) -> str:
    """Return the key of a manifest that was published in one gzipped JSON file."""
    return f"{manifest_key(digest)}.gz"


def publish(store: Store, manifest: Manifest) -> None:
    """Write the manifest and move the pointer to it. All its shards must be in the store already.

    What a reader would refuse is not written. Raises ManifestError.
    """
    digest = manifest.digest
    if store.exists(manifest_key(digest)) or store.exists(archive_key(digest)):
        load_manifest(store, digest)  # not compared byte by byte: another pyarrow or zlib writes other bytes
    else:
        _write(store, manifest, digest)
    if store.read_pointer(POINTER) != digest.encode():
        store.write_pointer(POINTER, digest.encode())


def load_manifest(store: Store, digest: str | None = None, cache: Path | None = None) -> Manifest:
    """Return the manifest with this digest, by default the one that the pointer names.

    With `cache`, a folder of this machine, it is read and verified once for all processes, which then share it. Files
    that have the checksum with which they were published are not compared with the digest again.
    Without `cache` they are. Raises ManifestError, or CorruptObjectError when it does not match its digest.
    """
    if digest is None:
        digest = _pointed(store)
    if cache is None:
        with temporary_folder(StoreError, f"the manifest of {store.uri}") as folder:
            # Mapped files stay when they are deleted.
            return _manifest(digest, *_read(store, digest, folder, trusts_checksum=False))
    head, columns = manifest_cache.load(
        cache, digest, lambda folder: _read(store, digest, folder, trusts_checksum=True)
    )
    return _manifest(digest, head, replace(columns, reopen=partial(_reopen, store, digest, cache)))


def _reopen(store: Store, digest: str, cache: Path) -> Columns:
    return load_manifest(store, digest, cache).columns


def to_bytes(manifest: Manifest) -> bytes:
    """Return the manifest as canonical JSON; an image that several rows share is listed once."""
    return b"".join(canonical(manifest.name, manifest.licences, manifest.provenance, manifest.columns))


def from_bytes(data: bytes, where: str) -> Manifest:
    """Parse the JSON of `to_bytes`; `where` names the object in errors. Raises ManifestError."""
    head, columns = _from_json(data, where)
    return Manifest(head["name"], Shards(columns), Rows(columns), head["licences"], head["provenance"])


def _manifest(digest: str, head: Mapping[str, Any], columns: Columns) -> Manifest:
    manifest = Manifest(head["name"], Shards(columns), Rows(columns), head["licences"], head["provenance"])
    manifest.__dict__["digest"] = digest  # it was verified
    return manifest


def _pointed(store: Store) -> str:
    pointed = store.read_pointer(POINTER)
    if pointed is None:
        raise ManifestError(f"{store.uri} holds no manifest. Pack a dataset there, or correct the URI.")
    if re.fullmatch(rb"[0-9a-f]{64}", pointed) is None:
        raise ManifestError(
            f"{store.uri}/{POINTER} points to {pointed[:80]!r}, which is not a digest. Pack again."
        )
    return pointed.decode()


def _write(store: Store, manifest: Manifest, digest: str) -> None:
    """Write the tables, and the JSON file last, after they were read as a reader does."""
    columns = manifest.columns
    head = {
        "version": TABLES_VERSION,
        **{"name": manifest.name, "licences": manifest.licences, "provenance": manifest.provenance},
        **{table: len(getattr(columns, table)) for table in TABLES},
    }
    with temporary_folder(ManifestError, f"the manifest of {store.uri}", " Nothing was published.") as folder:
        draft = LocalStore(folder)
        paths = {table: draft.path(table_key(digest, table)) for table in TABLES}
        write_tables(columns, paths)
        draft.write(manifest_key(digest), dumps(head))
        try:
            load_manifest(draft, digest)
        except ShardsError as error:
            reason = re.sub(r"( (Delete|Pack|Correct)[^.]*\.)+$", "", str(error)).replace(
                draft.uri, store.uri
            )
            raise ManifestError(f"{store.uri}: nothing was published: {reason}") from error
        left = [table for table in TABLES if store.exists(table_key(digest, table))]
        for table, path in paths.items():
            if table not in left:
                store.write_file(table_key(digest, table), path)
        if left:  # by a publication that was killed, and perhaps by another pyarrow, which writes other bytes
            _read_tables(store, digest, head, draft.root)
        store.write(manifest_key(digest), dumps({**head, CHECKSUM: _checksum(digest, head, paths)}))


def _checksum(digest: str, head: Mapping[str, Any], paths: Mapping[str, Path]) -> str:
    """Return the sha256 of what is stored for a digest: of the JSON file's other keys and of the tables' bytes."""
    stored: dict[str, Any] = {"digest": digest, "head": {k: v for k, v in head.items() if k != CHECKSUM}}
    for table in TABLES:
        with paths[table].open("rb") as file:
            stored[table] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(dumps(stored)).hexdigest()


def _has_checksum(digest: str, head: Mapping[str, Any], paths: Mapping[str, Path]) -> bool:
    try:
        return head.get(CHECKSUM) == _checksum(digest, head, paths)
    except ValueError:  # half of a character pair; what is wrong is said where the digest is computed
        return False


def _read(
    store: Store, digest: str, folder: Path, *, trusts_checksum: bool
) -> tuple[dict[str, Any], Columns]:
    """Return the JSON file without the lists, and the lists, whose arrays are written into `folder`."""
    key = manifest_key(digest)
    where = f"{store.uri}/{key}"
    try:
        head = read_checked(store, key, lambda data: _parse(data, where), ManifestError)
    except UnreachableStoreError:
        raise
    except StoreError as error:  # missing; S3 calls it refused to those who may not list
        try:
            return _read_archive(store, digest, folder)
        except StoreError as second:
            if not isinstance(error, MissingObjectError):
                raise error from None
            if not isinstance(second, MissingObjectError):
                raise
        raise ManifestError(f"{where} is missing although the pointer names it. Pack again.") from error
    if head["version"] != TABLES_VERSION:
        raise ManifestError(_other_version(where, head["version"]))
    columns = _read_tables(store, digest, head, folder, trusts_checksum)
    _check(head, columns, where)
    return head, columns


def _read_tables(
    store: Store, digest: str, head: Mapping[str, Any], folder: Path, trusts_checksum: bool = False
) -> Columns:
    """Return the lists of a manifest that fit its digest. Raises CorruptObjectError."""
    where = {table: f"{store.uri}/{table_key(digest, table)}" for table in TABLES}

    def read() -> Columns:
        with tempfile.TemporaryDirectory(prefix="shards-") as name:
            paths = {table: _local(store, table_key(digest, table), Path(name, table)) for table in TABLES}
            is_known = trusts_checksum and _has_checksum(digest, head, paths)
            columns = read_tables(paths, folder, where)
        try:
            found = (
                digest
                if is_known
                else _digest_of(head["name"], head["licences"], head["provenance"], columns)
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptObjectError(
                f"{store.uri}/{manifest_key(digest)} is damaged ({error!r}). Delete it and pack again."
            ) from error
        if found != digest or any(head.get(t) != len(getattr(columns, t)) for t in TABLES):
            raise CorruptObjectError(
                f"{store.uri}/{manifest_key(digest)}, or one of its tables, does not match its digest. "
                "Delete them and pack again."
            )
        return columns

    try:
        return read_again(store, read)
    except MissingObjectError as error:
        raise ManifestError(f"{error} The manifest {digest} needs it. Pack again.") from error


def _local(store: Store, key: str, path: Path) -> Path:
    """Return a file of this machine with the bytes of an object, which is copied to `path` if it has to be."""
    if isinstance(store, LocalStore) and store.exists(key):
        return store.path(key)
    store.download(key, path)
    return path


def _read_archive(store: Store, digest: str, folder: Path) -> tuple[dict[str, Any], Columns]:
    """Do `_read` for a manifest that was published in one gzipped JSON file."""
    key = archive_key(digest)
    where = f"{store.uri}/{key}"
    data = read_checked(store, key, lambda packed: _unpack(packed, digest, where))
    return _from_json(data, where, folder)


def _from_json(data: bytes, where: str, folder: Path | None = None) -> tuple[dict[str, Any], Columns]:
    content = _parse(data, where)
    if content["version"] not in READABLE:
        raise ManifestError(_other_version(where, content["version"], READABLE[-1]))
    try:
        columns = parse_lists(content, folder)
        head = {key: content[key] for key in ("name", "licences", "provenance")}
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise ManifestError(f"{where} is damaged ({error!r}). Pack again.") from error
    _check(head, columns, where)
    return head, columns


def _check(head: Mapping[str, Any], columns: Columns, where: str) -> None:
    try:
        check(head, columns, where)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ManifestError(f"{where} is damaged ({error!r}). Pack again.") from error


def _parse(data: bytes, where: str) -> dict[str, Any]:
    """Return the content of a JSON file, which has a version. Raises ManifestError."""
    if len(data) > MAX_BYTES:
        raise ManifestError(
            f"{where} has more than {MAX_BYTES:,} bytes, the maximum of a manifest. Delete it."
        )
    try:
        content = parse_json(data)
        content["version"]
    except (ValueError, TypeError, KeyError) as error:
        raise ManifestError(
            f"{where} is not a manifest ({error}). Correct the URI, or pack again."
        ) from error
    return content  # type: ignore[no-any-return]


def _other_version(where: str, found: object, newest: int = TABLES_VERSION) -> str:
    return (
        f"{where} has format version {found!r:.80}; this program reads versions {READABLE[0]} to {newest}. "
        "Pack again, or use the release that wrote it."
    )


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
        raise ManifestError(  # it is not read again: another answer would be as long
            f"{where} decompresses to more than {MAX_BYTES:,} bytes, the maximum of a manifest. Delete it."
        )
    if found.hexdigest() != digest:
        raise CorruptObjectError(f"{where} does not match its digest. Delete it and pack again.")
    return gzip.decompress(packed)
