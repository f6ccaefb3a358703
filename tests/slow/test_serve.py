"""`mirage serve` and `serve run` on real Ray Serve: nothing is lost while models move and replicas die."""

from __future__ import annotations

import io
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.claims import wait_until
from tests.slow.project import Project
from tests.slow.serving import (
    BETTER,
    CORRUPT,
    GOOD,
    NOT_A_NUMBER,
    SECRET,
    TOKEN,
    Registry,
    Serving,
    application,
    failed,
    image,
    load,
    registry_of,
    serving,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420), pytest.mark.cluster]

FLAGS = (
    "--min-replicas",
    "1",
    "--max-replicas",
    "2",
    "--max-batch",
    "2",
    "--max-in-flight",
    "8",
    "--poll-seconds",
    "0.3",
)
LIMITS = ("--max-megabytes", "1", "--max-megapixels", "0.3")


@pytest.fixture(scope="module")
def registry(project: Project) -> Registry:
    made = registry_of(project)
    made.promote(GOOD)
    return made


@pytest.fixture(scope="module")
def secret_files(project: Project) -> tuple[str, str]:
    for name, secret in (("token", TOKEN), ("webhook", SECRET)):
        (project.root / name).write_text(secret)
    return str(project.root / "token"), str(project.root / "webhook")


@pytest.fixture(scope="module")
def service(project: Project, registry: Registry, secret_files: tuple[str, str]) -> Iterator[Serving]:
    with serving(project, *FLAGS, *LIMITS, "--token-file", secret_files[0]) as running:
        yield running


@pytest.fixture(scope="module", params=["serve run", "mirage serve"])
def form(
    request: pytest.FixtureRequest, project: Project, registry: Registry, secret_files: tuple[str, str]
) -> Iterator[Serving]:
    """The service in each of its two forms, with the same flags; the application polls once in an hour."""
    if request.param == "mirage serve":
        yield request.getfixturevalue("service")
        return
    flags = [*FLAGS, *LIMITS]
    given = {
        flag.removeprefix("--").replace("-", "_"): v for flag, v in zip(flags[::2], flags[1::2], strict=True)
    }
    given |= {"poll": "3600", "token_file": secret_files[0], "webhook_secret_file": secret_files[1]}
    with application(project, *(f"{name}={value}" for name, value in given.items())) as running:
        yield running


def broad() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (700, 500)).save(file, "PNG")
    return file.getvalue()


REFUSALS: list[tuple[Any, dict[str, str], int, str]] = [
    (image(), {"Authorization": "Bearer no"}, 401, "This service needs a bearer token."),
    (b"", {}, 400, "The request has no image. Send its bytes as the body, or as the file of a form."),
    (
        b"text",
        {},
        415,
        "This is not a JPEG, PNG, TIFF, WebP, BMP, AVIF, GIF or HEIC file. Convert it to one first.",
    ),
    (
        broad(),
        {},
        422,
        "The image has more than 0.3 million pixels, the limit of this service. Make it smaller.",
    ),
    (image()[:200], {}, 422, "the image: damaged or incomplete"),
    (bytes(1_000_001), {}, 413, "The image has at least 1,000,001 bytes; the limit is 1,000,000."),
    ([bytes(100_000)] * 15, {}, 413, "the limit is 1,000,000. Compress it more, or make it smaller."),
]


def test_it_restores_and_refuses_as_it_says(form: Serving) -> None:
    reply = form.restore(image())
    assert reply.status == 200
    assert reply.headers["x-mirage-model"] == f"served/{GOOD}"
    assert reply.headers["content-type"] == "image/png"
    assert re.fullmatch(
        r"decode;dur=.*, wait;dur=.*, restore;dur=.*, encode;dur=.*", reply.headers["server-timing"]
    )
    assert Image.open(io.BytesIO(reply.body)).size == (160, 120)
    for body, headers, status, message in REFUSALS:
        refused = form.request("POST", "/restore", body, headers)
        assert (refused.status, refused.json()["status"]) == (status, status)
        assert message in refused.json()["error"]
    for method, path, status in (("GET", "/nowhere", 404), ("GET", "/restore", 405), ("GET", "/", 200)):
        assert form.request(method, path).status == status
    assert form.request("GET", "/metrics", headers={"Authorization": "Bearer no"}).status == 401
    assert form.metric("mirage_requests_total", status="413") == 2
    facts = form.request("GET", "/model").json()
    assert (facts["name"], facts["max_bytes"], facts["max_pixels"], facts["token"]) == (
        "served",
        1_000_000,
        300_000,
        True,
    )
    health = form.health()
    assert (health["status"], health["replicas"], health["in_flight"]) == ("ok", 1, 0)
    assert exposed([psutil.Process(form.process.pid), *form.replicas()]) == []


def test_beyond_its_limit_it_says_when_to_come_back_and_a_lost_client_frees_its_place(form: Serving) -> None:
    large = image(600, 400)
    head = (
        f"POST /restore HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Length: {len(large)}\r\n\r\n"
    ).encode()
    slow, *lost = [socket.create_connection(("127.0.0.1", form.port)) for _ in range(9)]
    slow.sendall(head + b"the first bytes")  # takes no place
    for client in lost:
        client.sendall(head + large)
    wait_until(lambda: form.health()["in_flight"] == 8, "eight in flight", 30)
    refused = form.restore(image())
    for client in lost:
        client.close()
    assert refused.status == 429
    assert refused.json()["error"].startswith("8 requests are in flight, the maximum. Retry in ")
    assert int(refused.headers["retry-after"]) >= 1
    wait_until(lambda: form.health()["in_flight"] == 0, "nobody in flight", 30)
    assert form.metric("mirage_requests_total", status="499") > 0
    assert form.restore(image()).status == 200
    with slow:
        slow.settimeout(60)
        assert b" 408 " in slow.recv(1000), "less than the minimum rate"


@pytest.mark.parametrize("form", ["serve run"], indirect=True)
def test_a_delivery_of_the_webhook_moves_the_application_under_load(
    form: Serving, registry: Registry
) -> None:
    with load(form, 2, image()) as replies:
        registry.promote(BETTER)
        assert form.deliver("champion").status == 200
        wait_until(lambda: form.health()["model"] == f"served/{BETTER}", "the new version answers", 60)
        registry.promote(GOOD)
        assert form.deliver("champion").status == 200
        wait_until(lambda: form.health()["model"] == f"served/{GOOD}", "the old version answers", 60)
    assert failed(replies) == []
    assert {reply.headers["x-mirage-model"] for reply in replies} == {f"served/{GOOD}", f"served/{BETTER}"}


def test_load_brings_a_second_replica(service: Serving) -> None:
    assert service.health()["replicas"] == 1
    with load(service, 6, image(600, 400)) as replies:
        wait_until(lambda: service.health()["replicas"] == 2, "a second replica", 120)
    assert failed(replies) == []


def exposed(processes: Iterable[psutil.Process]) -> list[str]:
    """The ports of these processes that somebody outside this machine could reach, with the process."""
    return [
        f"{process.name()} ({process.pid}) on {connection.laddr.ip}:{connection.laddr.port}"
        for process in processes
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr.ip not in ("127.0.0.1", "::ffff:127.0.0.1", "::1")
    ]


def test_its_replicas_listen_on_loopback_alone(service: Serving) -> None:
    assert len(service.replicas()) == 2
    found = exposed([psutil.Process(service.process.pid), *service.replicas()])
    assert found == [], (
        f"Ray {version('ray')} opens a replica's port in another way: see serving/ray_replica_port.py"
    )


def test_a_promotion_arrives_under_load_without_a_failed_request(
    service: Serving, registry: Registry
) -> None:
    with load(service, 4, image()) as replies:
        wait_until(lambda: len(replies) > 8, "load", 60)
        registry.promote(BETTER)
        wait_until(lambda: service.health()["model"] == f"served/{BETTER}", "the new version answers", 60)
        after = len(replies)
        wait_until(lambda: len(replies) > after + 8, "load after the promotion", 60)
    assert failed(replies) == []
    models = [reply.headers["x-mirage-model"] for reply in replies]
    assert set(models) == {f"served/{GOOD}", f"served/{BETTER}"}
    assert models[-1] == f"served/{BETTER}"


@pytest.mark.parametrize(
    ("version", "reason"), [(NOT_A_NUMBER, "not finite"), (CORRUPT, "is not what was registered")]
)
def test_a_bad_version_is_refused_and_the_old_one_goes_on(
    service: Serving, registry: Registry, version: str, reason: str
) -> None:
    with load(service, 2, image()) as replies:
        registry.promote(version)
        wait_until(lambda: service.health()["rejected"], "the refusal", 60)
        health = service.health()
        registry.promote(BETTER)
        wait_until(lambda: service.health()["rejected"] is None, "the refusal is over", 60)
    assert (health["rejected"]["version"], health["model"]) == (version, f"served/{BETTER}")
    assert reason in health["rejected"]["reason"]
    assert failed(replies) == []
    assert {reply.headers["x-mirage-model"] for reply in replies} == {f"served/{BETTER}"}


def test_a_replica_dies_under_load_and_nothing_is_lost(service: Serving) -> None:
    large = image(600, 400)
    with load(service, 4, large) as replies:
        wait_until(lambda: len(replies) > 4, "load", 90)
        victim = service.replicas()[0]
        victim.kill()
        wait_until(lambda: service.metric("mirage_retries_total") >= 1, "a request done again", 60)
        wait_until(
            lambda: len(service.replicas()) == 2 and service.health()["replicas"] == 2, "a new replica", 120
        )
    assert failed(replies) == []


def test_overload_is_told_to_come_back_and_then_served(service: Serving) -> None:
    large = image(600, 400)

    def persist(_: int) -> tuple[int, int]:
        told = 0
        while (reply := service.restore(large)).status == 429:
            told += 1
            time.sleep(int(reply.headers["retry-after"]))
        return reply.status, told

    with ThreadPoolExecutor(16) as pool:
        ended = list(pool.map(persist, range(16)))
    assert {status for status, _ in ended} == {200}
    assert sum(told for _, told in ended) > 0
    assert service.metric("mirage_requests_total", status="429") > 0


def test_batches_are_at_most_a_level_from_single_images(service: Serving) -> None:
    images = [image(seed=seed) for seed in range(8)]
    alone = [service.restore(data) for data in images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(service.restore, images))
    assert failed(alone + together) == []
    apart = [
        np.abs(
            np.asarray(Image.open(io.BytesIO(a.body)), np.int16) - np.asarray(Image.open(io.BytesIO(b.body)))
        )
        for a, b in zip(alone, together, strict=True)
    ]
    assert max(each.max() for each in apart) <= 1
    assert np.mean([(each > 0).mean() for each in apart]) < 1e-3


def test_at_its_end_it_answers_who_is_inside_and_leaves_nothing(service: Serving) -> None:
    large = image(600, 400)
    with ThreadPoolExecutor(6) as pool:
        inside = [pool.submit(service.restore, large) for _ in range(6)]
        wait_until(lambda: service.health()["in_flight"] == 6, "six inside", 30)
        ended: list[int] = []
        stopping = threading.Thread(target=lambda: ended.append(service.stop()))
        stopping.start()
        replies = [each.result() for each in inside]
        stopping.join()
    assert failed(replies) == []
    assert ended == [0]
    assert service.replicas() == []
    assert "Traceback" not in service.log.read_text()


def test_one_that_ends_leaves_another_on_the_same_cluster(project: Project, registry: Registry) -> None:
    with serving(project) as first, serving(project) as second:
        assert first.stop() == 0
        assert second.restore(image()).status == 200


def test_without_a_cluster_it_runs_on_one_of_its_own(project: Project, registry: Registry) -> None:
    alone = {
        **project.environment,
        "MLFLOW_TRACKING_URI": f"sqlite:///{project.root}/.mirage/mlflow.db",
    }
    alone_root = Project(project.root / "jobs", alone)  # no `mirage up` in this folder
    with serving(alone_root) as running:
        assert running.restore(image()).status == 200
        assert exposed(psutil.Process(running.process.pid).children(recursive=True)) == []
        assert running.stop() == 0
