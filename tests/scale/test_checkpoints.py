"""A checkpoint costs the same, however many are kept."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from orchestrator.bench.counting_store import CountingStore
from orchestrator.training.checkpoint import Checkpoints, CheckpointState, Retention, RunIdentity
from tests.scale.growth import stays_flat

KEPT = [3, 12, 48]


def state(step: int) -> CheckpointState:
    tensors = {"model": {"w": torch.full((3,), float(step))}, "optimizer": {"w/step": torch.tensor(step)}}
    return CheckpointState(step, 8 * step, 0, tensors, {"val/psnr": float(step)})


def opened(store: CountingStore, keep: int) -> Checkpoints:
    return Checkpoints(store, RunIdentity("run", ("data",)), keep=Retention(newest=keep, best=1))


@pytest.fixture(autouse=True)
def without_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def test_the_requests_of_a_checkpoint_do_not_grow_with_the_number_that_is_kept(tmp_path: Path):
    def requests(keep: int) -> int:
        store = CountingStore(tmp_path / str(keep))
        checkpoints = opened(store, keep)
        for step in range(keep + 2):
            checkpoints.save(state(step))
        checkpoints.wait()
        store.requests.clear()
        checkpoints.save(state(keep + 2))
        checkpoints.wait()
        assert len(checkpoints.names()) == keep
        return store.requests.total()

    assert max(stays_flat(requests, KEPT)) <= 12


def test_after_a_resume_each_kept_record_is_read_once(tmp_path: Path):
    store, keep = CountingStore(tmp_path), 12
    before = opened(store, keep)
    for step in range(keep):
        before.save(state(step))
    before.wait()
    resumed = opened(store, keep)
    found = resumed.load_newest()
    assert found is not None
    assert found[1].step == keep - 1
    store.requests.clear()
    for step in range(keep, keep + 5):
        resumed.save(state(step))
        resumed.wait()
    assert store.requests["read"] == keep - 1
    assert [int(name.split("-")[0]) for name in resumed.names()] == list(range(5, keep + 5))


def test_a_checkpoint_that_this_process_wrote_is_loaded_as_any_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    checkpoints = opened(CountingStore(tmp_path), 3)
    checkpoints.save(state(7))
    written = checkpoints.wait()
    assert written is not None
    with caplog.at_level(logging.WARNING):
        found = checkpoints.load_newest()
    assert found is not None
    assert (found[0], found[1].step, found[1].metrics) == (written.name, 7, {"val/psnr": 7.0})
    assert caplog.text == ""
