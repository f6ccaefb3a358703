"""What reading and caching a shard costs does not depend on how many shards there are."""

from __future__ import annotations

import os
from itertools import cycle, islice
from pathlib import Path

import pytest

from orchestrator.bench.scale_operations import small_shards
from shards.cache import ShardCache
from shards.dataset import Dataset
from shards.store import LocalStore
from tests.scale.counted import calls
from tests.scale.growth import stays_flat

SHARDS = [150, 450, 1350]
"""All are more than a process keeps open."""


class Remote:
    """A folder that counts as a remote store: its shards are downloaded into the cache."""

    def __init__(self, folder: Path) -> None:
        self._folder = LocalStore(folder)
        self.uri = self._folder.uri

    def __getattr__(self, name: str) -> object:
        return getattr(self._folder, name)


def test_a_sample_of_a_shard_that_is_not_open_costs_the_same_in_any_number_of_shards(tmp_path: Path):
    descriptors = []

    def cost(count: int) -> float:
        store, _ = small_shards(tmp_path / f"{count}", count)
        dataset = Dataset([store.uri], ShardCache(tmp_path / f"cache-{count}", 1 << 30))
        rows = dataset.rows("train", "noise15")
        for row in rows:
            dataset.read(row)  # each shard is verified once
        order = list(islice(cycle(rows), 500))  # the one that was not read for longest, so each is a miss
        found = calls(lambda: [dataset.read(row) for row in order]) / len(order)
        descriptors.append(len(os.listdir("/proc/self/fd")))
        return found

    stays_flat(cost, SHARDS)
    assert max(descriptors) < min(descriptors) + 8
    assert max(descriptors) < 256


def test_a_fetch_costs_the_same_in_a_cache_of_any_size(tmp_path: Path):
    def cost(count: int) -> float:
        fetches = count // 16 + 1  # a listing pays for that many
        _, manifest = small_shards(tmp_path / f"{count}", fetches)
        store, cache = Remote(tmp_path / f"{count}"), ShardCache(tmp_path / f"cache-{count}", 1 << 30)
        cache.folder.mkdir()
        for number in range(count):
            (cache.folder / f"{number:064}.tar").touch()
        return calls(lambda: [cache.path(store, shard) for shard in manifest.shards]) / fetches

    stays_flat(cost, [150, 600, 2400])


def test_a_fetch_into_a_full_cache_of_any_size_makes_room_for_several(tmp_path: Path):
    def cost(count: int) -> float:
        fetches = count // 16
        _, manifest = small_shards(tmp_path / f"{count}", fetches)
        size = manifest.shards[0].size
        store, cache = Remote(tmp_path / f"{count}"), ShardCache(tmp_path / f"cache-{count}", count * size)
        cache.folder.mkdir()
        for number in range(count):
            (cache.folder / f"{number:064}.tar").write_bytes(bytes(size))
        found = calls(lambda: [cache.path(store, shard) for shard in manifest.shards]) / fetches
        held = sum(file.stat().st_size for file in cache.folder.glob("*.tar"))
        assert cache.max_bytes * 0.9 < held <= cache.max_bytes
        return found

    stays_flat(cost, [150, 600, 2400])


def test_bytes_of_an_evicted_shard_leave_the_disk_when_the_next_shard_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    _, manifest = small_shards(tmp_path / "data", 3)
    store, folder = Remote(tmp_path / "data"), tmp_path / "cache"
    monkeypatch.setattr("shards.dataset.open_store", lambda uri: store)
    dataset = Dataset([str(tmp_path / "data")], ShardCache(folder, 1 << 30))
    dataset.read(dataset.rows("train", "noise15")[0])

    def held() -> list[str]:
        links = [
            os.readlink(f"/proc/self/fd/{number}")
            for number in os.listdir("/proc/self/fd")
            if os.path.islink(f"/proc/self/fd/{number}")
        ]
        return [link for link in links if link.startswith(str(folder))]

    other = ShardCache(folder, 2 * manifest.shards[0].size - 1)  # another process with less room
    other.path(store, manifest.shards[1])
    assert any(link.endswith("(deleted)") for link in held())
    dataset.read(dataset.rows("train", "noise15")[2])
    assert not any(link.endswith("(deleted)") for link in held())
