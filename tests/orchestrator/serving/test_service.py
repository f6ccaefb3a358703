from __future__ import annotations

import io
import re
import socket
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.types import Message

from mirage.weights import dumps
from orchestrator.errors import ServiceError
from orchestrator.imaging import formats
from orchestrator.imaging.photos import decode, encode
from orchestrator.restoration.restorer import Restorer
from orchestrator.serving.active_model import ActiveModel
from orchestrator.serving.http_server import listen
from orchestrator.serving.page import page, samples
from orchestrator.serving.served_model import ServedModel
from orchestrator.serving.service import CLIENT_DISCONNECTED, Service
from orchestrator.serving.settings import ServiceSettings
from tests.claims import wait_until
from tests.orchestrator.serving.inprocess import (
    InProcess,
    Running,
    image_bytes,
    running,
    served,
    small_model,
)


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)))


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises width x height pixels and whose body is nearly empty."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "media"), [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")]
)
def test_an_image_comes_back_restored_in_its_own_format(service: Running, kind: str, media: str) -> None:
    data = image_bytes(kind=kind)
    reply = service.restore(data)
    assert reply.status == 200
    assert reply.headers["content-type"] == media
    assert reply.headers["x-mirage-model"] == "small/1"
    assert re.fullmatch(
        r"decode;dur=[\d.]+, wait;dur=[\d.]+, restore;dur=[\d.]+, encode;dur=[\d.]+",
        reply.headers["server-timing"],
    )
    photo = decode(data, "x")
    assert reply.body == encode(Restorer(small_model()).pixels(photo), photo)


def test_a_form_gives_the_same_as_a_raw_body(service: Running) -> None:
    data = image_bytes()
    form = b'--b\r\nContent-Disposition: form-data; name="i"; filename="x"\r\n\r\n' + data + b"\r\n--b--\r\n"
    reply = service.restore(form, content_type="multipart/form-data; boundary=b")
    assert reply.status == 200
    assert reply.body == service.restore(data).body


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "has no image"),
        (b"x" * 200_001, 413, "the limit is 200,000"),
        (
            b"hello, I am a text",
            415,
            "This is not a JPEG, PNG, TIFF, WebP, BMP, AVIF, GIF or HEIC file. Convert it",
        ),
        (
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            415,
            "This is an SVG drawing, which is not read here. Export",
        ),
        (image_bytes()[:300], 422, "damaged"),
        (bomb(30_000, 30_000), 422, "million pixels"),
        (bomb(400, 251), 422, "more than 0.1 million pixels"),
    ],
    ids=["empty", "bytes", "text", "svg", "cut", "bomb", "pixels"],
)
def test_an_image_that_cannot_be_restored_gets_an_error_in_json(
    service: Running, body: bytes, status: int, message: str
) -> None:
    reply = service.restore(body)
    assert reply.status == status
    assert reply.json()["status"] == status
    assert message in reply.json()["error"]
    assert service.get("/health").json()["in_flight"] == 0


def test_a_body_without_a_length_has_the_same_limit(service: Running) -> None:
    reply = service.request("POST", "/restore", iter([b"x" * 50_000] * 6))
    assert reply.status == 413


def test_unknown_paths_and_methods_get_errors_in_json(service: Running) -> None:
    for reply, status in ((service.get("/nowhere"), 404), (service.get("/restore"), 405)):
        assert reply.status == status
        assert reply.json()["status"] == status
    assert service.get("/samples/../index.html").status == 404
    assert service.get("/samples/samples.json").status == 404


def test_metrics_count_by_status_and_time(model: ServedModel) -> None:
    with running(model) as service:
        assert service.restore(image_bytes()).status == 200
        service.restore(b"no")
        text = service.get("/metrics").body.decode()
    assert 'mirage_requests_total{status="200"} 1.0' in text
    assert 'mirage_requests_total{status="415"} 1.0' in text
    assert "mirage_request_seconds_count 2.0" in text
    assert 'mirage_part_seconds_count{part="restore"} 1.0' in text
    assert 'mirage_model_info{name="small",version="1",weights="digest-1"} 1.0' in text
    assert "mirage_requests_in_flight 0.0" in text


def test_the_model_route_has_name_scores_and_limits(service: Running) -> None:
    facts = service.get("/model").json()
    assert (facts["name"], facts["version"], facts["recipe"]) == ("small", "1", "fast")
    rain = {"degradation": "rain", "degraded_psnr": 22.7, "restored_psnr": 24.7, "gain": 2.0}
    assert facts["figures"][0] == rain
    assert facts["token"] is False
    assert {"JPEG", "PNG", "TIFF"} < set(facts["formats"])
    assert ("HEIC" in facts["formats"]) is formats.HAS_HEIC


def test_a_heic_that_is_not_read_here_is_named_with_what_to_do(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "HAS_HEIC", False)
    reply = service.restore(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    assert reply.status == 415
    assert reply.json()["error"].startswith(
        "This is a HEIC, which is not read here. Install what reads it (pip"
    )


def test_a_service_with_a_token_refuses_requests_without_it(model: ServedModel) -> None:
    with running(model, token="secret") as service:
        for headers in ({}, {"authorization": "Bearer wrong"}):
            reply = service.restore(image_bytes(), **headers)
            assert reply.status == 401
            assert reply.headers["www-authenticate"].startswith("Bearer")
        assert service.restore(image_bytes(), authorization="Bearer secret").status == 200
        assert service.get("/metrics").status == 401
        for path in ("/", "/health", "/model"):
            assert service.get(path).status == 200
        assert service.get("/openapi.json").json()["paths"]["/restore"]["post"]["security"]


def hold(service: Running) -> threading.Event:
    """Keep requests in flight until the returned event is set."""
    import asyncio

    event, release = asyncio.Event(), threading.Event()
    service.backend.hold = event

    def wait() -> None:
        release.wait(30)
        service.backend.hold = None
        loop = event._loop  # type: ignore[attr-defined]  # the server's, once a request waits
        loop.call_soon_threadsafe(event.set)

    threading.Thread(target=wait, daemon=True).start()
    return release


def test_beyond_its_capacity_it_answers_429_with_retry_after(model: ServedModel) -> None:
    with running(model, max_in_flight=2) as service, ThreadPoolExecutor(2) as pool:
        release = hold(service)
        requests = [pool.submit(service.restore, image_bytes()) for _ in range(2)]
        wait_until(lambda: service.get("/health").json()["in_flight"] == 2, "the requests are in the service")
        reply = service.restore(image_bytes(600, 500))
        assert reply.status == 429
        assert int(reply.headers["retry-after"]) >= 1
        release.set()
        assert [each.result().status for each in requests] == [200, 200]
        assert service.restore(image_bytes()).status == 200


def test_an_image_that_takes_too_long_gets_504(model: ServedModel) -> None:
    with running(model, timeout_seconds=0.3) as service:
        release = hold(service)
        reply = service.restore(image_bytes())
        assert reply.status == 504
        assert service.get("/health").json()["in_flight"] == 0
        release.set()


def test_an_upload_that_takes_too_long_gets_408(model: ServedModel) -> None:
    with (
        running(model, upload_seconds=0.3) as service,
        socket.create_connection(("127.0.0.1", service.port)) as slow,
    ):
        slow.sendall(b"POST /restore HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        assert b" 408 " in slow.recv(1000)


def test_a_client_that_disconnects_frees_its_capacity(model: ServedModel) -> None:
    with running(model, max_in_flight=1) as service:
        release = hold(service)
        data = image_bytes()
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            client.sendall(
                b"POST /restore HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data
            )
            wait_until(
                lambda: service.get("/health").json()["in_flight"] == 1, "the requests are in the service"
            )
        wait_until(lambda: service.get("/health").json()["in_flight"] == 0, "the requests are in the service")
        release.set()


def test_a_body_whose_transfer_serve_cancels_is_a_lost_client(model: ServedModel) -> None:
    import asyncio

    from ray.exceptions import TaskCancelledError

    from orchestrator.serving.ray_app import CancelledReceive

    async def receive() -> Message:
        raise TaskCancelledError

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    settings = ServiceSettings(port=0)
    service = Service(settings, ActiveModel(model), InProcess(settings), None)
    service.app.add_middleware(CancelledReceive)
    scope = {"type": "http", "method": "POST", "path": "/restore", "headers": [], "query_string": b""}
    asyncio.run(service.app(scope, receive, send))
    assert sent[0]["status"] == CLIENT_DISCONNECTED
    assert service.admission.in_flight == 0


def test_the_server_finishes_requests_in_flight_before_it_stops(model: ServedModel) -> None:
    with ThreadPoolExecutor(3) as pool:
        with running(model) as service:
            release = hold(service)
            requests = [pool.submit(service.restore, image_bytes()) for _ in range(3)]
            wait_until(
                lambda: service.get("/health").json()["in_flight"] == 3, "the requests are in the service"
            )
            threading.Timer(0.5, release.set).start()
        assert [each.result().status for each in requests] == [200, 200, 200]
    with pytest.raises(ConnectionRefusedError):
        service.get("/health")


def test_equal_sizes_are_restored_together_and_at_most_a_level_apart(model: ServedModel) -> None:
    images = [image_bytes(seed=seed) for seed in range(8)]
    with running(model) as service, ThreadPoolExecutor(8) as pool:
        alone = [service.restore(data) for data in images]
        release = hold(service)
        replies = [pool.submit(service.restore, data) for data in images]
        wait_until(lambda: service.get("/health").json()["in_flight"] == 8, "the requests are in the service")
        release.set()
        together = [each.result() for each in replies]
    assert {reply.headers["x-mirage-batch"] for reply in alone} == {"1"}
    assert max(int(reply.headers["x-mirage-batch"]) for reply in together) > 1
    apart = [
        np.abs(pixels(one.body).astype(int) - pixels(other.body))
        for one, other in zip(alone, together, strict=True)
    ]
    assert max(each.max() for each in apart) <= 1
    assert np.mean([(each > 0).mean() for each in apart]) < 1e-3


def test_a_model_whose_result_is_not_finite_is_rolled_back_without_a_lost_request(model: ServedModel) -> None:
    broken = small_model()
    with torch.no_grad():
        broken.output.weight.fill_(float("nan"))
    with running(model) as service:
        service.active.activate(served(broken, version="2"))
        reply = service.restore(image_bytes())
        assert reply.status == 200
        assert reply.headers["x-mirage-model"] == "small/1"
        assert service.get("/health").json()["rejected"]["version"] == "2"
    with running(served(broken)) as service:
        assert service.restore(image_bytes()).status == 500


def test_a_model_may_have_any_name(model: ServedModel) -> None:
    with running(replace(model, name="模型 β.safetensors")) as service:
        reply = service.restore(image_bytes())
    assert reply.status == 200
    assert unquote(reply.headers["x-mirage-model"]) == "模型 β.safetensors/1"


def test_an_internal_error_is_json_and_counted(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(data: bytes, model: ServedModel) -> None:
        raise RuntimeError("a bug")

    with running(model) as service:
        monkeypatch.setattr(service.backend, "restore", broken)
        reply = service.restore(image_bytes())
        assert reply.status == 500
        assert "Internal error" in reply.json()["error"]
        assert service.get("/health").json()["in_flight"] == 0
        assert 'mirage_requests_total{status="500"} 1.0' in service.get("/metrics").body.decode()


def test_a_draining_service_is_unhealthy(model: ServedModel) -> None:
    with running(model) as service:
        service.service.draining = True
        assert service.get("/health").status == 503


def test_old_names_of_health_and_metrics_still_work(service: Running) -> None:
    health = service.get("/health").json()
    for old, new in {"inside": "in_flight", "room": "max_in_flight", "refused": "rejected"}.items():
        assert health[old] == health[new]
    text = service.get("/metrics").body.decode()
    for old, new in {
        "mirage_requests_inside": "mirage_requests_in_flight",
        "mirage_requests_inside_limit": "mirage_requests_in_flight_limit",
        "mirage_model_refused": "mirage_model_rejected",
    }.items():
        values = [re.search(rf"^{name} (\S+)$", text, re.MULTILINE) for name in (old, new)]
        assert values[0] is not None
        assert values[1] is not None
        assert values[0][1] == values[1][1]


def test_openapi_has_every_route_and_there_is_no_page_for_it(service: Running) -> None:
    described = service.get("/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    assert set(described["paths"]) == {"/restore", "/health", "/model", "/metrics"}
    assert service.get("/docs").status == 404


def test_the_page_loads_nothing_from_other_hosts(service: Running) -> None:
    reply = service.get("/")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    text = reply.body.decode()
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)
    assert " style=" not in text
    assert " onclick=" not in text


def test_every_sample_is_served_with_its_source(service: Running) -> None:
    assert len(samples()) >= 3
    for sample in samples():
        reply = service.get(f"/samples/{sample['file']}")
        assert reply.headers["content-type"] == "image/jpeg"
        assert max(Image.open(io.BytesIO(reply.body)).size) > 400
        assert sample["source"]
        assert sample["file"].encode() in page().html


def test_a_port_in_use_is_an_error() -> None:
    with listen("127.0.0.1", 0) as first, pytest.raises(ServiceError, match="is in use"):
        listen("127.0.0.1", first.getsockname()[1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_in_flight": 0}, "--max-in-flight 0"),
        ({"max_pixels": 0}, "--max-megapixels 0"),
        ({"max_pixels": 400_000_000}, "--max-megapixels 400: must be more than 0 and at most 179"),
        ({"timeout_seconds": 0}, "--timeout-seconds 0"),
        ({"min_replicas": 3, "max_replicas": 2}, "--max-replicas 2"),
    ],
)
def test_invalid_settings_are_refused_with_their_flag(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ServiceError, match=message):
        ServiceSettings(**wrong)


def test_a_broken_model_fails_its_smoke_test(model: ServedModel) -> None:
    from orchestrator.serving.smoke_test import find_problem

    assert find_problem(Restorer(small_model())) == ""
    for value, problem in ((float("nan"), "not finite"), (50.0, "less than 10")):
        broken = small_model()
        with torch.no_grad():
            broken.output.weight.fill_(value)
        assert problem in find_problem(Restorer(broken))
    assert ActiveModel(model).may_try("2")
    assert dumps(small_model()) == model.weights
