"""Read objects whose bytes can be checked: by the digest in their name, or by a checksum that they hold.

Bytes may be damaged in a store, on its way, or in a kept copy, so nothing that has a digest is used before it fits. An
object that does not fit is read again over a new connection before it counts as damaged.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar

from shards.errors import CorruptObjectError
from shards.filesystem import open_regular
from shards.store.protocol import Store

log = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPTS = 4
_FIRST_PAUSE_SECONDS = 0.1
_REMEDY = "Restore it from a copy, or delete it and make it again."


def read_checked(
    store: Store,
    key: str,
    parse: Callable[[bytes], T],
    damaged: type[Exception] = CorruptObjectError,
) -> T:
    """Return what `parse` makes of an object, which is read again while `parse` raises `damaged`."""
    return read_again(store, lambda: parse(store.read(key)), damaged)


def read_named(store: Store, key: str, digest: str | None = None) -> bytes:
    """Return the bytes of an object whose sha256 is `digest`, by default the one in its name.

    Raises CorruptObjectError if they do not fit.
    """
    expected = digest or digest_in(key)

    def check(data: bytes) -> bytes:
        _require(hashlib.sha256(data).hexdigest(), expected, f"{store.uri}/{key}")
        return data

    return read_checked(store, key, check)


def download_named(
    store: Store, key: str, path: Path, digest: str | None = None, size: int | None = None
) -> None:
    """Copy an object to a local file as `read_named` does, in bounded memory; a damaged file is removed."""
    expected = digest or digest_in(key)

    def fetch() -> None:
        store.download(key, path)
        try:
            check_file(path, expected, size, f"{store.uri}/{key}")
        except CorruptObjectError:
            path.unlink()
            raise

    read_again(store, fetch, CorruptObjectError)


def read_again(store: Store, read: Callable[[], T], damaged: type[Exception] = CorruptObjectError) -> T:
    """Return the result of `read`, which is called again over a new connection while it raises `damaged`."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return read()
        except damaged as error:
            log.warning("read again, since what arrived is damaged: %s", error)
            store.reconnect()
            time.sleep(_FIRST_PAUSE_SECONDS * 2**attempt)
    return read()


def check_file(path: Path, digest: str, size: int | None = None, where: str | None = None) -> None:
    """Raise CorruptObjectError unless a local file has this sha256 and size; `where` names it in the error."""
    if size is not None and path.is_file() and (found := path.stat().st_size) != size:
        raise CorruptObjectError(f"{where or path} has {found} bytes instead of {size}. {_REMEDY}")
    with open_regular(path) as file:
        _require(hashlib.file_digest(file, "sha256").hexdigest(), digest, where or str(path))


def digest_in(key: str) -> str:
    """Return the sha256 in a key such as `weights/<sha256>.safetensors`. Raises CorruptObjectError."""
    name = PurePosixPath(key).name.partition(".")[0]
    if re.fullmatch("[0-9a-f]{64}", name) is None:
        raise CorruptObjectError(f"{key!r} is not the name of an object that is named by its sha256.")
    return name


def record_digest(record: Mapping[str, object]) -> str:
    """Return the sha256 of a record in JSON; the record holds it as `sha256`, beside the keys that it covers."""
    covered = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _require(found: str, expected: str, where: str) -> None:
    if found != expected:
        raise CorruptObjectError(
            f"{where} does not match its sha256: {found[:16]}… was read instead of {expected[:16]}…. {_REMEDY}"
        )
