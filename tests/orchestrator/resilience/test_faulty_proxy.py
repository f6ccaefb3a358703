"""A faulty proxy in front of a real S3 server: reads return what was written, whatever requests fail."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.cluster.local import s3_server
from orchestrator.cluster.local.s3_server import S3Server
from orchestrator.resilience.faulty_proxy import (
    REQUEST_FAULTS,
    FaultyProxy,
    RequestFault,
    healthy,
    outage,
    random_faults,
)
from shards.errors import UnreachableStoreError
from shards.store import S3Store, retry
from shards.store.retry import ATTEMPTS


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("s3")
    made = s3_server.new(None)
    process = s3_server.start(made, folder, tmp_path_factory.mktemp("log") / "rclone.log", "faults")
    yield made
    psutil.Process(process.pid).kill()


@pytest.fixture
def proxy(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    monkeypatch.setattr(retry, "_FIRST_PAUSE_SECONDS", 0.01)
    with FaultyProxy(server.port, stall_seconds=0.1) as made:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{made.port}")
        yield made


def store(bucket: str) -> S3Store:
    made = S3Store(bucket)
    made.ensure_bucket()
    return made


def content(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest() * (1 + 37 * number)


def test_without_faults_every_request_succeeds(proxy: FaultyProxy) -> None:
    bucket = store("plain")
    bucket.write("a/b", content(3))
    assert bucket.read("a/b") == content(3)
    assert bucket.read_range("a/b", 5, 7) == content(3)[5:12]
    assert bucket.list() == ["a/b"]
    assert proxy.injected == 0
    assert proxy.counts[RequestFault.NONE] >= 4


def test_reads_return_what_was_written_under_random_faults(proxy: FaultyProxy) -> None:
    bucket = store("faulty")
    # Fewer failures in a row than the store retries.
    draw = random_faults(0.5, seed=7)
    proxy.plan = lambda n: draw(n) if n % ATTEMPTS else RequestFault.NONE
    for number in range(40):
        bucket.write(f"objects/{number:03d}", content(number))
    assert [bucket.read(f"objects/{number:03d}") for number in range(40)] == [content(n) for n in range(40)]
    assert len(bucket.list("objects/")) == 40
    assert {fault for fault in REQUEST_FAULTS if proxy.counts[fault]} == set(REQUEST_FAULTS)


@pytest.mark.parametrize("fault", REQUEST_FAULTS)
def test_every_kind_of_fault_alone_is_survived(proxy: FaultyProxy, fault: RequestFault) -> None:
    bucket = store("kinds")
    proxy.plan = lambda n: RequestFault.NONE if n % 2 else fault
    name = f"{fault.name.lower()}/object"
    bucket.write(name, content(5))
    assert bucket.read(name) == content(5)
    assert bucket.list(f"{fault.name.lower()}/") == [name]
    assert proxy.counts[fault] >= 2


def test_an_outage_raises_and_reads_work_after_it(proxy: FaultyProxy) -> None:
    bucket = store("outage")
    bucket.write("x", b"x")
    proxy.plan = outage
    with pytest.raises(UnreachableStoreError, match=str(proxy.port)):
        bucket.read("x")
    proxy.plan = healthy
    assert bucket.read("x") == b"x"


def test_the_seed_determines_which_requests_fail() -> None:
    draws = [random_faults(0.3, seed=1)(n) for n in range(500)]
    assert draws == [random_faults(0.3, seed=1)(n) for n in range(500)]
    assert draws != [random_faults(0.3, seed=2)(n) for n in range(500)]
    failed = sum(fault is not RequestFault.NONE for fault in draws)
    assert 100 < failed < 200
    assert [random_faults(0.0, seed=1)(n) for n in range(50)] == [RequestFault.NONE] * 50


def test_a_client_without_retries_sees_the_fault(proxy: FaultyProxy, tmp_path: Path) -> None:
    proxy.plan = lambda n: RequestFault.ERROR
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"http://127.0.0.1:{proxy.port}/", timeout=5)
    assert caught.value.code == 503
    caught.value.close()
