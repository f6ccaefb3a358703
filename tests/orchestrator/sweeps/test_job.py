"""Sweeps are found by name or folder, need Ray, and are still readable if they were begun before Ray Tune."""

from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.config.identity import sweep_id
from orchestrator.config.loader import load_job
from orchestrator.config.schema import Job
from orchestrator.config.sweep_schema import SweepJob
from orchestrator.errors import OwnedError, PlanError, SweepError
from orchestrator.ownership import Owner, newest_claim, next_claim, owned
from orchestrator.runner import run_any
from orchestrator.sweeps import job as sweeps_job
from orchestrator.sweeps.event_log import EventLog
from orchestrator.sweeps.event_schema import Exhausted
from orchestrator.sweeps.lookup import find_sweep
from shards.dataset import Dataset
from shards.store import LocalStore, Store


def test_a_sweep_in_process_is_refused_in_one_line(make_sweep) -> None:
    with pytest.raises(PlanError, match="leave out --in-process") as caught:
        run_any(make_sweep(), print, in_process=True)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named_before_anything_is_packed(make_sweep, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MIRAGE_HOME", str(tmp_path / "home"))
    job = make_sweep(
        {"storage": str(tmp_path / "store")},
        search={"method": "bayesopt"},
        space={"loss.spd_weight": {"range": [0, 1]}},
    )
    with pytest.raises(SweepError, match="pip install bayesian-optimization"):
        run_any(job, print)
    assert not (tmp_path / "store").exists()


def test_there_is_no_sweep_of_another_name(at_home: Path) -> None:
    with pytest.raises(SweepError, match="no sweep with that id"):
        find_sweep("nothing")
    with pytest.raises(SweepError, match="contains no sweep"):
        find_sweep(str(at_home.parent / "nowhere"))


@pytest.fixture
def old_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a sweep that commit 7ac88b9, from before Ray Tune, wrote: four trials, one of them failed."""
    monkeypatch.setenv("MIRAGE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "sweeps" / "mine-0123456789"
    stored = json.loads(Path(__file__).with_name("before_ray_tune.json").read_text())
    for key, content in stored.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_text(content)
    return folder


def test_a_sweep_from_before_ray_tune_is_reported(old_sweep, tmp_path) -> None:
    out = tmp_path / "report"
    ran = CliRunner().invoke(app, ["sweep", "report", str(old_sweep), "--out", str(out)])
    assert ran.exit_code == 0, ran.output
    text = (out / "report.md").read_text()
    assert "4 trials: 3 finished, 0 stopped early, 1 failed" in text
    assert "the loss is not finite" in text
    assert "Best: trial 3 with 23.078 dB" in text


def test_a_sweep_from_before_ray_tune_is_exported(old_sweep, tmp_path) -> None:
    mine = tmp_path / "mine.yaml"
    ran = CliRunner().invoke(app, ["sweep", "export", str(old_sweep), "-o", str(mine)])
    assert ran.exit_code == 0, ran.output
    exported, best = load_job(mine), json.loads((old_sweep / "events" / "000000.json").read_text())
    assert best["kind"] == "submitted"
    assert isinstance(exported, Job)
    assert exported.name == "mine"
    assert exported.model.dim == 12
    assert mine.read_text().splitlines()[0] == "#!/usr/bin/env -S python -m orchestrator run"
    assert mine.stat().st_mode & 0o111


def test_a_sweep_from_before_ray_tune_is_not_continued_and_the_error_says_what_works(old_sweep) -> None:
    with pytest.raises(SweepError, match="older version") as caught:
        EventLog(LocalStore(old_sweep))
    assert "mirage sweep report" in str(caught.value)


@pytest.fixture
def real_sweep(make_sweep, small_job, small_data, store):
    """A sweep on the small dataset, with MLflow in a database that exists."""
    job = small_job()
    sections = {name: job.model_dump(mode="json")[name] for name in ("data", "storage", "validation")}
    return make_sweep({**sections, "track": {"experiment": "sweeps", "uri": store}}, winner={"then": "none"})


def sweep_folder(job: SweepJob, data: Dataset) -> Store:
    return sweeps_job.sweep_store(job, sweep_id(job, data))


def test_a_second_driver_of_a_sweep_hears_who_owns_it_and_records_nothing(real_sweep, small_data) -> None:
    folder = sweep_folder(real_sweep, small_data)
    with (
        owned(folder, "sweep", print),
        pytest.raises(OwnedError, match=rf"sweep mine-.* belongs to process {os.getpid()}"),
    ):
        run_any(real_sweep, lambda line: None)
    assert [key for key in folder.list() if not key.startswith("owner/")] == []


def test_a_driver_whose_sweep_was_taken_over_records_no_event(tmp_path) -> None:
    store = LocalStore(tmp_path)
    with owned(store, "sweep s", print) as lease:
        log = EventLog(store, print, lease.check)
        log.submit(b"job", code="", data=[])
        store.write_pointer(next_claim(store), replace(Owner.here(), renewed=1).to_json())
        with pytest.raises(OwnedError, match="taken over"):
            log.add(Exhausted("no more"))
    assert store.list("events/") == ["events/000000.json"]


@pytest.mark.parametrize("taken_over", [False, True])
def test_a_sweep_that_ends_without_its_winner_is_free_for_the_next_driver(
    real_sweep, small_data, monkeypatch, taken_over
) -> None:
    """A stop, or a successor: what the search itself does is tested on real clusters."""
    folder = sweep_folder(real_sweep, small_data)

    def search(tracking: object, log: EventLog, stop: threading.Event) -> bool:
        # `mirage sweep report NAME` finds a sweep on this machine by this folder, also while it runs.
        assert sweeps_job.report_folder(sweep_id(real_sweep, small_data)).is_dir()
        if taken_over:
            folder.write_pointer(next_claim(folder), replace(Owner.here(), renewed=1).to_json())
            return True
        os.kill(os.getpid(), signal.SIGHUP)
        raise AssertionError("it is stopped before")

    monkeypatch.setattr(sweeps_job, "_search", search)
    if taken_over:
        with pytest.raises(OwnedError, match="taken over"):
            run_any(real_sweep, lambda line: None)
        for key in folder.list("owner/"):  # else this process seems to work in this storage until it ends
            folder.delete(key)
        return
    assert run_any(real_sweep, lambda line: None).status == "stopped"
    assert Owner.from_json(folder.read_pointer(newest_claim(folder)) or b"").released
