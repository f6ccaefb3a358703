"""An evaluation measures every image once, resumes after a stop, and states what each number depends on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mirage import load, restore
from mirage.metrics import measure
from orchestrator.config.job_schemas import EvaluatedModel, EvaluateJob
from orchestrator.config.pipelines import pipelines_of
from orchestrator.errors import ModelError, OrchestratorError, PlanError
from orchestrator.evaluation import job as evaluation
from orchestrator.evaluation.chunks import Benchmarks, EvaluationWorker
from orchestrator.evaluation.image_results import from_parquet
from orchestrator.evaluation.model_under_test import build_model
from orchestrator.evaluation.summary import read_summary
from orchestrator.imaging.convert import to_float
from orchestrator.registry import registration
from orchestrator.runner import plan_any, run_any
from orchestrator.tracking import background, finished_runs, runs
from orchestrator.tracking.client import connect
from orchestrator.tracking.finished_runs import FinishedRun, SyncedRun
from orchestrator.tracking.uri import resolve_tracking_uri
from shards.dataset import Dataset
from shards.evaluation import EvaluationSet
from tests.claims import assert_unchanged
from tests.orchestrator.evaluation.conftest import MakeEvaluation
from tests.tiny_operators import PIPELINES


class KilledError(Exception):
    """Stands in for the death of the process."""


def run(job: EvaluateJob) -> tuple[list[str], Path]:
    """Run the job in this process; return what it said and the folder of its results."""
    said: list[str] = []
    assert run_any(job, said.append, in_process=True).status == "finished"
    (line,) = (line for line in said if line.startswith("summary.json"))
    return said, Path(line.split()[1]).parent


def test_each_number_is_the_protocols_and_carries_what_it_depends_on(
    evaluation_job: MakeEvaluation, small_data: Dataset, weights: Path
) -> None:
    job = evaluation_job(evaluate={"degradations": ["rain"], "protocols": ["rgb-crop16", "y8"]})
    _, folder = run(job)
    model, expected = load(weights), []
    for item in EvaluationSet(small_data, ["rain"], 0, multiple=1):
        cpu = torch.device("cpu")
        degraded, clean = to_float(item.degraded, cpu), to_float(item.clean, cpu)
        expected.append(float(measure(restore(model, degraded), clean, "y8")["psnr"]))
    summary = read_summary(folder)
    (figure,) = (f for f in summary.figures if (f.protocol, f.metric) == ("y8", "psnr"))
    assert figure.value == pytest.approx(np.mean(expected), abs=1e-9)
    assert min(expected) <= figure.low <= figure.value <= figure.high <= max(expected)
    assert (figure.n, figure.degradation, figure.digest) == (2, "rain", small_data.digests[0])
    assert (figure.recipe, figure.weights, figure.model_digest[:4]) == (
        "fast",
        "EMA",
        summary.model.digest[:4],
    )
    rows = from_parquet((folder / "images.parquet").read_bytes())
    assert {row.protocol for row in rows} == {"rgb-crop16", "y8"}
    assert len(rows) == 4
    assert [row.psnr for row in rows if row.protocol == "y8"] == pytest.approx(expected)


@pytest.mark.usefixtures("tiny_operators")
def test_pipelines_are_evaluated_by_seed_and_id_and_their_digest_stands_beside_the_numbers(
    evaluation_job: MakeEvaluation, small_data: Dataset
) -> None:
    job = evaluation_job(degradations=PIPELINES, evaluate={"degradations": ["noise35", "rain"]}, seed=4)
    said, folder = run(job)
    pipeline = pipelines_of(job)["noise35"]
    digest = pipeline.evaluation_digest(4)
    assert f"pipelines noise35 {digest[:12]}" in "\n".join(said)
    rows = from_parquet((folder / "images.parquet").read_bytes())
    assert {(row.degradation, row.pipeline) for row in rows} == {("noise35", digest), ("rain", "")}
    assert {(f.degradation, f.pipeline, f.noise) for f in read_summary(folder).figures} == {
        ("noise35", digest, ""),
        ("rain", "", ""),
    }
    shown = EvaluationSet(small_data, ["noise35"], 0, pipelines={"noise35": pipeline}, pipeline_seed=4)
    for item in shown:
        (row,) = (row for row in rows if (row.image, row.degradation) == (item.id, "noise35"))
        both = [to_float(image, torch.device("cpu")) for image in (item.degraded, item.clean)]
        assert row.input_psnr == pytest.approx(float(measure(*both, "rgb-crop16")["psnr"]), abs=1e-6)
    others = evaluation_job(
        degradations=PIPELINES | {"noise35": [{"tiny_noise": {"sigma": 36}}]},
        evaluate={"degradations": ["noise35", "rain"]},
        seed=4,
    )
    assert run(others)[1].name != folder.name
    assert {
        name
        for _, name in Benchmarks(evaluation_job(degradations=PIPELINES, evaluate={}), [small_data]).counts()
    } >= set(PIPELINES)


def test_an_evaluation_that_is_finished_is_reported_again_and_changes_nothing(
    evaluation_job: MakeEvaluation, tmp_path: Path
) -> None:
    job = evaluation_job()
    run(job)
    with assert_unchanged(tmp_path / "evaluations"):
        said, _ = run(job)
    assert any("is already finished" in line for line in said)


def test_a_killed_evaluation_continues_with_the_missing_chunks(
    evaluation_job: MakeEvaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = run(evaluation_job(storage=str(tmp_path / "whole")))

    evaluated: list[int] = []

    def die_at_the_third(self: EvaluationWorker, chunk: int) -> object:
        if len(evaluated) == 2:
            raise KilledError
        evaluated.append(chunk)
        return honest(self, chunk)

    honest = EvaluationWorker.evaluate
    job = evaluation_job(storage=str(tmp_path / "killed"))
    with monkeypatch.context() as patch:
        patch.setattr(EvaluationWorker, "evaluate", die_at_the_third)
        with pytest.raises(KilledError):
            run(job)
    said, folder = run(job)
    assert any("continues: 2 of 4 chunks are done" in line for line in said)
    ours, theirs = (from_parquet((f / "images.parquet").read_bytes()) for f in (folder, whole))
    assert [(r.image, r.psnr) for r in ours] == [(r.image, r.psnr) for r in theirs]


def test_an_evaluation_that_exceeds_its_runtime_stops_and_continues_when_submitted_again(
    evaluation_job: MakeEvaluation,
) -> None:
    said: list[str] = []
    ended = run_any(evaluation_job(workers={"max_runtime_hours": 1e-9}), said.append, in_process=True)
    assert (ended.status, ended.step) == ("stopped", 1)
    assert "workers.max_runtime_hours (1e-09) is over" in said
    again, _ = run(evaluation_job())
    assert any("continues: 1 of 4 chunks are done" in line for line in again)


def test_the_run_in_mlflow_holds_figures_and_images(evaluation_job: MakeEvaluation) -> None:
    job = evaluation_job(name="tracked")
    _, folder = run(job)
    uri = resolve_tracking_uri()
    found = runs.find_run(uri, evaluation.EVALUATION_TAG, folder.name, "evaluation")
    assert found is not None
    client = connect(uri)
    entity = client.get_run(found.id)
    assert entity.info.status == "FINISHED"
    assert entity.data.metrics["test/small/rain/rgb-crop16/psnr"] > 0
    assert entity.data.tags["mirage.protocols"] == "rgb-crop16"
    names = {artifact.path for artifact in client.list_artifacts(found.id)}
    assert {"images.parquet", "summary.json", "extremes.png", "report.md", "job.yaml"} <= names
    with Image.open(folder / "extremes.png") as sheet:
        assert sheet.width > 300


def test_an_evaluation_without_mlflow_is_printed_and_sent_later_once(
    evaluation_job: MakeEvaluation, at_home: Path, tmp_path: Path
) -> None:
    (tmp_path / "away").write_text("")
    uri, spool = f"sqlite:///{tmp_path}/away/mlflow.db", at_home / "spool"
    track = {"experiment": "evaluation", "uri": uri}
    said, first = run(evaluation_job(track=track))
    assert any(line.startswith("warning: evaluate-") and "mirage sync" in line for line in said)
    assert [one.problem != "" for one in background.sync_all(uri, spool)] == [True]
    (tmp_path / "away").unlink()
    _, second = run(evaluation_job(track=track, seed=1))
    third = FinishedRun(uri, "evaluation", "third", evaluation.EVALUATION_TAG, {}, {"seed": 2}, {"test": 1.0})
    finished_runs.keep(spool, third, {"job.yaml": b"kind: evaluate"})
    assert [*background.sync_all(uri, spool)] == [SyncedRun("third", 2)]
    for seed, name in enumerate((first.name, second.name, "third")):
        found = runs.find_run(uri, evaluation.EVALUATION_TAG, name, "evaluation")
        assert found is not None
        assert (found.finished, found.params["seed"]) == (True, str(seed))
    client = connect(uri)
    assert len(client.search_runs([client.get_experiment_by_name("evaluation").experiment_id])) == 3
    assert [*background.sync_all(uri, spool)] == []


def test_another_seed_noise_or_model_is_another_evaluation(
    evaluation_job: MakeEvaluation, weights: Path
) -> None:
    job = evaluation_job()
    from orchestrator.data import datasets
    from orchestrator.evaluation.model_under_test import fetch_weights, identify

    def name(job: EvaluateJob) -> str:
        return evaluation.evaluation_id(
            job, datasets.open_benchmarks(job), identify(job.model, fetch_weights(job.model))
        )

    assert name(job) == name(evaluation_job(workers={"max": 4}, track={"experiment": "elsewhere"}))
    others = [
        evaluation_job(seed=1),
        evaluation_job(evaluate={"degradations": ["rain", "noise25"], "noise": "release"}),
        evaluation_job(model={"weights": str(weights), "name": "other"}),
    ]
    assert len({name(one) for one in (job, *others)}) == 4


def test_nothing_named_means_everything_the_test_split_holds(evaluation_job: MakeEvaluation) -> None:
    told = plan_any(evaluation_job(evaluate={}))
    for degradation in ("noise15", "noise25", "noise50", "rain", "haze", "blur", "lowlight"):
        assert degradation in told
    assert "14 images" in told.replace("restores   ", "")


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        (
            {"evaluate": {"degradations": ["snow"]}},
            PlanError,
            "no test image shows snow.*Pack that benchmark",
        ),
        ({"model": {"weights": "nothing.safetensors"}}, OrchestratorError, "nothing.safetensors"),
        ({"model": {"weights": "models:/nobody@candidate"}}, OrchestratorError, "nobody"),
        ({"evaluate": {"lpips": "alex"}}, OrchestratorError, r"pip install 'mirage-orchestrator\[lpips\]'"),
        ({"model": {}}, OrchestratorError, "model.weights.*is missing"),
        ({"model": {"weights": "x", "arguments": {"a": 1}}}, OrchestratorError, "needs model.class"),
    ],
)
def test_what_cannot_be_evaluated_is_one_clear_error(
    evaluation_job: MakeEvaluation, changes: dict[str, object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        run(evaluation_job(**changes))


def test_a_registered_model_is_that_of_the_jobs_own_registry(
    evaluation_job: MakeEvaluation, weights: Path, tmp_path: Path
) -> None:
    elsewhere = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    registration.register(
        elsewhere,
        "elsewhere",
        run_id=runs.start_run(elsewhere, "evaluation", "run", {}, {}),
        weights=weights.read_bytes(),
        card="",
        metrics={},
        tags={},
        idempotency_key="one",
    )
    model = {"weights": "models:/elsewhere@candidate"}
    _, folder = run(evaluation_job(model=model, track={"experiment": "evaluation", "uri": elsewhere}))
    assert read_summary(folder).model.digest == hashlib.sha256(weights.read_bytes()).hexdigest()
    with pytest.raises(OrchestratorError, match="elsewhere"):
        run(evaluation_job(model=model))


NETWORK = """
import torch

class Brighter(torch.nn.Module):
    def __init__(self, start=0.0):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.full((3,), float(start)))

    def forward(self, x):
        assert x.shape[2] % 4 == 0 and x.shape[3] % 4 == 0, "sides are multiples of four"
        return (x + self.bias.view(1, 3, 1, 1), "something else")

def not_a_class(): ...
"""


@pytest.fixture
def own_network(tmp_path: Path) -> Path:
    folder = tmp_path / f"mine_{tmp_path.name.replace('-', '_')}"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "networks.py").write_text(NETWORK)
    return folder


def test_a_class_of_the_users_with_its_own_weights_stands_in_the_same_table(
    evaluation_job: MakeEvaluation, own_network: Path, tmp_path: Path
) -> None:
    torch.save({"state_dict": {"net.bias": torch.zeros(3)}, "epoch": 3}, tmp_path / "own.ckpt")
    model = {
        "class": f"{own_network.name}.networks:Brighter",
        "path": str(own_network.parent),
        "arguments": {"start": 0.25},
        "stride": 4,
    }
    evaluate = {"degradations": ["rain"], "protocols": "rgb"}
    _, folder = run(evaluation_job(model={**model, "weights": str(tmp_path / "own.ckpt")}, evaluate=evaluate))
    figures = {f.metric: f for f in read_summary(folder).figures}
    assert figures["psnr"].value == pytest.approx(figures["input_psnr"].value)  # the weights' bias is zero
    assert (figures["psnr"].model, figures["psnr"].recipe) == ("Brighter", "not stated")
    _, folder = run(evaluation_job(model={**model, "tile": 64}, evaluate=evaluate))
    brighter = {f.metric: f.value for f in read_summary(folder).figures}
    assert brighter["psnr"] < brighter["input_psnr"] - 1


def test_a_class_without_weights_is_the_same_network_in_every_process(own_network: Path) -> None:
    (own_network / "drawn.py").write_text(
        "import torch\nclass Drawn(torch.nn.Conv2d):\n    def __init__(self): super().__init__(3, 3, 1)\n"
    )
    model = EvaluatedModel.model_validate(
        {"class": f"{own_network.name}.drawn:Drawn", "path": str(own_network.parent)}
    )
    before = torch.get_rng_state()
    first, second = (
        build_model(model, b"", torch.device("cpu")).network.module.state_dict() for _ in range(2)
    )
    assert torch.equal(first["inner.weight"], second["inner.weight"])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"class": "MODULE:not_a_class"}, "It has: Brighter"),
        ({"class": "nowhere_at_all:Net"}, "model.path is the folder that holds nowhere_at_all"),
        ({"path": "/nowhere"}, "no such folder"),
        ({"arguments": {"strat": 1}}, "model.arguments do not fit"),
        ({"weights": "WEIGHTS"}, "tensors do not fit the network:\n  bias "),
    ],
)
def test_a_class_that_cannot_be_used_says_why(
    evaluation_job: MakeEvaluation, own_network: Path, weights: Path, change: dict[str, str], says: str
) -> None:
    module = f"{own_network.name}.networks"
    model = {"class": f"{module}:Brighter", "path": str(own_network.parent), **change}
    text = json.dumps(model).replace("MODULE", module).replace("WEIGHTS", str(weights))
    with pytest.raises(ModelError, match=says):
        run(evaluation_job(model=json.loads(text)))
