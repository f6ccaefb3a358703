"""Read what users' folders hold: regular files only, and folders without the folders that systems keep in them."""

from __future__ import annotations

import errno
import io
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.errors import PathError, ShardsError

_SYSTEM_FOLDERS = frozenset(
    name.lower()
    for name in (
        *("@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", "@tmp"),  # network storage
        *("$RECYCLE.BIN", "System Volume Information", "lost+found", "__MACOSX"),
    )
)
_MAX_LINKED_FOLDERS = 10_000


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Return a path with the home folder for a leading `~`. Raises PathError where that has no home folder."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        user = Path(expanded).parts[0]
        what = "HOME is not set" if user == "~" else f"there is no user {user[1:]!r}"
        raise PathError(
            f"{os.fspath(path)}: {what}. Write the path in full, or ./{user} for a file of that name."
        )
    return Path(expanded)


@contextmanager
def temporary_folder(failure: type[ShardsError], what: str, then: str = "") -> Iterator[Path]:
    """Yield a folder that is removed afterwards. Raises `failure` if its disk is full; `what` was to be written."""
    try:
        with tempfile.TemporaryDirectory(prefix="shards-") as name:
            yield Path(name)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise failure(
            f"{tempfile.gettempdir()}: no space left for {what}. Free some space, or name another folder with TMPDIR."
            f"{then}"
        ) from error


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading. Raises OSError, also for what is no regular file: a FIFO would block for ever."""
    return open(path, "rb", opener=_open_without_waiting)


def read_regular(path: Path, at_most: int | None = None) -> bytes:
    """Return the bytes of a regular file. Raises OSError, also for a file of more than `at_most` bytes."""
    with open_regular(path) as file:
        if at_most is not None and os.fstat(file.fileno()).st_size > at_most:
            raise OSError(errno.EFBIG, f"more than {at_most:,} bytes", str(path))
        return file.read()


def _open_without_waiting(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return descriptor


def files_below(root: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Yield the files below `root` whose names end in one of `suffixes`, as relative paths with `/`.

    Hidden files and folders and those of operating systems are skipped; the name of `root` itself does not matter.
    Links to folders are followed, but not into a folder that contains the link. Whatever is no folder counts as a file:
    reading it says what it is. Raises PathError for a folder that cannot be listed.
    """
    linked = 0
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", (_identity(root),))]
    while waiting:
        inside, above = waiting.pop()
        folders = []
        for entry in _entries(root / inside):
            if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_FOLDERS:
                continue
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                identity = _identity(Path(entry.path))
                linked += entry.is_symlink()
                if linked > _MAX_LINKED_FOLDERS:
                    raise PathError(
                        f"{root}: more than {_MAX_LINKED_FOLDERS:,} links to folders. Remove the links."
                    )
                if identity not in above:
                    folders.append((f"{inside}{entry.name}/", (*above, identity)))
            elif entry.name.lower().endswith(suffixes):
                yield inside + entry.name
        waiting += reversed(folders)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise PathError(f"{folder}: cannot be listed ({error.strerror}).") from error


def _identity(folder: Path) -> tuple[int, int]:
    try:
        found = folder.stat()
    except OSError as error:
        raise PathError(f"{folder}: cannot be listed ({error.strerror}).") from error
    return found.st_dev, found.st_ino
