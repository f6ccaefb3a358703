"""One photograph, one model, one setting: every way to restore it gives the same pixels."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mirage
from mirage import MIRAGE
from orchestrator.config.loader import job_from_mapping
from orchestrator.imaging.photos import decode
from orchestrator.registry import registration
from orchestrator.runner import run_any
from orchestrator.tracking import runs
from orchestrator.tracking.uri import resolve_tracking_uri
from tests.orchestrator.serving.inprocess import running, served

NAMES = ("turned.jpg", "deep.png", "deep.tif", "grey.png", "alpha.png")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The number of threads decides the last bit of a sum; everybody here has one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pyfunc(weights: str, folder: Path) -> Any:
    """The model as MLflow loads it from the registry."""
    uri = resolve_tracking_uri()
    run_id = runs.start_run(uri, "same", "pixels", {}, {})
    version = registration.register(
        uri,
        "same-pixels",
        run_id=run_id,
        weights=Path(weights).read_bytes(),
        card="",
        metrics={},
        tags={},
        idempotency_key="a",
    )
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    yield mlflow.pyfunc.load_model(version.uri)
    mlflow.set_tracking_uri(before)


def test_command_batch_service_page_and_pyfunc_agree(
    folder: Path, weights: str, model: MIRAGE, restore: Callable[..., Any], pyfunc: Any
) -> None:
    command = restore("in", "-o", "command", "--threads", "1")
    assert command.status == 0, command.text
    how = {"model": weights, "inputs": "in", "out": "batch"}
    run_any(job_from_mapping({"name": "r", "kind": "restore", "restore": how}), print, in_process=True)
    with running(served(model)) as service:
        for name in NAMES:
            data = (folder / name).read_bytes()
            expected = (folder.parent / "command" / name).read_bytes()
            assert (folder.parent / "batch" / name).read_bytes() == expected, f"batch, {name}"
            assert pyfunc.predict(data) == expected, f"pyfunc, {name}"
            text = base64.b64encode(data).decode()
            assert pyfunc.predict([data, text]) == [expected, base64.b64encode(expected).decode()]
            # The page sends what a client sends: POST /restore.
            reply = service.restore(data)
            assert reply.status == 200, reply.body
            assert reply.body == expected, f"service, {name}"
            photo = decode(data, name)
            whole = mirage.restore(model, torch.from_numpy(photo.pixels)).numpy()
            np.testing.assert_array_equal(pyfunc.predict(photo.pixels), whole)
            np.testing.assert_array_equal(pyfunc.predict(photo.pixels[None])[0], whole)


def test_dynamic_batching_is_one_level_off_at_most_and_seldom(
    folder: Path,
    model: MIRAGE,
    weights: str,
    restore: Callable[..., Any],
    record_property: Callable[..., None],
) -> None:
    pictures = [np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8) for seed in range(8)]
    (folder.parent / "many").mkdir()
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder.parent / "many" / f"{index}.png")
    assert restore("many", "-o", "alone", "--threads", "1").status == 0
    together: dict[int, bytes] = {}
    with running(served(model)) as service:

        def ask(index: int) -> None:
            reply = service.restore((folder.parent / "many" / f"{index}.png").read_bytes())
            together[index] = reply.body

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sizes = [line for line in service.get("/metrics").body.decode().splitlines() if "batch" in line]
    apart = np.stack(
        [
            np.abs(levels(together[index]) - levels((folder.parent / "alone" / f"{index}.png").read_bytes()))
            for index in range(8)
        ]
    )
    record_property("share_one_level_off", float((apart > 0).mean()))
    print(f"share of values one level off: {(apart > 0).mean():.2e}", *sizes, sep="\n")
    assert apart.max() <= 1
    assert (apart > 0).mean() < 1e-3


def levels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image).astype(np.int16)
