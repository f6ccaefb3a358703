"""Checkpoints: written while the run goes on, kept by rules, each with weights that anybody can load."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mirage
from orchestrator.errors import JobFileError
from orchestrator.events import Event, Progress
from orchestrator.training.checkpoint import Checkpoints, CheckpointState, Retention, RunIdentity
from orchestrator.training.engines.base import Engine
from orchestrator.training.loop import train
from shards.store import LocalStore
from tests.claims import assert_same_weights, final_weights
from tests.orchestrator.training.test_loop import CPU, Listener, run
from tests.shards.test_checked import Wire, flipped

IDENTITY = RunIdentity("run", ("data",))


def state(step: int, **metrics: float) -> CheckpointState:
    tensors = {"model": {"w": torch.full((3,), float(step))}, "optimizer": {"w/step": torch.tensor(step)}}
    named = {name.replace("_", "/"): value for name, value in metrics.items()}
    return CheckpointState(step, 8 * step, 0, tensors, named)


def written(folder: Path, keep: Retention, *states: CheckpointState) -> list[int]:
    checkpoints = Checkpoints(LocalStore(folder), IDENTITY, keep=keep)
    for each in states:
        checkpoints.save(each)
    checkpoints.wait()
    return [int(name.split("-")[0]) for name in checkpoints.names()]


def test_the_newest_and_the_best_of_a_chosen_metric_stay(tmp_path) -> None:
    scores = [state(n, val_psnr=20 + n, val_ssim=1 / n) for n in range(1, 7)]
    assert written(tmp_path / "a", Retention(2, 1), *scores) == [5, 6]
    assert written(tmp_path / "b", Retention(2, 1, "val/ssim"), *scores) == [1, 5, 6]
    assert written(tmp_path / "c", Retention(1, 2, "val/ssim"), *scores) == [1, 2, 6]
    assert written(tmp_path / "d", Retention(1, 2, "val/psnr", larger_is_better=False), *scores) == [1, 2, 6]
    assert written(tmp_path / "e", Retention(1, 0), *scores) == [6]


def test_what_is_younger_than_asked_stays_and_ages() -> None:
    records = {f"{n:09d}-x": {"metrics": {}, "written_unix": 1000 + 3600 * n} for n in range(5)}
    now = 1000 + 3600 * 5
    assert Retention(1, 1, hours=2.5).kept(records, now) == {"000000003-x", "000000004-x"}
    assert Retention(1, 1, hours=2.5).kept(records, now + 7200) == {"000000004-x"}
    assert Retention(1, 1, hours=2).kept(records, now) == {"000000004-x"}
    assert Retention(1, 1, hours=0).kept(records, 1000) == {"000000004-x"}  # also those of this moment
    assert Retention(1, 1, hours=1).kept(records, 1000) == set(records)  # a clock that was set back


def test_of_equally_good_ones_the_earliest_is_the_best(tmp_path) -> None:
    assert written(tmp_path, Retention(1, 1), *[state(n, val_psnr=30) for n in (1, 2, 3)]) == [1, 3]


def test_a_run_that_comes_by_again_writes_no_second_checkpoint(tmp_path) -> None:
    assert written(tmp_path, Retention(5), state(1), state(2)) == [1, 2]
    assert written(tmp_path, Retention(5), state(2)) == [1, 2]
    other = replace(state(2), tensors={**state(3).tensors})
    assert written(tmp_path, Retention(5), other) == [1, 2, 2]


def test_an_answer_that_is_damaged_on_its_way_costs_no_checkpoint(tmp_path) -> None:
    written(tmp_path, Retention(5), state(1), state(2))
    for damaged in (1, 2):  # the record, and then the record and a blob
        found = Checkpoints(Wire(tmp_path, flipped, damaged), IDENTITY, keep=Retention(5)).load_newest()
        assert found is not None
        assert found[1].step == 2
    assert not (tmp_path / "damaged").exists()


def test_a_metric_that_nothing_measures_is_refused(small_job) -> None:
    with pytest.raises(JobFileError, match="Did you mean val/5deg/haze/psnr"):
        small_job(checkpoint={"metric": "val/5deg/haze/pnsr"})


class Slow(LocalStore):
    """A store that takes a checkpoint's blobs only once the run has come further."""

    def __init__(self, folder: Path, further: threading.Event) -> None:
        super().__init__(folder)
        self.further = further
        self.timed_out_waiting = False

    def write(self, key: str, data: bytes) -> None:
        if key.startswith("blobs/") and not self.further.wait(20):
            self.timed_out_waiting = True
        super().write(key, data)


class Further(Listener):
    """Notes that the step behind a checkpoint has been taken."""

    def __init__(self, event: threading.Event) -> None:
        super().__init__()
        self.event = event

    def emit(self, event: Event) -> None:
        super().emit(event)
        if isinstance(event, Progress) and event.step >= 3:
            self.event.set()


def test_the_next_step_does_not_wait_for_a_checkpoint_to_be_written(small_job, small_data, tmp_path) -> None:
    torch.set_num_threads(1)
    event = threading.Event()
    store, driver = Slow(tmp_path, event), Further(event)
    job = small_job(track={"every_steps": 1}, train={"steps": 4})
    train(job, small_data, store, Engine(CPU), driver, "test")
    assert event.is_set()
    assert not store.timed_out_waiting
    assert "perf/checkpoint_stall_seconds" in driver.scalars[2]
    assert driver.scalars[4]["perf/checkpoint_write_seconds"] > 0


@pytest.mark.parametrize("ema_decay", [0.9, None])
def test_a_checkpoint_holds_weights_that_load_by_themselves(
    small_job, small_data, tmp_path, ema_decay: float | None
) -> None:
    run(small_job(train={"ema_decay": ema_decay}), small_data, tmp_path)
    record = json.loads(max((tmp_path / "checkpoints").iterdir()).read_bytes())
    assert record["step"] == 6
    model = mirage.load(tmp_path / record["weights"])
    assert_same_weights(model.state_dict(), final_weights(tmp_path))


class Counting(LocalStore):
    """A store that counts the reads of each object."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.reads: Counter[str] = Counter()

    def read(self, key: str) -> bytes:
        self.reads[key] += 1
        return super().read(key)


def test_a_resumed_run_reads_its_newest_checkpoint_once_and_no_other(small_job, small_data, tmp_path) -> None:
    job = small_job()
    run(job, small_data, tmp_path, Listener(stop_after=4))
    store, driver = Counting(tmp_path), Listener(stop_after=1)
    train(job, small_data, store, Engine(CPU), driver, "test")
    assert driver.resumed_at() == [4]
    newest = next(key for key in store.list("checkpoints/") if key.startswith("checkpoints/000000004-"))
    blobs = json.loads((tmp_path / newest).read_bytes())["blobs"].values()
    assert [store.reads[f"blobs/{blob}.safetensors"] for blob in blobs] == [1, 1, 1]
    assert sum(n for key, n in store.reads.items() if key.startswith("blobs/")) == 3


def test_writing_a_checkpoint_again_mends_a_damaged_blob(tmp_path) -> None:
    assert written(tmp_path, Retention(5), state(1)) == [1]
    record = next((tmp_path / "checkpoints").iterdir())
    blob = next((tmp_path / "blobs").iterdir())
    whole = blob.read_bytes()
    record.unlink()
    blob.chmod(0o644)
    blob.write_bytes(b"damaged")
    checkpoints = Checkpoints(LocalStore(tmp_path), IDENTITY, keep=Retention(5))
    checkpoints.save(state(1))
    checkpoints.wait()
    assert blob.read_bytes() == whole
    assert checkpoints.load_newest() is not None
