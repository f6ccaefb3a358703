"""A run leaves its record beside its checkpoints and its report at every end; `mirage runs` and `watch` read them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from orchestrator import ownership
from orchestrator.data import datasets
from orchestrator.errors import OwnedError
from orchestrator.history.store import REPORT, read_history, read_status, write_status
from orchestrator.maintenance import deletion, run_list
from orchestrator.runner import run_any
from orchestrator.training.run_location import locate_run
from shards.dataset import Dataset
from shards.errors import StoreError
from shards.store import LocalStore, open_store
from tests.claims import assert_one_clear_error, mirage
from tests.orchestrator.history.test_report_html import Page


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def job(small_job, small_data, store):
    def make(name: str, **changes: object):
        track = {"uri": store, "experiment": name, "register_as": name, "every_steps": 1}
        return small_job(name=name, track=track, example=None, **changes)

    return make


def stopping_at(step: int) -> Callable[[str], None]:
    """Return an echo that asks this process to stop after a step."""

    def echo(line: str) -> None:
        if line.startswith(f"step {step}/"):
            os.kill(os.getpid(), signal.SIGTERM)

    return echo


def artifacts(store: str, experiment: str) -> list[str]:
    client = MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return [file.path for file in client.list_artifacts(run.info.run_id)]


def test_a_stopped_and_a_resumed_run_have_a_report_in_each_folder_and_in_mlflow(
    job, small_data: Dataset, store: str, tmp_path: Path
) -> None:
    made = job(
        "told",
        degradations={"noise35": [{"gaussian_noise": {"sigma": 35}}]},
        data={"mixture": {"noise35": 2, "rain": 1}},
        evaluate={"degradations": ["noise35", "rain"]},
    )
    location = locate_run(made, small_data)
    assert run_any(made, stopping_at(3), in_process=True).status == "stopped"
    stopped = Page((location.folder / REPORT).read_text())
    assert location.store.read(REPORT) == (location.folder / REPORT).read_bytes()
    assert REPORT in artifacts(store, "told")
    for words in ("stopped", "Run the job again", "PSNR of the newest validation"):
        assert words in stopped.text
    assert "img" in stopped.tags, "the sheet of the newest validation"
    (run,) = run_list.list_runs(made.storage)
    assert (run.state, run.job, run.total_steps) == ("stopped", "told", 6)
    assert run.step == 3
    assert mirage("watch", location.run_id).status == 143

    assert run_any(made, lambda line: None, in_process=True).status == "finished"
    text = (location.folder / REPORT).read_text()
    finished = Page(text)
    assert location.store.read(REPORT).decode() == text
    for words in ("best linear fit", "models:/told/1", "resumed from checkpoint", small_data.digests[0]):
        assert words in finished.text
    assert "global_batch_size: 6" in finished.text
    assert finished.tags.count("img") == 2, "restored photographs, and what the pipeline drew"
    digest = datasets.evaluated_pipelines(made)["noise35"][:12]
    assert f"Degraded by pipelines (digest of pipeline and seed): noise35 {digest}." in finished.text
    history = read_history(location.store)
    assert history is not None
    assert history.curves["loss/total"].steps == [1, 2, 3, 4, 5, 6], "one curve over both processes"
    assert [process.end for process in history.processes] == ["stopped", "finished"]
    assert [process.first_step for process in history.processes] == [0, 3]

    out = tmp_path / "again.html"
    assert mirage("watch", "told", "--report", out).status == 0
    assert "best linear fit" in Page(out.read_text()).text, "drawn from the store alone"
    watched = mirage("watch", location.uri)
    assert watched.status == 0
    assert "finished" in watched.text
    listed = [json.loads(line) for line in mirage("runs", made.storage, "--json").text.splitlines()]
    assert [(one["run"], one["state"], one["step"]) for one in listed] == [(location.run_id, "finished", 6)]
    shown = mirage("runs", made.storage).text
    assert " dB " in shown
    assert location.run_id in shown
    assert {*location.store.list()} == {*deletion.find(location.store).keys}, "`mirage rm` leaves nothing"


def test_a_failed_run_says_why_in_its_report(job, small_data: Dataset, store: str, monkeypatch) -> None:
    made = job("failing")
    location = locate_run(made, small_data)

    def fail(*_: object) -> None:
        raise StoreError("the <disk> is full")

    monkeypatch.setattr("orchestrator.training.loop.save", fail)
    with pytest.raises(StoreError, match="full"):
        run_any(made, lambda line: None, in_process=True)
    page = Page((location.folder / REPORT).read_text())
    assert "failed: the <disk> is full" in page.text
    assert REPORT in artifacts(store, "failing")
    (run,) = run_list.list_runs(made.storage)
    assert (run.state, run.reason) == ("failed", "the <disk> is full")
    assert {*location.store.list()} == {*deletion.find(location.store).keys}, "`mirage rm` leaves nothing"


def test_a_store_that_refuses_the_record_fails_no_run(job, small_data: Dataset, monkeypatch, caplog) -> None:
    made = job("refused", train={"steps": 2})
    write = LocalStore.write_pointer

    def refuse(self: LocalStore, key: str, data: bytes) -> None:
        if key.startswith("history/"):
            raise StoreError(f"{key} may not be written")
        write(self, key, data)

    monkeypatch.setattr(LocalStore, "write_pointer", refuse)
    assert run_any(made, lambda line: None, in_process=True).status == "finished"
    assert "best linear fit" in (locate_run(made, small_data).folder / REPORT).read_text()
    assert caplog.text.count("is not up to date") == 1, "said once"


def test_a_driver_that_lost_its_run_writes_no_record_over_that_of_the_new_owner(
    job, small_data: Dataset, monkeypatch
) -> None:
    made = job("taken", train={"steps": 2})
    store = locate_run(made, small_data).store
    kept: list[object] = []

    def then_taken_over(self: object) -> None:
        kept.append(read_status(store))
        raise OwnedError("taken over")

    monkeypatch.setattr(ownership.Lease, "check", then_taken_over)
    with pytest.raises(OwnedError):
        run_any(made, lambda line: None, in_process=True)
    assert read_status(store) == kept[0]
    assert not store.exists(REPORT)


def test_a_killed_run_is_lost_and_one_of_an_earlier_version_is_listed_from_what_it_has(
    job, small_data: Dataset
) -> None:
    made = job("gone")
    location = locate_run(made, small_data)
    assert run_any(made, stopping_at(3), in_process=True).status == "stopped"
    store = location.store
    history = read_history(store)
    assert history is not None
    history.state = "training"  # as a process that is killed leaves it
    write_status(store, history.status())
    assert run_list.read_run(location.uri)[0].state == "lost"
    for key in store.list("history/"):
        store.delete(key)
    run, status = run_list.read_run(location.uri)
    assert (run.state, run.step, run.run, status) == ("stopped", 3, location.run_id, None)
    assert run.psnr is not None
    assert run_any(made, lambda line: None, in_process=True).status == "finished"
    for key in store.list("history/"):
        store.delete(key)
    (run,) = run_list.list_runs(made.storage)
    assert (run.state, run.step) == ("finished", 6)
    assert run.psnr is not None
    assert_one_clear_error(mirage("watch", location.uri, "--report", "x.html"), "no record")


def test_listing_reads_a_bounded_number_of_objects_per_run(job, small_data: Dataset, monkeypatch) -> None:
    made = job("cheap", train={"steps": 2})
    run_any(made, lambda line: None, in_process=True)
    store = open_store(f"{made.storage}/runs")
    name = locate_run(made, small_data).run_id
    for number in range(20):
        for key in store.list(f"{name}/"):
            store.write(f"cheap{number}-{name[-10:]}{key.removeprefix(name)}", store.read(key))
    read: list[str] = []
    original = LocalStore.read

    def count(self: LocalStore, key: str) -> bytes:
        read.append(key)
        return original(self, key)

    monkeypatch.setattr(LocalStore, "read", count)
    assert len(run_list.list_runs(made.storage)) == 21
    assert len(read) == 21
    assert set(read) == {"history/status.json"}


def test_runs_and_watch_say_what_to_do_where_there_is_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MIRAGE_HOME", str(tmp_path / "empty"))
    assert_one_clear_error(mirage("runs"), "mirage runs s3://bucket")
    assert_one_clear_error(mirage("watch", "nothing"), "nothing: no run of that name", "mirage runs")
    assert_one_clear_error(mirage("watch", str(tmp_path)), "holds no run")
    assert "no runs in" in mirage("runs", tmp_path).text
