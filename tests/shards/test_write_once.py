"""Writers that race: exactly one is told that it wrote, the others see its bytes, on every kind of store."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shards.errors import ObjectExistsError
from shards.store import S3Store, Store, open_store, s3
from shards.store import conditional as conditional_writes
from tests.shards.conditional_server import ConditionalServer
from tests.shards.conftest import make_store

RACES = 8


@pytest.fixture
def conditional(nanio, aws: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """A store on a server that obeys conditional requests."""
    with ConditionalServer(nanio.endpoint) as server:
        aws.setenv("AWS_ENDPOINT_URL", server.endpoint)
        store = open_store(f"s3://{nanio.bucket}/{tmp_path.name}")
        store.ensure_bucket()
        yield store


@pytest.fixture(params=["folder", "rclone", "nanio", "conditional"])
def any_store(request: pytest.FixtureRequest) -> Store:
    """A store of each kind. The servers rclone and nanio ignore conditional requests."""
    if request.param == "conditional":
        return request.getfixturevalue("conditional")
    return make_store(request, request.param, request.getfixturevalue("tmp_path"))


def test_only_the_first_creates_and_the_others_see_its_bytes(any_store: Store):
    assert any_store.create("lease", b"first")
    assert not any_store.create("lease", b"second")
    assert not any_store.create("lease", b"first")
    assert any_store.read("lease") == b"first"
    assert any_store.list() == ["lease"]
    assert list(any_store.unfinished()) == []


@pytest.mark.parametrize("operation", ["create", "write", "write_file"])
def test_of_racing_writers_exactly_one_is_told_that_it_wrote(
    any_store: Store, tmp_path: Path, operation: str
):
    others = [open_store(any_store.uri) for _ in range(4)]
    for number in range(RACES):
        key = f"race/{number}"

        def write(rank: int, key: str = key) -> bool:
            data = b"%d" % rank * 1000
            match operation:
                case "create":
                    return others[rank].create(key, data)
                case "write":
                    return _is_written(lambda: others[rank].write(key, data))
            file = tmp_path / f"file-{rank}"
            file.write_bytes(data)
            return _is_written(lambda: others[rank].write_file(key, file))

        with ThreadPoolExecutor(len(others)) as threads:
            told = list(threads.map(write, range(len(others))))
        assert told.count(True) == 1
        assert any_store.read(key) == b"%d" % told.index(True) * 1000


def test_a_file_system_without_hard_links_holds_objects_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    store = open_store(str(tmp_path))
    assert store.create("lease", b"first")
    assert not store.create("lease", b"second")
    assert store.read("lease") == b"first"
    assert list(store.unfinished()) == []


@pytest.mark.parametrize("size", [1000, 6 << 20])
def test_the_server_itself_refuses_a_second_writer(
    conditional: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
):
    monkeypatch.setattr(s3, "PART", 5 << 20)
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"1" * size)
    second.write_bytes(b"2" * size)
    seen = iter([None, None, size, size])  # the second writer looks before the first has written
    monkeypatch.setattr(conditional, "_size", lambda _: next(seen))
    conditional.write_file("weights", first)
    with pytest.raises(ObjectExistsError):
        conditional.write_file("weights", second)
    assert conditional.read("weights") == first.read_bytes()


def test_two_machines_that_write_at_once_on_a_server_without_conditions_agree_on_one(
    rclone, aws: pytest.MonkeyPatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The lock files of two machines are different ones."""
    aws.setenv("AWS_ENDPOINT_URL", rclone.endpoint)
    store = open_store(f"s3://{rclone.bucket}/{tmp_path.name}")
    store.ensure_bucket()
    store.write("warm", b"up")
    monkeypatch.setattr(conditional_writes, "machine_lock", lambda *_: contextlib.nullcontext())
    both_wrote = threading.Barrier(2)
    monkeypatch.setattr(conditional_writes, "settle", lambda _: both_wrote.wait(30))
    looked = threading.Barrier(2)
    size = store._size

    def look(key: str) -> int | None:
        found = size(key)
        looked.wait(30)
        return found

    monkeypatch.setattr(store, "_size", look)
    with ThreadPoolExecutor(2) as threads:
        told = list(threads.map(lambda data: store.create("lease", data), [b"one", b"two"]))
    assert told.count(True) == 1
    assert store.read("lease") == [b"one", b"two"][told.index(True)]


def _is_written(write) -> bool:
    try:
        write()
    except ObjectExistsError:
        return False
    return True
