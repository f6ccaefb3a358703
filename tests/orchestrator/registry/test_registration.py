"""A trained model is registered once, found by every name it has, and loads without pickle and without us."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from mirage import MIRAGE, ModelConfig, load, restore
from mirage.weights import dumps
from orchestrator.errors import RegistryError
from orchestrator.registry import registration, versions
from orchestrator.registry.versions import ModelVersion
from orchestrator.tracking import runs
from orchestrator.tracking.client import connect
from tests.claims import assert_one_clear_error, wait_until

if TYPE_CHECKING:
    from tests.orchestrator.mlflow_server import Server

CONFIG = ModelConfig(dim=12, blocks=(1, 1, 1, 1), heads=(1, 1, 2, 2), refinement_blocks=1)


def model(seed: int = 0) -> MIRAGE:
    torch.manual_seed(seed)
    return MIRAGE(CONFIG).eval()


@pytest.fixture
def run_id(store: str) -> str:
    return runs.start_run(store, "5deg", "run", {}, {})


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A registered-model name of the test's own."""
    return str(request.node.name).replace("_", "-")


def registered(
    uri: str, name: str, run_id: str, key: str, *, seed: int = 0, card: str = "# Card"
) -> ModelVersion:
    return registration.register(
        uri,
        name,
        run_id=run_id,
        weights=dumps(model(seed)),
        card=card,
        metrics={"test/rain/psnr": 31.25},
        tags={"recipe": "release"},
        idempotency_key=key,
    )


def test_a_version_is_found_by_alias_number_and_run(store: str, run_id: str, name: str) -> None:
    version = registered(store, name, run_id, "a")
    assert (version.name, version.version, version.uri, version.run_id) == (
        name,
        1,
        f"models:/{name}/1",
        run_id,
    )
    assert versions.aliases(store, name) == {"candidate": 1}
    found = {
        versions.weights_file(uri, store)
        for uri in (f"models:/{name}@candidate", version.uri, f"runs:/{run_id}")
    }
    assert len(found) == 1
    assert found.pop().read_bytes() == dumps(model())


def test_the_registered_weights_are_the_model(store: str, run_id: str, name: str) -> None:
    degraded = torch.rand(1, 3, 33, 35)
    version = registered(store, name, run_id, "a")
    again = load(versions.weights_file(version.uri, store))
    assert torch.equal(restore(again, degraded), restore(model(), degraded))


def test_a_version_carries_card_metrics_and_tags(store: str, run_id: str, name: str) -> None:
    registered(store, name, run_id, "a", card="# Card\n" + "x" * 6000)
    version = connect(store).get_model_version(name, "1")
    assert version.run_id == run_id
    assert version.tags["metric.test/rain/psnr"] == "31.25"
    assert version.tags["recipe"] == "release"
    assert version.description.startswith("# Card\nxxx")
    assert len(version.description) == registration.MAX_DESCRIPTION
    weights = versions.weights_file(f"models:/{name}/1", store)
    assert weights.with_name("card.md").read_text() == "# Card\n" + "x" * 6000


def test_a_version_says_what_arrays_become(store: str, run_id: str, name: str) -> None:
    version = registered(store, name, run_id, "a")
    from mlflow.models import get_model_info

    signature = get_model_info(str(versions.weights_file(version.uri, store).parent.parent)).signature
    assert signature is not None
    assert signature.inputs is None  # arrays or files: MLflow would let one kind through
    (restored,) = signature.outputs.inputs
    assert (restored.type, restored.shape) == (np.dtype(np.float32), (-1, 3, -1, -1))


def test_the_same_key_makes_no_second_version(store: str, run_id: str, name: str) -> None:
    assert registered(store, name, run_id, "a") == registered(store, name, run_id, "a")
    assert registered(store, name, run_id, "b", seed=1).version == 2
    assert len(connect(store).search_model_versions(f"name = '{name}'")) == 2


def test_a_repeated_registration_takes_no_alias_from_a_newer_version(
    store: str, run_id: str, name: str
) -> None:
    registered(store, name, run_id, "a")
    registered(store, name, run_id, "b", seed=1)
    assert registered(store, name, run_id, "a").version == 1
    assert versions.aliases(store, name) == {"candidate": 2}


def test_a_driver_that_died_before_the_alias_finishes_its_work(store: str, run_id: str, name: str) -> None:
    registered(store, name, run_id, "a")
    connect(store).delete_registered_model_alias(name, "candidate")
    registered(store, name, run_id, "a")
    assert versions.aliases(store, name) == {"candidate": 1}


def test_registering_leaves_the_process_as_it_was(
    store: str, run_id: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow  # takes seconds

    monkeypatch.chdir(tmp_path)
    for before in (None, "http://elsewhere:5000"):
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        if before:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", before)
        registered(store, name, run_id, f"key {before}")
        assert os.environ.get("MLFLOW_TRACKING_URI") == before
        assert mlflow.get_tracking_uri() != store
    assert list(tmp_path.iterdir()) == []  # MLflow's default store would be ./mlflow.db


def test_changed_weights_are_refused(store: str, run_id: str, name: str) -> None:
    version = registered(store, name, run_id, "a")
    weights = versions.weights_file(version.uri, store)
    weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(RegistryError, match="is not what was registered"):
        versions.weights_file(version.uri, store)


def test_what_is_no_model_is_not_registered(store: str, run_id: str, name: str) -> None:
    with pytest.raises(RegistryError, match="the weights are not a model"):
        registration.register(
            store, name, run_id=run_id, weights=b"abc", card="", metrics={}, tags={}, idempotency_key="a"
        )
    assert connect(store).search_registered_models(f"name = '{name}'") == []


def test_a_name_that_is_not_there_is_answered_with_those_that_are(store: str, run_id: str, name: str) -> None:
    registered(store, name, run_id, "a")
    expected = {
        f"models:/{name}@champion": "has no alias 'champion'. It has: candidate (version 1).",
        f"models:/{name}/7": "has no version '7'. It has: 1.",
        "models:/other@champion": "no model 'other' is registered. Registered: ",
        "runs:/0123": "no version was registered from that run",
        "weights.safetensors": "no such file. A registered model is written models:/NAME@ALIAS",
    }
    for wanted, answer in expected.items():
        with pytest.raises(RegistryError) as refusal:
            versions.weights_file(wanted, store)
        assert_one_clear_error(refusal.value, wanted, answer)


def test_a_file_resolves_to_itself(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"")
    found = versions.weights_file(str(tmp_path / "weights.safetensors"), "http://never-asked:1")
    assert found == tmp_path / "weights.safetensors"


ELSEWHERE = """
import json, sys
import mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
import mirage
means = [float(model.predict(np.full(shape, 0.25, np.float32)).mean()) for shape in json.loads(sys.argv[3])]
print(json.dumps({"means": means, "mirage": mirage.__file__, "ours": "orchestrator" in sys.modules}))
"""


def test_a_version_loads_elsewhere_without_pickle_and_without_this_project(
    store: str, run_id: str, name: str, tmp_path: Path
) -> None:
    registered(store, name, run_id, "a")
    shapes = [(1, 3, 8, 8), (2, 3, 33, 35), (1, 3, 5, 61)]
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "PYTHONPATH": ""}
    command = [sys.executable, "-c", ELSEWHERE, store, f"models:/{name}@candidate", json.dumps(shapes)]
    answer = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    said = json.loads(answer.stdout.splitlines()[-1])
    assert "/code/mirage/" in said["mirage"]  # the copy that the version carries
    assert not said["ours"]
    for shape, mean in zip(shapes, said["means"], strict=True):
        assert mean == pytest.approx(float(restore(model(), torch.full(shape, 0.25)).mean()), abs=1e-6)


@pytest.mark.slow
@pytest.mark.xdist_group("mlflow")
def test_a_version_on_a_server_is_fetched_once(
    server: Server, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIRAGE_HOME", str(tmp_path / "home"))
    run_id = runs.start_run(server.uri, "5deg", "run", {}, {})
    version = registered(server.uri, name, run_id, "a")
    assert registered(server.uri, name, run_id, "a") == version
    fetched = versions.weights_file(f"models:/{name}@candidate", server.uri)
    assert fetched.is_relative_to(tmp_path / "home")
    assert fetched.read_bytes() == dumps(model())
    before = fetched.stat().st_mtime_ns
    assert versions.weights_file(version.uri, server.uri).stat().st_mtime_ns == before
    fetched.write_bytes(b"damaged on this disk" + fetched.read_bytes()[20:])
    assert versions.weights_file(version.uri, server.uri).read_bytes() == dumps(model())
    degraded = np.full((1, 3, 9, 11), 0.5, np.float32)
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    served = mlflow.pyfunc.load_model(version.uri)
    np.testing.assert_array_equal(
        served.predict(degraded), restore(model(), torch.from_numpy(degraded)).numpy()
    )


@pytest.mark.slow
def test_mlflow_serves_a_version_for_images_of_any_size(
    store: str, run_id: str, name: str, closed_port: int, tmp_path: Path
) -> None:
    registered(store, name, run_id, "a")
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{name}@candidate"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(closed_port)]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": store,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": "",
    }
    with (tmp_path / "serve.log").open("wb") as log:
        service = subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for shape in ((1, 3, 8, 8), (2, 3, 33, 35), (1, 3, 5, 61)):
            degraded = np.random.default_rng(0).random(shape, np.float32)
            restored = _invoke(closed_port, degraded, service, tmp_path / "serve.log")
            expected = restore(model(), torch.from_numpy(degraded)).numpy()
            np.testing.assert_allclose(restored, expected, atol=1e-5)
    finally:
        os.killpg(service.pid, signal.SIGKILL)
        service.wait()


def _invoke(port: int, degraded: np.ndarray, service: subprocess.Popen[bytes], log: Path) -> np.ndarray:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps({"inputs": degraded.tolist()}).encode(),
        {"Content-Type": "application/json"},
    )

    def answer() -> bytes | None:
        assert service.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        except urllib.error.URLError:
            return None

    content = wait_until(answer, f"MLflow's server answers; see {log}", 280, every=0.5)
    return np.asarray(json.loads(content)["predictions"], np.float32)
