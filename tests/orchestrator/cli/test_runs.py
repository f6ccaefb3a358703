"""`mirage watch` survives a short failure of its store and prints each event once; `mirage runs` prints JSON."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli import runs
from orchestrator.history.record import Note
from orchestrator.history.store import write_status
from orchestrator.maintenance.run_list import read_run
from shards.errors import StoreError
from shards.store import LocalStore
from shards.store.checked import record_digest
from tests.claims import mirage
from tests.orchestrator.history.test_record import begun


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    """A finished run with two notes of one moment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "_POLL_SECONDS", 0)
    store = LocalStore(tmp_path / "storage" / "runs" / "demo-0123456789")
    notes = [Note(1.0, 2, "first"), Note(1.0, 2, "second")]
    write_status(store, replace(begun().status(), state="finished", notes=notes))
    return store


def test_watching_survives_a_store_that_fails_for_a_while_and_says_each_event(
    run: LocalStore, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = iter(range(3))

    def read():
        for _ in failures:
            raise StoreError("away")
        return read_run(run.uri)

    assert runs._follow(read) == "finished"
    assert capsys.readouterr().out.splitlines()[:2] == ["step 2: first", "step 2: second"]


def test_watching_ends_with_a_store_that_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_POLL_SECONDS", 0)
    monkeypatch.setattr(runs, "_RETRY_SECONDS", 0)

    def read():
        raise StoreError("away")

    with pytest.raises(StoreError, match="away"):
        runs._follow(read)


@pytest.mark.parametrize("psnr", [math.inf, 30.0])
def test_a_list_as_json_has_no_infinity(run: LocalStore, psnr: float) -> None:
    old = LocalStore(run.root.parent / "old-0123456789")
    result = {"step": 4, "weights": "w", "scores": [{"degradation": "rain", "psnr": psnr}]}
    old.write("result.json", json.dumps({**result, "sha256": record_digest(result)}).encode())
    done = mirage("runs", run.root.parent.parent, "--json")
    assert done.status == 0, done.text
    assert "Infinity" not in done.text
    lines = [json.loads(line) for line in done.text.splitlines() if line.startswith("{")]
    assert {line["run"]: line["psnr"] for line in lines}["old-0123456789"] == (
        psnr if math.isfinite(psnr) else None
    )
