"""Manifests that this machine has read and verified, as arrays in files, which all its processes map.

The first process that needs a manifest reads it while the others wait at a lock. As for cached shards, the files are
trusted until their sizes or modification times change.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from shards.columns import TYPES, Columns, mapped
from shards.errors import StoreError
from shards.store.files import TEMPORARY, locked

_FOLDER = "manifests"
_UNUSED_SECONDS = 30 * 24 * 3600
"""How long a manifest is kept after its last use."""
_ABANDONED_SECONDS = 24 * 3600
_ABOUT = "about.json"
_FORMAT = [1, {name: str(dtype.descr) for name, dtype in TYPES.items()}]
"""What the files hold: another number for what the types do not tell, such as another check before they are written."""


def load(
    cache: Path, digest: str, read: Callable[[Path], tuple[dict[str, Any], Columns]]
) -> tuple[dict[str, Any], Columns]:
    """Return name, licences and provenance of a manifest, and its lists, from the files in `cache`.

    If they are not there, `read` makes them in the folder that it is given.
    """
    folder = cache / _FOLDER / digest
    found = _kept(folder)
    if found is not None:
        return found
    try:
        (cache / "locks").mkdir(parents=True, exist_ok=True)
        (cache / _FOLDER).mkdir(exist_ok=True)
        with locked(cache / "locks" / f"manifest-{digest}"):
            found = _kept(folder)
            if found is None:
                _tidy(cache / _FOLDER)
                with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=cache / _FOLDER) as name:
                    fresh = Path(name, "columns")
                    fresh.mkdir()
                    found = _described(fresh, *read(fresh))
                    shutil.rmtree(folder, ignore_errors=True)  # it was changed
                    fresh.rename(folder)
    except OSError as error:
        raise StoreError(
            f"the cache {cache} cannot keep a manifest ({error.strerror or error}). Free some space, or choose a "
            "writable folder: MIRAGE_CACHE names one for this machine."
        ) from error
    return found


def _described(folder: Path, head: dict[str, Any], columns: Columns) -> tuple[dict[str, Any], Columns]:
    """Write down what the arrays do not say, and by what their files are known."""
    head = {key: head[key] for key in ("name", "licences", "provenance")}
    about = {
        **head,
        **{key: getattr(columns, key) for key in ("kinds", "sources", "encodings", "counts")},
        "files": _stamps(folder),
        "format": _FORMAT,
    }
    for name in TYPES:
        with (folder / f"{name}.bin").open("rb") as file:
            os.fsync(file.fileno())
    with (folder / _ABOUT).open("w") as file:
        json.dump(about, file)
        file.flush()
        os.fsync(file.fileno())
    return head, columns


def _kept(folder: Path) -> tuple[dict[str, Any], Columns] | None:
    """Return what the files of a folder hold; None if there are none, or if they have changed."""
    try:
        about = json.loads((folder / _ABOUT).read_bytes())
        if about.pop("format") != _FORMAT or about.pop("files") != _stamps(folder):
            return None
        with suppress(OSError):  # a folder of another user
            os.utime(folder / _ABOUT)  # when it was used last
        arrays: dict[str, Any] = {
            name: mapped(folder / f"{name}.bin", dtype) for name, dtype in TYPES.items()
        }
        names: dict[str, Any] = {key: tuple(about.pop(key)) for key in ("sources", "encodings", "counts")}
        kinds = tuple((split, degradation) for split, degradation in about.pop("kinds"))
        columns = Columns(**arrays, **names, kinds=kinds)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return about, columns


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Return size and modification time of each file."""
    stats = {name: (folder / f"{name}.bin").stat() for name in TYPES}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _tidy(folder: Path) -> None:
    """Remove manifests that were not used for long, and what a killed process left."""
    for path in folder.iterdir():
        limit = _ABANDONED_SECONDS if path.name.startswith(TEMPORARY) else _UNUSED_SECONDS
        about = path / _ABOUT
        with suppress(OSError):  # another process was faster, or it is of another user
            used = (about if about.exists() else path).stat().st_mtime
            if time.time() - used > limit:
                shutil.rmtree(path, ignore_errors=True)
