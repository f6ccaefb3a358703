"""The shipped jobs: each says what it reproduces, has the published arithmetic, and trains on data like its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mirage.weights import loads
from orchestrator.bench import raw_datasets
from orchestrator.config.crop_stages import declared
from orchestrator.config.job_schemas import EvaluateJob
from orchestrator.config.job_types import JobOutcome
from orchestrator.config.loader import load_job
from orchestrator.data import datasets
from orchestrator.models import network
from orchestrator.planning.plan import make_plan
from orchestrator.runner import plan_any
from orchestrator.training.engines.base import Engine
from orchestrator.training.loop import train
from shards.store import LocalStore
from tests.jobs.layouts import pack_all
from tests.orchestrator.training.test_loop import Listener

JOBS = Path("jobs")
ABLATIONS = sorted((JOBS / "ablations").glob("*.yaml"))
PEERS = sorted((JOBS / "peers").glob("*.yaml"))
SETTINGS = [
    JOBS / f"{name}.yaml"
    for name in (
        *("dehaze", "derain", "denoise", "3deg", "5deg"),
        *("cdd11-single", "cdd11-double", "cdd11-triple", "cdd11-all"),
        "allweather",
    )
]
EVALUATIONS = [p for p in sorted((JOBS / "evaluate").glob("*.yaml")) if p.stem not in ("demo", "promptir")]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds every published dataset, small."""
    folder = tmp_path_factory.mktemp("published")
    pack_all(folder / "raw", folder / "store")
    return folder / "store"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRAGE_HOME", str(tmp_path / ".mirage"))


@pytest.mark.parametrize("path", [*SETTINGS, *ABLATIONS, *EVALUATIONS], ids=str)
def test_a_published_job_begins_with_its_table_the_expected_psnr_and_its_command(path: Path) -> None:
    head = "\n".join(line for line in path.read_text().splitlines()[1:5] if line.startswith("#"))
    assert re.search(r"Tables? [0-9B-D]|no table|No table", head)
    assert re.search(r"\d\d\.\d\d dB|\d\d\.\d\d|no dB is known", head)
    assert f"ray job submit --working-dir . -- {path}" in head


def test_there_is_one_file_for_every_setting_of_the_paper() -> None:
    from orchestrator.config.presets import SETTINGS as KNOWN

    assert {load_job(path).setting for path in SETTINGS} == set(KNOWN) - {"own"}
    assert [load_job(path).name for path in SETTINGS] == [path.stem for path in SETTINGS]


@pytest.mark.parametrize(
    ("name", "samples", "steps_per_epoch", "total"),
    [
        ("dehaze", 72_135, 2_254, 120 * 2_254),
        ("derain", 24_000, 750, 120 * 750),
        ("denoise", 46_296, 1_446, 120 * 1_446),
        ("3deg", 142_431, 4_450, 578_500),
        ("5deg", 162_646, 5_082, 762_300),
        ("cdd11-single", 18_928, 591, 170 * 591),
        ("cdd11-double", 23_660, 739, 170 * 739),
        ("cdd11-triple", 9_464, 295, 170 * 295),
        ("cdd11-all", 52_052, 1_626, 170 * 1_626),
        ("allweather", 18_069, 564, 300_000),
    ],
)
def test_plans_have_the_published_samples_and_steps(
    name: str, samples: int, steps_per_epoch: int, total: int, tmp_path: Path
) -> None:
    plan = make_plan(load_job(JOBS / f"{name}.yaml", [f"storage={tmp_path}"]), strict=False)
    assert (plan.samples_per_epoch, plan.steps_per_epoch, plan.total_steps) == (
        samples,
        steps_per_epoch,
        total,
    )


@pytest.mark.parametrize("path", [*SETTINGS, *ABLATIONS, *PEERS], ids=str)
def test_every_crop_fits_into_the_smallest_published_image(path: Path) -> None:
    job = load_job(path)
    smallest = min(min(raw.height, raw.width) for raw in raw_datasets.DATASETS)
    assert max(stage.pixels for stage in declared(job)) <= smallest - smallest % job.data.crop_multiple


def test_the_papers_lengths_are_those_of_its_recipe() -> None:
    assert load_job("jobs/3deg.yaml", ["recipe=paper"]).train.epochs == 120
    assert load_job("jobs/5deg.yaml", ["recipe=paper"]).train.epochs == 130
    assert load_job("jobs/allweather.yaml", ["train.epochs=2"]).train.steps is None


def test_no_rate_of_cdd11_rises_again_at_its_end() -> None:
    from orchestrator.config.schedule import learning_rate

    train = load_job("jobs/cdd11-all.yaml").train
    rates = [learning_rate(train, epoch, 1) for epoch in range(20, 170)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 1e-7


def test_ablations_have_the_counts_that_the_docs_print() -> None:
    docs = Path("docs/model.md").read_text()
    for path in ABLATIONS:
        plan = make_plan(load_job(path, ["storage=nowhere"]), strict=False)
        assert f"| {plan.parameters:,} | {plan.parameters_at_inference:,} | {plan.macs / 1e9:.2f} |" in docs
    assert len(ABLATIONS) == 7


SMALL = (
    *("model.dim=6", "model.blocks=[1, 1, 1, 1]", "model.refinement_blocks=0", "model.heads=[1, 1, 1, 1]"),
    *("train.epochs=null", "train.steps=3", "train.schedule=cosine", "train.global_batch_size=4"),
    *("data.crop_pixels=16", "data.readers=0", "validation.photographs=1", "validation.crop_pixels=32"),
    "workers={min: 1, max: 1, cpus: 1}",
)
"""Each job at a size that trains at once; all that makes it what it is stays."""


@pytest.mark.parametrize("path", [*SETTINGS, *ABLATIONS], ids=lambda path: path.stem)
def test_every_job_trains_and_judges_on_data_laid_out_like_its_own(
    path: Path, packed: Path, tmp_path: Path
) -> None:
    job = load_job(path, [f"storage={packed}", *SMALL])
    dataset = datasets.open_dataset(job)
    datasets.check_holds(dataset, job)
    torch.set_num_threads(1)
    store = LocalStore(tmp_path / "run")
    outcome = train(job, dataset, store, Engine(torch.device("cpu")), Listener(), "test")
    assert outcome == JobOutcome("finished", 3, 3)
    (key,) = store.list("weights/")
    after = loads(store.read(key)).state_dict()
    torch.manual_seed(job.seed)
    before = network.make(job.model).state_dict()
    assert all(tensor.isfinite().all() for tensor in after.values())
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) > 0.9 * len(before)


@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: path.stem)
def test_every_evaluation_finds_what_it_judges(path: Path, packed: Path) -> None:
    job = load_job(path, [f"storage={packed}"])
    assert isinstance(job, EvaluateJob)
    text = plan_any(job)
    for degradation in job.evaluate.degradations:
        assert degradation in text
    for dataset in datasets.open_benchmarks(job):
        assert dataset.manifests[0].counts()["test"]


def test_the_model_of_a_job_is_the_variant_it_names() -> None:
    job = load_job("jobs/3deg.yaml", ["model.variant=small"])
    assert sum(p.numel() for p in network.make(job.model).parameters()) == 9_678_983
