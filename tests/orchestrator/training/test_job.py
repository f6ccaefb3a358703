"""A run from its driver's side: one driver at a time, and an orderly end whenever it is asked to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from mlflow import MlflowClient

from orchestrator import ownership
from orchestrator.config.job_types import JobOutcome
from orchestrator.data import datasets
from orchestrator.errors import OwnedError
from orchestrator.ownership import Owner, newest_claim, next_claim
from orchestrator.registry import registration
from orchestrator.runner import run_any
from orchestrator.training import job as training_job
from orchestrator.training import publication
from orchestrator.training.run_location import locate_run
from shards.errors import StoreError
from shards.store import LocalStore


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make(small_job, small_data, store):
    """Make the small job with MLflow in a database that exists; its experiment is `name`."""

    def make(name: str):
        track = {"uri": store, "experiment": name, "register_as": name}
        return small_job(name=name, track=track, train={"steps": 2}, example=None)

    return make


@pytest.fixture
def live_owner() -> Iterator[Owner]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    machine = Owner.here().process.rpartition(":")[0].rpartition(":")[0]
    started = ownership._start_of(process.pid)
    yield replace(
        Owner.here(), pid=process.pid, process=f"{machine}:{process.pid}:{started}", submission="raysubmit_7"
    )
    process.kill()
    process.communicate()


def mlflow_runs(store: str, experiment: str) -> list[str]:
    client = MlflowClient(store)
    found = client.get_experiment_by_name(experiment)
    return [] if found is None else [r.info.status for r in client.search_runs([found.experiment_id])]


def test_a_second_submission_ends_at_once_and_leaves_no_trace(make, small_data, store, live_owner) -> None:
    job = make("twice")
    folder = locate_run(job, small_data).store
    claim = next_claim(folder)
    folder.write_pointer(claim, live_owner.to_json())
    with pytest.raises(OwnedError, match=r"run twice-.*ray job stop raysubmit_7"):
        run_any(job, lambda line: None, in_process=True)
    assert mlflow_runs(store, "twice") == []
    assert folder.list() == [claim]


def test_a_driver_that_lost_its_run_stops_without_publishing(make, small_data, store, monkeypatch) -> None:
    job = make("lost")
    folder = locate_run(job, small_data).store
    original = training_job.train_in_process

    def then_taken_over(*arguments: object) -> JobOutcome:
        outcome = original(*arguments)
        folder.write_pointer(next_claim(folder), replace(Owner.here(), renewed=1).to_json())
        return outcome

    monkeypatch.setattr(training_job, "train_in_process", then_taken_over)
    with pytest.raises(OwnedError, match="taken over"):
        run_any(job, lambda line: None, in_process=True)
    assert mlflow_runs(store, "lost") == ["RUNNING"], "it belongs to the new owner"
    assert MlflowClient(store).search_model_versions("name = 'lost'") == []


def test_a_finished_run_is_reported_from_a_store_that_refuses_writes(
    make, small_data, store, monkeypatch
) -> None:
    job = make("finished")
    folder = locate_run(job, small_data).store
    assert run_any(job, lambda line: None, in_process=True).status == "finished"
    before = folder.list()

    def refuse(self: LocalStore, key: str, *_: object) -> None:
        raise StoreError(f"{key} may not be written")

    for name in ("write", "write_file", "create", "write_pointer", "delete"):
        monkeypatch.setattr(LocalStore, name, refuse)
    told: list[str] = []
    assert run_any(job, told.append, in_process=True).status == "finished"
    assert "PSNR" in "".join(told)
    assert folder.list() == before
    (version,) = MlflowClient(store).search_model_versions("name = 'finished'")
    MlflowClient(store).delete_model_version("finished", version.version)
    with pytest.raises(StoreError, match="owner/"):  # registration needs the claim
        run_any(job, told.append, in_process=True)


def interrupting(function: Callable[..., object], number: int, *, before: bool) -> Callable[..., object]:
    """Return the function that sends this process a signal, once."""
    sent = []

    def run(*arguments: object, **options: object) -> object:
        if before and not sent:
            sent.append(os.kill(os.getpid(), number))
        result = function(*arguments, **options)
        if not before and not sent:
            sent.append(os.kill(os.getpid(), number))
        return result

    return run


MOMENTS = [
    (registration, "_log_model"),
    (registration, "_create_version"),
    (registration, "lease"),
    (publication, "_pictures"),
    (publication, "_write_changed"),
]


def test_after_any_number_of_stops_while_a_model_is_registered_there_is_one_version(
    make, small_data, store, monkeypatch
) -> None:
    job = make("stopped")
    folder = locate_run(job, small_data).store
    for module, function in MOMENTS:
        for before, number in ((True, signal.SIGTERM), (False, signal.SIGHUP)):
            with monkeypatch.context() as patch:
                patch.setattr(
                    module, function, interrupting(getattr(module, function), number, before=before)
                )
                assert run_any(job, lambda line: None, in_process=True).status == "stopped", function
            assert Owner.from_json(folder.read_pointer(newest_claim(folder)) or b"").released
            assert mlflow_runs(store, "stopped") == ["KILLED"], function
    assert run_any(job, lambda line: None, in_process=True).status == "finished"
    assert mlflow_runs(store, "stopped") == ["FINISHED"]
    (version,) = MlflowClient(store).search_model_versions("name = 'stopped'")
    assert MlflowClient(store).get_registered_model("stopped").aliases == {"candidate": int(version.version)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_each_signal_that_asks_to_stop_ends_training_with_a_checkpoint(
    make, small_data, store, monkeypatch, number
) -> None:
    job = make(f"signal-{int(number)}")
    original = training_job._RunDriver.control_signal

    def signalled(self, step: int):
        if step == 1:
            os.kill(os.getpid(), number)
        return original(self, step)

    monkeypatch.setattr(training_job._RunDriver, "control_signal", signalled)
    assert run_any(job, lambda line: None, in_process=True) == JobOutcome("stopped", 1, 2)
    assert mlflow_runs(store, job.name) == ["KILLED"]


def test_a_process_that_ignores_hangups_goes_on(make, small_data, store, monkeypatch) -> None:
    """`nohup` starts processes so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        original = training_job._RunDriver.control_signal

        def signalled(self, step: int):
            os.kill(os.getpid(), signal.SIGHUP)
            return original(self, step)

        monkeypatch.setattr(training_job._RunDriver, "control_signal", signalled)
        assert run_any(make("nohup"), lambda line: None, in_process=True).status == "finished"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_dataset_that_is_packed_when_the_stop_comes_is_no_traceback(make, store, monkeypatch) -> None:
    monkeypatch.setattr(
        datasets, "open_dataset", interrupting(datasets.open_dataset, signal.SIGTERM, before=True)
    )
    assert run_any(make("early"), lambda line: None, in_process=True).status == "stopped"
    assert mlflow_runs(store, "early") == []
