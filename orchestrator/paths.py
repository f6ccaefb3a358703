"""Locate the home folder, and make a job's storage names absolute."""

from __future__ import annotations

import os
from pathlib import Path

from shards.filesystem import expand_user

FOLDER = ".mirage"


def home() -> Path:
    """Return the home folder: MIRAGE_HOME, else `.mirage` in the working directory.

    `mirage up` sets MIRAGE_HOME for every job, since Ray runs a job in a folder of its own.
    """
    return Path(os.environ.get("MIRAGE_HOME") or FOLDER).absolute()


def cache_folder() -> Path:
    """Return the folder of downloaded shards: MIRAGE_CACHE, which each node may set, else one in the home folder."""
    return Path(os.environ.get("MIRAGE_CACHE") or home() / "cache").absolute()


def shard_cache_folder() -> Path:
    """Return the folder of this machine's shards and manifests."""
    return cache_folder() / "shards"


def shortened(path: Path) -> str:
    """Return a path for people: relative to the working directory if it is below it."""
    here = os.path.relpath(path)
    return here if not here.startswith("..") else str(path)


def absolute_uri(storage: str) -> str:
    """Return `storage` unchanged when it has a scheme, else as an absolute folder.

    A relative folder is resolved against the parent of the home folder, not against the working directory.
    """
    if "://" in storage:
        return storage.rstrip("/")
    return str((home().parent / expand_user(storage)).absolute())


def absolute_if_file(model: str) -> str:
    """Return the MODEL argument of a job: a file as an absolute path, the name of a model or a run unchanged."""
    is_file = ":/" not in model and ("/" in model or bool(Path(model).suffix))
    return absolute_uri(model) if is_file else model


def below(storage: str, name: str) -> str:
    """Return `name` as a URI: below `storage`, unless it has a scheme or is a path."""
    if "://" in name or name.startswith((".", "/", "~")):
        return absolute_uri(name)
    return f"{absolute_uri(storage)}/{name}"
