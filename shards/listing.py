"""Listing of the raw files of a dataset: one line per file, stored beside the shards under its own digest.

    <name>\\0<bytes>\\0<sha256>\\n        sorted by name; names are relative to the folder, parts joined by `/`

The same files give the same listing in any folder. A manifest names the digests of its listings in
`provenance["sources"]`, so that a model can be traced back to its raw photographs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shards.errors import PackError
from shards.file_records import FileRecords
from shards.filesystem import open_regular
from shards.progress import ProgressCallback
from shards.store import Store
from shards.store.checked import read_named

_FACT = re.compile("([0-9]+) ([0-9a-f]{64})")
_LINE = re.compile(rb"([^\0]+)\0(\d+)\0([0-9a-f]{64})\n")


@dataclass(frozen=True, slots=True)
class ListedFile:
    """One raw file at the time of packing."""

    name: str
    size: int
    sha256: str


def list_files(
    files: Mapping[str, Path],
    on_progress: ProgressCallback | None = None,
    records: FileRecords | None = None,
) -> bytes:
    """Return the listing of `files` (name to file); read those once that `records` does not know. Raises PackError."""
    names, lines = sorted(files), []
    measured = (records or FileRecords()).recall(
        "sha256", [files[name] for name in names], _measured, _parsed
    )
    for name, found in zip(names, measured, strict=True):
        if isinstance(found, PackError):
            raise found
        size, digest = found
        lines.append(f"{name}\0{size}\0{digest}\n".encode("utf-8", "surrogateescape"))
        if on_progress is not None:
            on_progress(len(lines), len(names), name)
    return b"".join(lines)


def list_folder(
    root: Path,
    files: Iterable[Path],
    on_progress: ProgressCallback | None = None,
    records: FileRecords | None = None,
) -> bytes:
    """Return the listing of `files` below `root`."""
    return list_files({path.relative_to(root).as_posix(): path for path in files}, on_progress, records)


def _measured(path: Path) -> str:
    size, digest = measure(path)
    return f"{size} {digest}"


def _parsed(fact: str) -> tuple[int, str]:
    """Return what `_measured` wrote down. Raises ValueError for another text."""
    found = _FACT.fullmatch(fact)
    if found is None:
        raise ValueError(fact)
    return int(found[1]), found[2]


def measure(path: Path) -> tuple[int, str]:
    """Return a file's size in bytes and its sha256. Raises PackError."""
    try:
        with open_regular(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return file.tell(), digest
    except OSError as error:
        raise PackError(f"{path}: cannot be read ({error.strerror}).") from error


def digest_of(listing: bytes) -> str:
    """Return the sha256 of a listing, its identity."""
    return hashlib.sha256(listing).hexdigest()


def listing_key(digest: str) -> str:
    """Key of the listing with this digest."""
    return f"sources/{digest}.txt"


def read_listing(store: Store, digest: str) -> tuple[ListedFile, ...]:
    """Return the files of a listing. Raises CorruptObjectError when it does not match its digest."""
    data = read_named(store, listing_key(digest))
    return tuple(
        ListedFile(name.decode("utf-8", "surrogateescape"), int(size), sha256.decode())
        for name, size, sha256 in _LINE.findall(data)
    )
