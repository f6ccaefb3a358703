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

from mirage.weights import dumps
from orchestrator.errors import ServiceError
from orchestrator.imaging.photos import decode, encode
from orchestrator.restoration.restorer import Restorer
from orchestrator.serving.active_model import Shelf
from orchestrator.serving.http_server import listen
from orchestrator.serving.page import page, samples
from orchestrator.serving.served_model import Served
from orchestrator.serving.settings import Settings
from tests.claims import wait_until
from tests.orchestrator.serving.inprocess import Running, image_bytes, running, served, small_model


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
    ("body", "status", "told"),
    [
        (b"", 400, "holds no image"),
        (b"x" * 200_001, 413, "up to 200,000"),
        (b"hello, I am a text", 415, "Convert it"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "Convert it"),
        (image_bytes()[:300], 422, "damaged"),
        (bomb(30_000, 30_000), 422, "million pixels"),
        (bomb(400, 251), 422, "more than 0.1 million pixels"),
    ],
    ids=["empty", "bytes", "text", "svg", "cut", "bomb", "pixels"],
)
def test_what_cannot_be_restored_is_told_in_json(
    service: Running, body: bytes, status: int, told: str
) -> None:
    reply = service.restore(body)
    assert reply.status == status
    assert reply.json()["status"] == status
    assert told in reply.json()["error"]
    assert service.get("/health").json()["inside"] == 0


def test_a_body_without_a_length_has_the_same_limit(service: Running) -> None:
    reply = service.request("POST", "/restore", iter([b"x" * 50_000] * 6))
    assert reply.status == 413


def test_unknown_paths_and_methods_are_told_in_json(service: Running) -> None:
    for reply, status in ((service.get("/nowhere"), 404), (service.get("/restore"), 405)):
        assert reply.status == status
        assert reply.json()["status"] == status
    assert service.get("/samples/../index.html").status == 404
    assert service.get("/samples/samples.json").status == 404


def test_metrics_count_by_status_and_time(model: Served) -> None:
    with running(model) as service:
        assert service.restore(image_bytes()).status == 200
        service.restore(b"no")
        text = service.get("/metrics").body.decode()
    assert 'mirage_requests_total{status="200"} 1.0' in text
    assert 'mirage_requests_total{status="415"} 1.0' in text
    assert "mirage_request_seconds_count 2.0" in text
    assert 'mirage_part_seconds_count{part="restore"} 1.0' in text
    assert 'mirage_model_info{name="small",version="1",weights="digest-1"} 1.0' in text
    assert "mirage_requests_inside 0.0" in text


def test_the_model_tells_its_figures(service: Running) -> None:
    told = service.get("/model").json()
    assert (told["name"], told["version"], told["recipe"]) == ("small", "1", "fast")
    rain = {"degradation": "rain", "degraded_psnr": 22.7, "restored_psnr": 24.7, "gain": 2.0}
    assert told["figures"][0] == rain
    assert told["token"] is False


def test_a_token_is_asked_for_where_there_is_one(model: Served) -> None:
    with running(model, token="secret") as service:
        for shown in ({}, {"authorization": "Bearer wrong"}):
            reply = service.restore(image_bytes(), **shown)
            assert reply.status == 401
            assert reply.headers["www-authenticate"].startswith("Bearer")
        assert service.restore(image_bytes(), authorization="Bearer secret").status == 200
        assert service.get("/metrics").status == 401
        for path in ("/", "/health", "/model"):
            assert service.get(path).status == 200
        assert service.get("/openapi.json").json()["paths"]["/restore"]["post"]["security"]


def hold(service: Running) -> threading.Event:
    """Keep requests inside; setting the event lets them go on."""
    import asyncio

    event, release = asyncio.Event(), threading.Event()
    service.backend.hold = event

    def wait() -> None:
        release.wait(30)
        service.backend.hold = None
        loop = event._loop  # type: ignore[attr-defined]  # the door's, once somebody waits
        loop.call_soon_threadsafe(event.set)

    threading.Thread(target=wait, daemon=True).start()
    return release


def test_beyond_its_room_it_says_come_back_later(model: Served) -> None:
    with running(model, queue=2) as service, ThreadPoolExecutor(2) as pool:
        release = hold(service)
        inside = [pool.submit(service.restore, image_bytes()) for _ in range(2)]
        wait_until(lambda: service.get("/health").json()["inside"] == 2, "the requests are in the service")
        reply = service.restore(image_bytes(600, 500))
        assert reply.status == 429
        assert int(reply.headers["retry-after"]) >= 1
        release.set()
        assert [each.result().status for each in inside] == [200, 200]
        assert service.restore(image_bytes()).status == 200


def test_what_takes_too_long_is_given_up(model: Served) -> None:
    with running(model, timeout_seconds=0.3) as service:
        release = hold(service)
        reply = service.restore(image_bytes())
        assert reply.status == 504
        assert service.get("/health").json()["inside"] == 0
        release.set()


def test_an_image_that_never_comes_is_given_up(model: Served) -> None:
    with (
        running(model, upload_seconds=0.3) as service,
        socket.create_connection(("127.0.0.1", service.port)) as slow,
    ):
        slow.sendall(b"POST /restore HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        assert b" 408 " in slow.recv(1000)


def test_a_client_that_leaves_makes_room(model: Served) -> None:
    with running(model, queue=1) as service:
        release = hold(service)
        data = image_bytes()
        with socket.create_connection(("127.0.0.1", service.port)) as impatient:
            impatient.sendall(
                b"POST /restore HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data
            )
            wait_until(
                lambda: service.get("/health").json()["inside"] == 1, "the requests are in the service"
            )
        wait_until(lambda: service.get("/health").json()["inside"] == 0, "the requests are in the service")
        release.set()


def test_the_door_closes_after_those_inside_have_their_answers(model: Served) -> None:
    with ThreadPoolExecutor(3) as pool:
        with running(model) as service:
            release = hold(service)
            inside = [pool.submit(service.restore, image_bytes()) for _ in range(3)]
            wait_until(
                lambda: service.get("/health").json()["inside"] == 3, "the requests are in the service"
            )
            threading.Timer(0.5, release.set).start()
        assert [each.result().status for each in inside] == [200, 200, 200]
    with pytest.raises(ConnectionRefusedError):
        service.get("/health")


def test_equal_sizes_are_restored_together_and_at_most_a_level_apart(model: Served) -> None:
    images = [image_bytes(seed=seed) for seed in range(8)]
    with running(model) as service, ThreadPoolExecutor(8) as pool:
        alone = [service.restore(data) for data in images]
        release = hold(service)
        replies = [pool.submit(service.restore, data) for data in images]
        wait_until(lambda: service.get("/health").json()["inside"] == 8, "the requests are in the service")
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


def test_a_model_that_gives_no_numbers_is_taken_back_without_a_lost_request(model: Served) -> None:
    broken = small_model()
    with torch.no_grad():
        broken.output.weight.fill_(float("nan"))
    with running(model) as service:
        service.shelf.put(served(broken, version="2"))
        reply = service.restore(image_bytes())
        assert reply.status == 200
        assert reply.headers["x-mirage-model"] == "small/1"
        assert service.get("/health").json()["refused"]["version"] == "2"
    with running(served(broken)) as service:
        assert service.restore(image_bytes()).status == 500


def test_a_model_of_any_name_can_answer(model: Served) -> None:
    with running(replace(model, name="模型 β.safetensors")) as service:
        reply = service.restore(image_bytes())
    assert reply.status == 200
    assert unquote(reply.headers["x-mirage-model"]) == "模型 β.safetensors/1"


def test_a_bug_is_told_in_json_and_counted(model: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(data: bytes, model: Served) -> None:
        raise RuntimeError("a bug")

    with running(model) as service:
        monkeypatch.setattr(service.backend, "restore", broken)
        reply = service.restore(image_bytes())
        assert reply.status == 500
        assert "bug" in reply.json()["error"]
        assert service.get("/health").json()["inside"] == 0
        assert 'mirage_requests_total{status="500"} 1.0' in service.get("/metrics").body.decode()


def test_a_draining_service_says_so(model: Served) -> None:
    with running(model) as service:
        service.service.draining = True
        assert service.get("/health").status == 503


def test_openapi_names_every_route_and_loads_nothing(service: Running) -> None:
    described = service.get("/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    assert set(described["paths"]) == {"/restore", "/health", "/model", "/metrics"}
    assert service.get("/docs").status == 404


def test_the_page_allows_nothing_from_outside(service: Running) -> None:
    reply = service.get("/")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    text = reply.body.decode()
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)
    assert " style=" not in text
    assert " onclick=" not in text


def test_every_sample_is_served_and_says_where_it_is_from(service: Running) -> None:
    assert len(samples()) >= 3
    for sample in samples():
        reply = service.get(f"/samples/{sample['file']}")
        assert reply.headers["content-type"] == "image/jpeg"
        assert max(Image.open(io.BytesIO(reply.body)).size) > 400
        assert sample["source"]
        assert sample["file"].encode() in page().html


def test_a_port_that_is_taken_is_told() -> None:
    with listen("127.0.0.1", 0) as first, pytest.raises(ServiceError, match="is taken"):
        listen("127.0.0.1", first.getsockname()[1])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"queue": 0}, "--queue 0"),
        ({"max_pixels": 0}, "--max-megapixels 0"),
        ({"max_pixels": 400_000_000}, "--max-megapixels 400: more than 0 and at most 179"),
        ({"timeout_seconds": 0}, "--timeout 0"),
        ({"min_replicas": 3, "max_replicas": 2}, "--max-replicas 2"),
    ],
)
def test_impossible_settings_are_refused_by_their_flag(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ServiceError, match=told):
        Settings(**wrong)


def test_a_weight_file_of_the_wrong_kind_fails_its_trial(model: Served) -> None:
    from orchestrator.serving.smoke_test import problem_of

    assert problem_of(Restorer(small_model())) == ""
    for value, told in ((float("nan"), "not finite"), (50.0, "absurd")):
        broken = small_model()
        with torch.no_grad():
            broken.output.weight.fill_(value)
        assert told in problem_of(Restorer(broken))
    assert Shelf(model).may_try("2")
    assert dumps(small_model()) == model.weights
