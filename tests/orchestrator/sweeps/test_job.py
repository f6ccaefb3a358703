"""Real trials, one at a time in this process: trained, stopped, tracked below one parent, registered, exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.config.loader import job_from_mapping, load_job
from orchestrator.config.schema import Job
from orchestrator.maintenance.lineage import trace
from orchestrator.registry import versions
from orchestrator.runner import run_any
from orchestrator.sweeps.event_log import read
from orchestrator.sweeps.lookup import find_sweep
from orchestrator.sweeps.trial_runner import SWEEP_TAG
from orchestrator.sweeps.trial_table import table_of
from orchestrator.tracking import runs
from orchestrator.tracking.client import connect
from orchestrator.tracking.uri import resolve_tracking_uri
from shards.store import open_store
from tests.orchestrator.conftest import SMALL

SWEEP = {
    "space": {"model.dim": {"choice": [6, 8, 12]}, "loss.spd_weight": {"choice": [0.05, 0.01]}},
    "search": {"method": "grid"},
    "constraints": ["parameters <= 0.35M"],
    "steps": 3,
    "trials": 3,
    "winner": {"then": "continue"},
}


@pytest.fixture
def swept(at_home: Path, small_data) -> tuple[Path, list[str]]:
    said: list[str] = []
    values = {
        **SMALL,
        "name": "swept",
        "kind": "sweep",
        "storage": str(at_home.parent / "store"),
        "sweep": SWEEP,
    }
    assert run_any(job_from_mapping(values), said.append, in_process=True).status == "finished"
    return at_home, said


def test_a_sweep_ends_in_a_registered_winner_a_report_and_a_job_file(swept, tmp_path: Path) -> None:
    home, said = swept
    (folder,) = (home / "sweeps").glob("swept-*")
    store = open_store(str(home.parent / "store" / "sweeps" / folder.name))
    table = table_of(read(store))
    assert [trial.values["model.dim"] for trial in table.trials] == [6, 6]
    assert all("Nearest" in one.reason or "not <= 0.35M" in one.reason for one in table.rejected)
    assert [(trial.status, trial.step, trial.length) for trial in table.trials] == 2 * [("finished", 3, 3)]
    best = table.best()
    assert best is not None

    uri = resolve_tracking_uri()
    client = connect(uri)
    parent = runs.find_run(uri, "mirage.sweep_id", folder.name).id
    experiment = client.get_experiment_by_name("tests").experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert len(children) == 2
    for child in children:
        assert child.data.params["sweep.model.dim"] == "6"
        assert {
            "val/psnr",
            "sweep/psnr",
            "sweep/parameters",
            "sweep/macs_224",
            "sweep/device_seconds",
        } <= set(child.data.metrics)
        assert any(name.startswith("val/5deg/haze") for name in child.data.metrics)
    assert client.get_run(parent).info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(parent)} >= {"report.md", "report.html", "job.yaml"}

    version = versions.describe("models:/small@candidate", uri)
    assert version.tags[SWEEP_TAG] == folder.name
    assert version.tags["mirage.run_id"] == best.run
    assert any("alias candidate" in line for line in said)
    assert any("resumed from checkpoint" in line and "at step 3" in line for line in said)
    assert json.loads((home.parent / "store" / "runs" / best.run / "result.json").read_bytes())["step"] == 6

    chain = trace("models:/small@candidate", uri)
    assert chain.holds, chain.render()
    assert f"sweep {folder.name}" in chain.render()

    page = (folder / "report.html").read_text()
    assert best.run in page

    mine = tmp_path / "mine.yaml"
    ran = CliRunner().invoke(app, ["sweep", "export", "swept", "-o", str(mine)])
    assert ran.exit_code == 0, ran.output
    exported = load_job(mine)
    assert isinstance(exported, Job)
    assert exported.name == "mine"
    assert exported.model.dim == best.values["model.dim"]
    assert exported.loss.spd_weight == best.values["loss.spd_weight"]
    assert exported.track.register_as == "small"
    assert mine.read_text().splitlines()[0] == "#!/usr/bin/env -S python -m orchestrator run"
    assert mine.stat().st_mode & 0o111

    made_again = CliRunner().invoke(app, ["sweep", "report", folder.name, "--out", str(tmp_path / "again")])
    assert made_again.exit_code == 0, made_again.output
    assert (tmp_path / "again" / "report.md").read_text() == (folder / "report.md").read_text()

    before = len(read(store))
    again: list[str] = []
    job = find_sweep(str(store.uri)).job
    assert run_any(job, again.append, in_process=True).status == "finished"
    after = read(store)
    assert [event["kind"] for event in after[before:]] == ["submitted"]
    assert any("is finished already" in line for line in again)
    assert yaml.safe_load(store.read(after[-1]["job"]))["kind"] == "sweep"
    assert json.dumps(table.trials[0].curve) == json.dumps(table_of(after).trials[0].curve)


def test_what_the_driver_had_not_written_when_it_died_is_told_by_the_checkpoints(swept) -> None:
    home, _ = swept
    (folder,) = (home.parent / "store" / "sweeps").glob("swept-*")
    events = read(open_store(str(folder)))
    before = table_of(events)
    began = next(i for i, event in enumerate(events) if event["kind"] == "started" and event["number"] == 1)
    for path in sorted((folder / "events").iterdir())[began + 1 :]:
        path.unlink()
    said: list[str] = []
    run_any(find_sweep(str(folder)).job, said.append, in_process=True)
    after = table_of(read(open_store(str(folder))))
    assert [(t.status, t.curve, t.ending) for t in after.trials] == [
        (t.status, t.curve, t.ending) for t in before.trials
    ]
    assert not any(line.startswith("trial 1  step") for line in said)


def test_there_is_no_sweep_of_another_name(at_home: Path) -> None:
    from orchestrator.errors import SweepError

    with pytest.raises(SweepError, match="no sweep of that id"):
        find_sweep("nothing")
    with pytest.raises(SweepError, match="holds no sweep"):
        find_sweep(str(at_home.parent / "nowhere"))
