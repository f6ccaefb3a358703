"""Weights that a run is named for: one damaged bit, in the store or in the copy kept here, is never used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from orchestrator.errors import RegistryError
from orchestrator.registry import resolve
from orchestrator.run_files import RESULT
from shards.store import LocalStore, checked

WEIGHTS = b"the tensors of a network" * 50
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()
KEY = f"weights/{DIGEST}.safetensors"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    monkeypatch.setenv("MIRAGE_HOME", str(tmp_path / ".mirage"))
    monkeypatch.setattr(checked, "_FIRST_PAUSE_SECONDS", 0.0)
    store = LocalStore(tmp_path / "runs" / "small-1")
    store.write(KEY, WEIGHTS)
    store.write(RESULT, json.dumps({"weights": KEY}).encode())
    return store


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_weights_in_a_local_run_are_used_only_if_they_fit_their_name(run: LocalStore):
    assert resolve.find_model(run.uri).digest == DIGEST
    flip(run.path(KEY))
    with pytest.raises(RegistryError, match=f"damaged.*{DIGEST}"):
        resolve.find_model(run.uri)


def test_a_damaged_copy_of_remote_weights_is_replaced_and_damaged_originals_are_refused(
    run: LocalStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(resolve, "open_store", lambda _: run)
    copy = resolve.find_model("s3://bucket/runs/small-1").path
    assert copy != run.path(KEY)
    flip(copy)
    assert resolve.find_model("s3://bucket/runs/small-1").path.read_bytes() == WEIGHTS
    flip(run.path(KEY))
    assert resolve.find_model("s3://bucket/runs/small-1").digest == DIGEST  # the copy is whole
    copy.unlink()
    with pytest.raises(RegistryError, match="damaged"):
        resolve.find_model("s3://bucket/runs/small-1")
    assert not copy.exists()


def test_a_result_that_names_no_digest_is_refused_in_words(run: LocalStore):
    run.delete(RESULT)
    run.write(RESULT, json.dumps({"weights": "newest.safetensors"}).encode())
    with pytest.raises(RegistryError, match=r"newest\.safetensors"):
        resolve.find_model(run.uri)
