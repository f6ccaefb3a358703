"""Local files: one is whole or not there, and what the file system refuses is said in words."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

from shards.errors import MissingObjectError, StoreError

T = TypeVar("T")

BLOCK = 8 << 20
TEMPORARY = ".tmp-"
"""What the name of a file begins with while it is written."""
"""Bytes that are held at a time while a file is copied or compared."""


class Explained:
    """Turns errors of the local file system into a `StoreError` that says what to do."""

    def __init__(self, uri: str, key: str) -> None:
        self.where = f"{uri}/{key}" if key else uri

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise MissingObjectError(f"{self.where}: there is no such object.") from error
        if isinstance(error, PermissionError):
            raise StoreError(
                f"{self.where}: permission denied. Make the folder readable and writable, or choose another."
            ) from error
        if isinstance(error, OSError):
            remedy = " Free some space." if error.errno == errno.ENOSPC else ""
            raise StoreError(f"{self.where}: {error.strerror or error}.{remedy}") from error


def replace(path: Path, fill: Callable[[IO[bytes]], T]) -> T:
    """Fill a temporary file and rename it: a kill leaves all of `path` or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            result = fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return result


def copy(source: IO[bytes], target: IO[bytes]) -> int:
    """Copy one open file to another; the number of bytes."""
    return sum(map(target.write, blocks(source)))


def blocks(file: IO[bytes]) -> Iterator[bytes]:
    """What is left of a file, block by block."""
    return iter(lambda: file.read(BLOCK), b"")
