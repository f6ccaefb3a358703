"""A real MLflow server tells a service that an alias moved."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mirage.weights import dumps
from orchestrator.errors import RegistryError
from orchestrator.registry import registration, versions, webhooks
from orchestrator.registry.webhooks import WebhookEntry
from orchestrator.serving.front_end import Secrets, assemble
from orchestrator.serving.http_server import HttpServer, listen
from orchestrator.serving.served_model import ServedModel, load_model
from orchestrator.serving.webhook import PATH, VARIABLE
from orchestrator.tracking import runs
from orchestrator.tracking.client import connect
from tests.claims import assert_one_clear_error, mirage, wait_until
from tests.orchestrator.mlflow_server import WEBHOOKS
from tests.orchestrator.serving.inprocess import HOURLY, Managed, Running, running, served, small_model

if TYPE_CHECKING:
    from tests.orchestrator.mlflow_server import Server

SECRET = "a-secret-of-the-webhook"
MODEL = "hooked"
on_server = pytest.mark.xdist_group("mlflow")


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    model: ServedModel = replace(served(small_model()), name=MODEL)
    with running(model, webhook_secret=SECRET) as found:
        yield found


@pytest.fixture
def entry(server: Server, service: Running) -> Iterator[WebhookEntry]:
    made = webhooks.create(server.uri, "mirage", f"http://127.0.0.1:{service.port}{PATH}", SECRET)
    yield made
    webhooks.delete(server.uri, made.id)
    assert made.id not in [each.id for each in webhooks.list_all(server.uri)]


@on_server
def test_a_moved_alias_is_delivered_signed_and_makes_the_service_look(
    server: Server, service: Running, entry: WebhookEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    monkeypatch.setattr(service.service, "alias_moved", lambda: looks.append(time.time()))
    client = connect(server.uri)
    run = runs.start_run(server.uri, MODEL, "run", {}, {})
    client.create_registered_model(MODEL)
    for number in ("1", "2"):
        client.create_model_version(MODEL, source=f"runs:/{run}/model", run_id=run)
        time.sleep(1.1)  # the server's list of webhooks may be a second old
        versions.set_aliases(server.uri, MODEL, {"champion": int(number)})
        wait_until(lambda n=int(number): len(looks) == n, "a delivery")
    client.create_registered_model("another")
    client.create_model_version("another", source=f"runs:/{run}/model", run_id=run)
    versions.set_aliases(server.uri, "another", {"champion": 1})
    total = 'mirage_webhook_deliveries_total{status="200"} 3.0'
    wait_until(lambda: total in service.get("/metrics").body.decode(), "the delivery for another model")
    assert len(looks) == 2


@on_server
def test_an_alias_that_moves_on_the_server_changes_what_is_served_long_before_the_next_poll(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    run = runs.start_run(server.uri, "served", "run", {}, {})
    for seed in (0, 1):
        registration.register(
            server.uri,
            "served",
            run_id=run,
            weights=dumps(small_model(seed)),
            card="",
            metrics={},
            tags={"recipe": "fast", "protocol": "rgb-crop16"},
            idempotency_key=str(seed),
        )
    versions.set_aliases(server.uri, "served", {"champion": 1})
    alias = "models:/served@champion"
    first = load_model(alias, server.uri)
    front = assemble(alias, server.uri, first, HOURLY, Managed(HOURLY), Secrets(webhook=SECRET))
    loop = threading.Thread(target=front.monitor.run)
    loop.start()
    hook = None
    try:
        with listen("127.0.0.1", 0) as listening, HttpServer(front.service.app, listening, 30):
            port = listening.getsockname()[1]
            service = Running(port, front.service, Managed(HOURLY), front.service.active)
            assert service.get("/health").json()["model"] == "served/1"
            hook = webhooks.create(server.uri, "served", f"http://127.0.0.1:{port}{PATH}", SECRET)
            time.sleep(1.1)  # the server's list of webhooks may be a second old
            versions.set_aliases(server.uri, "served", {"champion": 2})
            wait_until(lambda: service.get("/health").json()["model"] == "served/2", "the newer version")
    finally:
        if hook:
            webhooks.delete(server.uri, hook.id)
        front.monitor.stop()
        loop.join()


@on_server
def test_its_test_says_what_the_receiver_answers(
    server: Server, service: Running, entry: WebhookEntry, closed_port: int
) -> None:
    assert "No alias of this service's model moved" in webhooks.send_test(server.uri, entry.id)
    other = webhooks.create(server.uri, "other", f"http://127.0.0.1:{service.port}{PATH}?2", "another-secret")
    with pytest.raises(RegistryError, match=r"HTTP 401: .*signature"):
        webhooks.send_test(server.uri, other.id)
    webhooks.delete(server.uri, other.id)


@on_server
def test_the_commands_create_list_test_and_delete(
    server: Server, service: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.delenv(VARIABLE, raising=False)
    url = f"http://127.0.0.1:{service.port}{PATH}"
    assert_one_clear_error(mirage("webhooks", "create", url), VARIABLE)
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    made = mirage("webhooks", "create", url, "--secret-file", secret)
    assert made.status == 0, made.text
    identity = made.text.partition(":")[0]
    again = mirage("webhooks", "create", url, "--secret-file", secret)
    assert_one_clear_error(again, f"webhook {identity} sends there already")
    listed = mirage("webhooks", "list")
    assert identity in listed.text
    assert "model_version_alias.created" in listed.text
    tested = mirage("webhooks", "test", identity)
    assert (tested.status, "HTTP 200" in tested.text) == (0, True)
    assert mirage("webhooks", "delete", identity).status == 0
    assert identity not in mirage("webhooks", "list").text
    assert_one_clear_error(mirage("webhooks", "delete", identity), identity)
    assert SECRET not in made.text + listed.text + tested.text


@pytest.mark.parametrize("url", ["ftp://host/x", "host/x", "http:///x"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(RegistryError, match="no http or https address"):
        webhooks.create("http://127.0.0.1:1", "mirage", url, SECRET)


def test_a_server_that_does_not_answer_is_one_error_that_names_the_key(closed_port: int) -> None:
    with pytest.raises(RegistryError, match=r"no answer\. .* If it runs, .*_ENCRYPTION_KEY"):
        webhooks.list_all(f"http://127.0.0.1:{closed_port}")


def test_a_database_sends_no_webhooks(store: str) -> None:
    for action in (lambda: webhooks.list_all(store), lambda: webhooks.delete(store, "x")):
        with pytest.raises(RegistryError, match="Set MLFLOW_TRACKING_URI to a server"):
            action()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "MLFLOW_WEBHOOK_ALLOWED_SCHEMES=https,http"),
        ({"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http"}, "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true"),
    ],
)
def test_what_a_plain_server_refuses_is_explained_by_the_setting(
    store: str, settings: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    for variable in WEBHOOKS:
        monkeypatch.delenv(variable, raising=False)
    for variable, value in settings.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(MlflowException) as refused:  # the check that the server runs
        connect(store).create_webhook("x", "http://127.0.0.1:1/x", [webhooks.EVENT], secret=SECRET)
    assert named in webhooks._with_hint(str(refused.value))
