"""What MLflow shows of a finished run: its datasets, source, description, checkpoints and scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from orchestrator.runner import run_any
from orchestrator.tracking.uri import resolve_tracking_uri


@pytest.fixture(scope="module")
def shown(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Train the small job in this process; return MLflow's client, the run and the job."""
    from tests.orchestrator.conftest import SMALL

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIRAGE_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        from orchestrator.config.loader import job_from_mapping

        store = str(tmp_path_factory.mktemp("shown") / "store")
        track = {**SMALL["track"], "experiment": "shown", "register_as": "shown"}
        job = job_from_mapping({**SMALL, "name": "shown", "storage": store, "seed": 17, "track": track})
        run_any(job, lambda line: None, in_process=True)
        client = MlflowClient(resolve_tracking_uri(None))
        experiment = client.get_experiment_by_name("shown")
        (run,) = client.search_runs([experiment.experiment_id])
        yield client, experiment, run, job


def test_the_experiment_opens_as_model_development(shown) -> None:
    _, experiment, _, _ = shown
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_the_run_names_its_source_its_commit_and_what_it_is(shown) -> None:
    _, _, run, job = shown
    tags = run.data.tags
    assert tags["mlflow.source.name"] == "mirage run, job shown"
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert job.storage in tags["mlflow.note.content"]
    assert "M parameters" in tags["mlflow.note.content"]


def test_each_dataset_of_the_run_is_an_input_with_its_use_its_counts_and_its_uri(shown) -> None:
    _, _, run, job = shown
    inputs = {one.dataset.name: one for one in run.inputs.dataset_inputs}
    assert {
        name: {t.key: t.value for t in one.tags}["mlflow.data.context"] for name, one in inputs.items()
    } == {
        "small": "training",
        "small-validation": "validation",
        "small-evaluation": "evaluation",
    }
    assert json.loads(inputs["small"].dataset.source)["uri"].startswith(job.storage)
    counts = {name: json.loads(one.dataset.profile)["samples_by_degradation"] for name, one in inputs.items()}
    assert counts["small-validation"]["haze"] == job.validation.photographs
    assert counts["small-evaluation"]["haze"] == 2
    digests = {{t.key: t.value for t in one.tags}["mirage.digest"] for one in inputs.values()}
    assert len(digests) == 1
    assert digests.pop()[:36] == inputs["small"].dataset.digest


def test_each_kept_checkpoint_is_a_logged_model_ranked_by_its_validation(shown) -> None:
    client, experiment, run, job = shown
    models = client.search_logged_models(
        [experiment.experiment_id],
        filter_string="model_type = 'checkpoint'",
        order_by=[
            {"field_name": "metrics.average/psnr", "dataset_name": "small-validation", "ascending": False}
        ],
    )
    files = Path(job.storage).rglob("checkpoints/*.json")
    assert sorted(model.tags["mirage.checkpoint"] for model in models) == sorted(map(str, files))
    values = [{m.key: m.value for m in model.metrics}["average/psnr"] for model in models if model.metrics]
    assert values == sorted(values, reverse=True)
    assert len(values) >= 2
    assert {model.source_run_id for model in models} == {run.info.run_id}


def test_pictures_have_the_key_and_the_steps_by_which_mlflows_page_compares_runs(shown) -> None:
    client, _, run, job = shown
    files = [Path(file.path).name for file in client.list_artifacts(run.info.run_id, "images")]
    # MLflow's page reads <key>+step+<step>+timestamp+<time>+<id>.png, and a small ...+compressed.webp beside it.
    pictures = [file.rpartition(".")[0].split("+") for file in files if file.endswith(".png")]
    expected = [str(step) for step in range(3, job.train.steps + 1, job.validation.every_steps)]
    assert sorted((parts[0], parts[1], parts[2]) for parts in pictures) == [
        ("sheet", "step", s) for s in expected
    ]
    small = {file.removesuffix("+compressed.webp") for file in files if file.endswith(".webp")}
    assert small == {"+".join(parts) for parts in pictures}
    assert run.data.tags["mlflow.loggedImages"] == "True"


def test_the_scores_of_the_version_are_metrics_of_its_model_on_the_evaluated_data(shown) -> None:
    client, experiment, run, _ = shown
    (model,) = client.search_logged_models([experiment.experiment_id], filter_string="name = 'shown'")
    found = {metric.key: metric for metric in model.metrics}
    assert found["average/psnr"].value == pytest.approx(run.data.metrics["test/average/psnr"])
    assert found["haze/psnr"].dataset_name == "small-evaluation"


def test_the_registered_model_says_how_it_is_used(shown) -> None:
    client, _, _, _ = shown
    assert "mirage restore" in client.get_registered_model("shown").description
