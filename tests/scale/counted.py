"""Costs that do not depend on how busy a machine is: calls, memory, and datasets of any size to count them with."""

from __future__ import annotations

import hashlib
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from shards import tiles
from shards.manifest import Manifest, ManifestRow, Member, Shard, publish
from shards.store import LocalStore


def calls(action: Callable[[], object]) -> int:
    """Return the number of calls, of Python and of C functions, that an action makes."""
    found = 0

    def count(frame: object, event: str, what: object) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(None)
    return found


def peak_bytes(action: Callable[[], object]) -> int:
    """Return the most memory that an action holds at a time."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def small_shards(folder: Path, count: int) -> tuple[LocalStore, Manifest]:
    """Publish a dataset of `count` shards with one tiny image each."""
    store = LocalStore(folder)
    store.ensure_bucket()
    (folder / "shards").mkdir()
    image = tiles.encode(np.zeros((16, 16, 3), np.uint8))
    shards, rows = [], []
    for number in range(count):
        data = image + number.to_bytes(8, "big")
        shard = Shard(f"shards/{number}.tar", len(data), hashlib.sha256(data).hexdigest())
        store.path(shard.key).write_bytes(data)
        member = Member(number, 0, len(image), zlib.crc32(image), "tiles-qoi", 16, 16)
        shards.append(shard)
        rows.append(ManifestRow(f"{number}", "train", "noise", None, member, "s"))
    manifest = Manifest("small", tuple(shards), tuple(rows), {"s": "none"}, {})
    publish(store, manifest)
    return store, manifest
