"""A trial of a sweep has in MLflow and in its mirrors what a run of its own would have."""

from __future__ import annotations

from pathlib import Path

from orchestrator.config.loader import job_from_mapping
from orchestrator.config.sweep_schema import SweepJob
from orchestrator.events import CheckpointWritten, Image, Metrics
from orchestrator.sweeps.trial_table import Costs, TrialRow
from orchestrator.sweeps.trial_tracking import TrialTracking
from orchestrator.tracking import runs
from orchestrator.tracking.client import connect
from shards.dataset import Dataset
from tests.claims import encoded, noise_image


def test_a_trial_has_mirrors_pictures_and_logged_models(
    store: str, small_job, small_data: Dataset, at_home: Path
) -> None:
    values = small_job(name="search", track={"also": ["tensorboard"]}).model_dump(mode="json")
    space = {"loss.spd_weight": {"log_range": [0.001, 0.1], "points": 3}}
    job = job_from_mapping({**values, "kind": "sweep", "sweep": {"space": space}})
    assert isinstance(job, SweepJob)
    parent = runs.start_run(store, "tests", "search", {}, {})
    tracking = TrialTracking(job, "search-1", parent, store, small_data, lambda line: None)
    row = TrialRow(0, {"loss.spd_weight": 0.01}, "", Costs(1, 1, 1, 1))
    started = tracking.start(row)
    kept = {"000003-abc": {"val/average/psnr": 20.0}}
    sent = [
        Metrics(3, {"loss/total": 0.5}),
        Image("sheet", encoded(noise_image()), 3),
        CheckpointWritten(3, "000003-abc", kept),
    ]
    tracking.emit(0, sent)
    tracking.end(row, "finished", 2.0)

    client = connect(store)
    run = client.get_run(started.tracked)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["loss/total"] == 0.5
    assert run.data.metrics["sweep/wall_seconds"] == 2.0
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {"images", "job.yaml", "plan.txt"}
    found = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    (model,) = found
    assert [(metric.key, metric.value) for metric in model.metrics] == [("average/psnr", 20.0)]
    assert list((at_home / "runs" / started.run / "tensorboard").glob("events.*"))
