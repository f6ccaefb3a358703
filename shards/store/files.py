"""Local files: one is whole or not there, and what the file system refuses is said in words."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

from shards.errors import MissingObjectError, StoreError

T = TypeVar("T")

BLOCK = 8 << 20
TEMPORARY = ".tmp-"
"""What the name of a file begins with while it is written."""
"""Bytes that are held at a time while a file is copied or compared."""


@contextmanager
def translate_os_errors(uri: str, key: str) -> Iterator[None]:
    """Turn errors of the local file system into a `StoreError` that says what to do."""
    where = f"{uri}/{key}" if key else uri
    try:
        yield
    except FileNotFoundError as error:
        raise MissingObjectError(f"{where}: there is no such object.") from error
    except PermissionError as error:
        raise StoreError(
            f"{where}: permission denied. Make the folder readable and writable, or choose another."
        ) from error
    except OSError as error:
        remedy = " Free some space." if error.errno == errno.ENOSPC else ""
        raise StoreError(f"{where}: {error.strerror or error}.{remedy}") from error


def write_atomically(path: Path, fill: Callable[[IO[bytes]], T]) -> T:
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
