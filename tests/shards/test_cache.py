"""The shard cache: verified, bounded, shared among processes."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import time
from dataclasses import replace
from pathlib import Path

import pytest

from shards.augment import CropWindow
from shards.cache import ShardCache
from shards.dataset import Dataset
from shards.errors import CorruptObjectError, StoreError
from shards.manifest import Manifest, Shard, load_manifest
from shards.pack import pack
from shards.sources import FolderSource
from shards.store import LocalStore, S3Store, Store, open_store


@pytest.fixture
def remote(rclone, aws, tmp_path: Path) -> Store:
    aws.setenv("AWS_ENDPOINT_URL", rclone.endpoint)
    store = open_store(f"s3://{rclone.bucket}/{tmp_path.name}")
    store.ensure_bucket()
    return store


@pytest.fixture
def published(remote: Store, source: FolderSource) -> Manifest:
    return pack(source, remote, name="cuts", shard_bytes=100_000)


def test_a_shard_is_fetched_once_and_then_read_here(remote, published, cache, monkeypatch):
    shard = published.shards[0]
    path = cache.path(remote, shard)
    assert path.read_bytes() == remote.read(shard.key)
    monkeypatch.setattr(S3Store, "download", lambda *_: pytest.fail("fetched again"))
    assert cache.path(remote, shard) == path


def test_the_least_recently_used_shard_makes_room(remote, published, tmp_path):
    first, second, third = published.shards[:3]
    cache = ShardCache(tmp_path / "small", first.size + second.size + third.size - 1)
    cache.path(remote, first)
    cache.path(remote, second)
    time.sleep(0.01)
    cache.path(remote, first)
    cache.path(remote, third)
    held = {path.stem for path in (tmp_path / "small").glob("*.tar")}
    assert first.sha256 in held
    assert second.sha256 not in held
    assert sum(path.stat().st_size for path in (tmp_path / "small").glob("*.tar")) <= cache.max_bytes


def test_a_shard_larger_than_the_cache_is_said(remote, published, tmp_path):
    with pytest.raises(StoreError, match="Allow the cache more bytes"):
        ShardCache(tmp_path / "tiny", 10).path(remote, published.shards[0])


def test_a_shard_as_large_as_the_cache_fits_and_is_read_while_the_cache_is_smaller(
    remote, published, tmp_path
):
    shard = published.shards[0]
    path = ShardCache(tmp_path / "exact", shard.size).path(remote, shard)
    assert path.stat().st_size == shard.size
    assert ShardCache(tmp_path / "exact", 10).path(remote, shard) == path  # it is here already


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[:-1000], r"has \d+ bytes instead of \d+"),
        (lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:], "does not match its sha256"),
        (lambda data: b"<html><body>503 Slow Down</body></html>", r"has 39 bytes instead of \d+"),
        (lambda data: b"", r"has 0 bytes instead of \d+"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_damaged_shard_is_named_and_not_kept(kind, damage, says, request, source, tmp_path, cache):
    store = LocalStore(tmp_path / "store") if kind == "folder" else request.getfixturevalue("remote")
    shard = pack(source, store, name="cuts", shard_bytes=100_000).shards[1]
    data = damage(store.read(shard.key))
    store.delete(shard.key)
    store.write(shard.key, data)
    for _ in range(2):
        with pytest.raises(CorruptObjectError, match=f"{shard.key} {says}"):
            cache.path(store, shard)
    assert not list(cache.folder.glob("*.tar"))


def test_a_shard_that_vanished_is_named(source, tmp_path, cache, remote):
    for store in (LocalStore(tmp_path / "store"), remote):
        shard = pack(source, store, name="cuts").shards[0]
        store.delete(shard.key)
        with pytest.raises((CorruptObjectError, StoreError), match=shard.key):
            cache.path(store, shard)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("make", [a_folder, a_loop])
def test_a_shard_that_is_no_file_is_named(source, tmp_path, cache, make):
    store = LocalStore(tmp_path / "store")
    shard = pack(source, store, name="cuts").shards[0]
    store.delete(shard.key)
    make(store.path(shard.key))
    with pytest.raises(CorruptObjectError, match=rf"{shard.key} (is no file|has \d+ bytes)"):
        cache.open(store, shard)


def _occupied(cache: ShardCache) -> None:
    cache.folder.parent.mkdir(parents=True, exist_ok=True)
    cache.folder.write_text("a file")


def _without_locks(cache: ShardCache) -> None:
    cache.folder.mkdir(parents=True)
    (cache.folder / "locks").write_text("a file")


@pytest.mark.parametrize("spoil", [_occupied, _without_locks])
def test_a_cache_that_cannot_be_used_is_named_and_not_the_shard(packed, tmp_path, spoil):
    store, manifest = LocalStore(Path(packed[0])), packed[1]
    cache = ShardCache(tmp_path / "spoiled", 1 << 30)
    spoil(cache)
    with pytest.raises(StoreError, match=r"the shard cache .*spoiled cannot be used.*MIRAGE_CACHE"):
        cache.path(store, manifest.shards[0])


def test_a_full_disk_below_the_cache_is_named(packed, tmp_path):
    store, manifest = LocalStore(Path(packed[0])), packed[1]
    cache = ShardCache(tmp_path / "full", 1 << 30)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"the shard cache .*full cannot be used .File too large"):
            cache.path(store, manifest.shards[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert cache.path(store, manifest.shards[0]).is_file()


def test_an_image_of_another_size_than_the_manifest_says_is_damaged(packed, cache):
    dataset = Dataset([packed[0]], cache)
    (row, *_) = dataset.manifests[0].rows
    taller = row.clean.height + 1
    of_two_sizes = replace(row, clean=replace(row.clean, height=taller))
    if row.degraded is not None:
        with pytest.raises(CorruptObjectError, match=f"sample {row.id!r}: its degraded image has"):
            dataset.read(of_two_sizes, CropWindow(0, 0, 8, 8))
    wrong = replace(of_two_sizes, degraded=row.degraded and replace(row.degraded, height=taller))
    for window in (None, CropWindow(0, 0, row.clean.height + 1, 8)):
        with pytest.raises(CorruptObjectError, match=f"sample {row.id!r}.*pixels, and the manifest says"):
            dataset.read(wrong, window)


def test_a_local_store_is_read_in_place_and_verified_once(packed, cache, monkeypatch):
    store = LocalStore(Path(packed[0]))
    shard = packed[1].shards[0]
    assert cache.path(store, shard) == store.path(shard.key)
    monkeypatch.setattr("shards.store.checked.hashlib.file_digest", lambda *_: pytest.fail("verified again"))
    assert cache.path(store, shard) == store.path(shard.key)


def _fetch(folder: Path, uri: str, shard: Shard, start, results) -> None:
    start.wait()
    path = ShardCache(folder, 1 << 30).path(open_store(uri), shard)
    results.put((path.stat().st_size, path.stat().st_ino))


def test_processes_that_want_the_same_shard_fetch_it_once(remote, published, tmp_path):
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    start, results = context.Event(), context.Queue()
    shard = published.shards[0]
    processes = [
        context.Process(target=_fetch, args=(tmp_path / "shared", remote.uri, shard, start, results))
        for _ in range(4)
    ]
    for process in processes:
        process.start()
    start.set()
    found = {results.get(timeout=30) for _ in processes}
    for process in processes:
        process.join()
    assert found == {(shard.size, (tmp_path / "shared" / f"{shard.sha256}.tar").stat().st_ino)}


def test_a_fetch_that_was_killed_leaves_nothing_for_long(remote, published, cache):
    shard = published.shards[0]
    cache.path(remote, published.shards[1])
    (cache.folder / f"{shard.sha256}.part").write_bytes(b"half of it")
    for name, age in ((".tmp-old", 7200), (".tmp-running", 10)):
        (cache.folder / name).write_bytes(b"half of it")
        os.utime(cache.folder / name, (time.time() - age,) * 2)
    assert cache.path(remote, shard).stat().st_size == shard.size
    assert [path.name for path in cache.folder.glob(".tmp-*")] == [".tmp-running"]
    assert not list(cache.folder.glob("*.part"))


def test_a_server_that_vanishes_in_mid_epoch_is_named(remote, published, cache, aws, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    cache.path(remote, published.shards[0])
    aws.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    gone = open_store(remote.uri)
    assert cache.path(gone, published.shards[0]).exists()
    with pytest.raises(StoreError, match="did not answer"):
        cache.path(gone, published.shards[1])
    assert load_manifest(remote).digest == published.digest


def test_a_cached_file_that_was_damaged_is_noticed_and_fetched_again(remote, published, cache, caplog):
    shard = published.shards[0]
    path = cache.path(remote, shard)
    whole = path.read_bytes()
    for damaged in (whole[:-100], b"<html></html>", bytes([whole[0] ^ 1]) + whole[1:]):
        path.write_bytes(damaged)
        assert cache.path(remote, shard).read_bytes() == whole
    assert len([r for r in caplog.records if "downloaded again" in r.message]) == 3


def test_a_cached_file_that_was_copied_back_is_verified_not_fetched(remote, published, cache, monkeypatch):
    shard = published.shards[0]
    path = cache.path(remote, shard)
    path.write_bytes(path.read_bytes())
    monkeypatch.setattr(S3Store, "download", lambda *_: pytest.fail("fetched again"))
    assert cache.path(remote, shard) == path
    monkeypatch.setattr("shards.cache.check_file", lambda *_: pytest.fail("verified twice"))
    assert ShardCache(cache.folder, cache.max_bytes).path(remote, shard) == path


def _thrash(folder: Path, uri: str, shards: tuple[Shard, ...], room: int) -> None:
    store, cache = open_store(uri), ShardCache(folder, room)
    while True:
        for shard in shards:
            cache.path(store, shard)


def test_processes_that_are_killed_while_they_fetch_leave_a_sound_cache(remote, published, tmp_path):
    """Two processes thrash a cache that holds less than the data, and die by kill -9 in the middle of it."""
    folder = tmp_path / "shared"
    room = 2 * max(shard.size for shard in published.shards)
    context = multiprocessing.get_context("fork")
    for moment in range(5):
        processes = [
            context.Process(target=_thrash, args=(folder, remote.uri, published.shards, room), daemon=True)
            for _ in range(2)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + 5
        while not [*folder.glob(".tmp-*"), *folder.glob("*.part")] and time.monotonic() < deadline:
            time.sleep(0.001 * moment)
        for process in processes:
            process.kill()
            process.join()
    cache = ShardCache(folder, room)
    for shard in published.shards:
        assert hashlib.sha256(cache.path(remote, shard).read_bytes()).hexdigest() == shard.sha256
    assert sum(path.stat().st_size for path in folder.glob("*.tar")) <= room


def test_another_shard_under_the_same_key_is_another_file(remote, published, cache):
    first, second = published.shards[:2]
    cache.path(remote, first)
    content = remote.read(second.key)
    remote.delete(first.key)
    remote.write(first.key, content)
    assert cache.path(remote, replace(second, key=first.key)).name == f"{second.sha256}.tar"


@pytest.mark.parametrize(("too_many", "evicted"), [(0, 0), (1, 3), (100, 3), (101, 4)])
def test_with_the_shards_that_must_go_a_sixteenth_of_all_goes(
    remote, published, tmp_path, too_many: int, evicted: int
):
    shard, folder = published.shards[0], tmp_path / "full"
    folder.mkdir()
    for number in range(32):  # the first was used longest ago
        (folder / f"{number:02}.tar").write_bytes(b"x" * 100)
        os.utime(folder / f"{number:02}.tar", (1000 + number, 1000))
    cache = ShardCache(folder, shard.size + 3200 - too_many)
    assert (cache.holds(remote, shard), cache.last_eviction()) == (False, 0)
    cache.path(remote, shard)
    assert cache.holds(remote, shard)
    assert sorted(path.stem for path in folder.glob("??.tar")) == [f"{n:02}" for n in range(evicted, 32)]
    assert (cache.last_eviction() > 0) is (evicted > 0)
    assert int((folder / "locks" / "room").read_bytes()) == shard.size + 100 * (32 - evicted)
