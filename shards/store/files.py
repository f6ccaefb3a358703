"""Atomic writes of local files, and file system errors as StoreErrors."""

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
"""Bytes in memory at a time while a file is copied or compared."""
TEMPORARY = ".tmp-"
"""Prefix of a file's name while it is written."""


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
    """Write a temporary file and rename it: after a kill, `path` is complete or unchanged."""
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
    """Copy one open file to another; return the number of bytes."""
    return sum(map(target.write, blocks(source)))


def blocks(file: IO[bytes]) -> Iterator[bytes]:
    """Iterate over the rest of a file, block by block."""
    return iter(lambda: file.read(BLOCK), b"")
