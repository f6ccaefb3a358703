"""Atomic writes of local files, and file system errors as StoreErrors."""

from __future__ import annotations

import errno
import fcntl
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
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


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
    with _temporary(path) as temporary:
        result = _fill(temporary, fill)
        os.replace(temporary, path)
    return result


def create_atomically(path: Path, fill: Callable[[IO[bytes]], object]) -> bool:
    """Do `write_atomically` only if there is no such file; return whether it was created.

    Of several processes one creates it. On file systems without hard links a race between two can be lost.
    """
    if path.exists():
        return False
    with _temporary(path) as temporary:
        _fill(temporary, fill)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            if path.exists():
                return False
            os.replace(temporary, path)
    return True


@contextmanager
def locked(path: Path, mode: str = "ab") -> Iterator[IO[bytes]]:
    """Open a file and hold its lock among processes and threads; the kernel frees it when its holder dies."""
    with path.open(mode) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield the name of a file beside `path` and remove what is left of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _fill(path: Path, fill: Callable[[IO[bytes]], T]) -> T:
    with path.open("xb") as file:
        result = fill(file)
        file.flush()
        os.fsync(file.fileno())
    return result


def copy(source: IO[bytes], target: IO[bytes]) -> int:
    """Copy one open file to another; return the number of bytes."""
    return sum(map(target.write, blocks(source)))


def blocks(file: IO[bytes]) -> Iterator[bytes]:
    """Iterate over the rest of a file, block by block."""
    return iter(lambda: file.read(BLOCK), b"")
