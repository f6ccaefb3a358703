"""A faulty proxy in front of a real S3 server: reads return what was written, whatever requests fail."""

from __future__ import annotations

import hashlib
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.cluster.local import s3_server
from orchestrator.cluster.local.s3_server import S3Server
from orchestrator.errors import SupersededError
from orchestrator.resilience.faulty_proxy import (
    REQUEST_FAULTS,
    FaultyProxy,
    RequestFault,
    healthy,
    outage,
    random_faults,
)
from orchestrator.training.fencing import Turn, fenced, new_claim, write_claim
from shards.errors import ShardsError, StoreError, UnreachableStoreError
from shards.store import S3Store, retry, s3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("s3")
    made = s3_server.new(None)
    process = s3_server.start(made, folder, tmp_path_factory.mktemp("log") / "rclone.log", "faults")
    yield made
    psutil.Process(process.pid).kill()


@pytest.fixture(scope="module")
def only_proxy(server: S3Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(server.port, stall_seconds=0.1) as made, pytest.MonkeyPatch.context() as environment:
        for name, value in server.environment().items():
            environment.setenv(name, value)
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{made.port}")
        yield made


@pytest.fixture
def proxy(only_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> FaultyProxy:
    monkeypatch.setattr(retry, "_FIRST_PAUSE_SECONDS", 0.01)
    only_proxy.plan = healthy
    only_proxy.counts.clear()
    return only_proxy


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
    draw = random_faults(0.5, seed=7)
    proxy.plan = lambda n: draw(n) if n % 4 else RequestFault.NONE
    for number in range(20):
        bucket.write(f"objects/{number:03d}", content(number))
    assert [bucket.read(f"objects/{number:03d}") for number in range(20)] == [content(n) for n in range(20)]
    assert len(bucket.list("objects/")) == 20
    assert {fault for fault in REQUEST_FAULTS if proxy.counts[fault]} == set(REQUEST_FAULTS)


OLD, NEW = b"old" * 40, b"new" * 50


def _download(bucket: S3Store, folder: Path) -> bytes:
    bucket.download("old", folder / "copy")
    return (folder / "copy").read_bytes()


def _write_large_file(bucket: S3Store, folder: Path) -> bool:
    large = folder / "large"
    large.write_bytes(NEW * 40_000)
    bucket.write_file("large", large)
    return bucket._size("large") == large.stat().st_size


def _moved(bucket: S3Store, folder: Path) -> bytes | None:
    bucket.write_pointer("pointer", NEW)
    return bucket.read_pointer("pointer")


VERBS: dict[str, tuple[Callable[[S3Store, Path], object], object]] = {
    "read": (lambda bucket, _: bucket.read("old"), OLD),
    "read_range": (lambda bucket, _: bucket.read_range("old", 3, 9), OLD[3:12]),
    "download": (_download, OLD),
    "exists": (lambda bucket, _: (bucket.exists("old"), bucket.exists("no")), (True, False)),
    "stat": (lambda bucket, _: bucket.stat("old").size, len(OLD)),
    "list": (lambda bucket, _: bucket.list("old"), ["old"]),
    "write": (lambda bucket, _: (bucket.write("new", NEW), bucket.read("new"))[1], NEW),
    "write_file": (_write_large_file, True),
    "create": (lambda bucket, _: bucket.create("new", NEW), True),
    "pointer": (_moved, NEW),
    "ensure_bucket": (lambda bucket, _: bucket.ensure_bucket(), None),
    "delete": (lambda bucket, _: (bucket.delete("old"), bucket.exists("old"))[1], False),
}
"""What every verb returns on a bucket that holds `old`."""
FAULTS = [fault for fault in RequestFault if fault is not RequestFault.NONE]
WITHOUT_CHECKSUM = ("list", "read_range", "ensure_bucket")
WITHOUT_BODY = ("exists", "stat", "delete")
FEW = {RequestFault.LOST_RESPONSE, RequestFault.EXPIRED_TOKEN, RequestFault.WEB_PAGE, RequestFault.DENIED}
"""Faults that are tried with `write_file`, which sends megabytes."""
CASES = [
    pytest.param(fault, verb, id=f"{fault.name.lower()}-{verb}")
    for fault in FAULTS
    for verb in VERBS
    if (verb != "write_file" or fault in FEW)
    and not (fault is RequestFault.FLIPPED_BIT and verb in WITHOUT_CHECKSUM + WITHOUT_BODY)
    and not (fault is RequestFault.TRUNCATED and verb in WITHOUT_BODY)
]


@pytest.fixture(scope="module")
def matrix(only_proxy: FaultyProxy) -> S3Store:
    return store("matrix")


@pytest.fixture
def bucket(proxy: FaultyProxy, matrix: S3Store, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """A bucket that holds `old`, on a server that has answered before."""
    monkeypatch.setattr(s3, "PART", 5 << 20)
    for key in ("old", "new", "large", "pointer"):
        matrix.delete(key)
    matrix.write("old", OLD)
    return matrix


@pytest.mark.parametrize(
    ("fault", "verb"), [case for case in CASES if case.values[0] is not RequestFault.TOO_LARGE]
)
def test_every_verb_survives_every_passing_fault(
    proxy: FaultyProxy, bucket: S3Store, tmp_path: Path, fault: RequestFault, verb: str
) -> None:
    act, expected = VERBS[verb]
    began = sum(proxy.counts.values())
    proxy.plan = lambda n: fault if n - began < 2 else RequestFault.NONE
    assert act(bucket, tmp_path) == expected
    assert proxy.counts[fault] > 0


@pytest.mark.parametrize(("fault", "verb"), CASES)
def test_a_fault_that_stays_is_one_clear_error_in_every_verb(
    proxy: FaultyProxy,
    bucket: S3Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: RequestFault,
    verb: str,
) -> None:
    if fault is RequestFault.FLIPPED_BIT and verb not in ("read", "download"):
        return  # bodies that this fault changes are read by these two
    monkeypatch.setenv(retry.VARIABLE, "0.001")
    monkeypatch.setattr(retry, "DOUBTFUL_SECONDS", 0.06)
    proxy.plan = lambda _: fault
    with pytest.raises(ShardsError) as raised:
        VERBS[verb][0](bucket, tmp_path)
    text = str(raised.value)
    assert re.search(r"s3://matrix/(old|new|large|pointer|no)?", text), text
    assert f"127.0.0.1:{proxy.port}" in text
    if fault.value[:3].isdigit():
        assert f"HTTP {fault.value[:3]}" in text, text
    assert "\n" not in text
    proxy.plan = healthy
    assert "large" not in bucket.list()
    assert not (tmp_path / "copy").exists()


def test_a_404_that_is_no_servers_answer_never_means_that_an_object_is_missing(
    proxy: FaultyProxy, bucket: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for failing in (1, 2, 99):  # HEAD alone, HEAD and the GET that confirms it, all
        began = sum(proxy.counts.values())
        proxy.plan = lambda n, last=began + failing: RequestFault.NOT_FOUND if n < last else RequestFault.NONE
        if failing < 99:
            assert bucket.exists("old")
            continue
        monkeypatch.setenv(retry.VARIABLE, "0.001")
        with pytest.raises(StoreError, match="HTTP 404"):
            bucket.exists("old")


@pytest.mark.parametrize("verb", ["write", "write_file", "create", "write_pointer", "delete"])
def test_workers_that_are_replaced_while_they_retry_write_nothing_more(
    proxy: FaultyProxy, bucket: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    run = S3Store("matrix", f"run-{verb}")
    run.write("old", OLD)
    write_claim(run, claim := new_claim(run, Turn(1, 1, 1)))
    writer = fenced(run, claim)
    (tmp_path / "file").write_bytes(NEW)
    arguments = {"delete": ["old"], "write_file": ["new", tmp_path / "file"]}.get(verb, ["new", NEW])
    began = sum(proxy.counts.values())
    proxy.plan = lambda n: (
        RequestFault.SLOW_DOWN if n == began + 1 else RequestFault.NONE
    )  # after the fence's list

    def pause(_: float) -> None:
        write_claim(run, new_claim(run, Turn(1, 1, 2)))

    monkeypatch.setattr(retry.time, "sleep", pause)
    with pytest.raises(SupersededError):
        getattr(writer, verb)(*arguments)
    assert proxy.counts[RequestFault.SLOW_DOWN] == 1
    assert [key for key in run.list() if not key.startswith("writer/")] == ["old"]


def test_an_outage_of_a_server_that_never_answered_is_told_sooner(
    proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "_answered", set())
    monkeypatch.setattr(retry, "DOUBTFUL_SECONDS", 0.05)
    monkeypatch.setenv(retry.VARIABLE, "60")
    proxy.plan = outage
    with pytest.raises(UnreachableStoreError, match=str(proxy.port)):
        S3Store("outage").read("x")
    proxy.plan = healthy
    assert store("outage").list() == []
    pauses: list[float] = []
    monkeypatch.setattr("shards.store.retry.time.sleep", pauses.append)
    proxy.plan = outage
    with pytest.raises(UnreachableStoreError):
        S3Store("outage").read("x")
    assert 3500 < sum(pauses) < 3600
    assert max(pauses) < 20


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
