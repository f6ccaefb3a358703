"""Progressive crops, weights and windows as a job states them."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config import crop_stages
from orchestrator.config.loader import load_job
from orchestrator.errors import JobFileError
from orchestrator.planning.plan import make_plan
from shards.errors import MixtureError

DEMO = "jobs/demo.yaml"


@pytest.fixture
def nowhere(tmp_path: Path) -> str:
    return f"storage={tmp_path / 'empty'}"


def test_one_size_is_one_stage():
    job = load_job(DEMO, ["data.crop_pixels=64"])
    (stage,) = crop_stages.stages(job, 1000).stages
    assert stage == (0, 64, job.train.global_batch_size)


def test_a_stage_by_epoch_starts_with_the_first_step_in_it(nowhere):
    job = load_job(
        DEMO,
        [
            nowhere,
            "train.global_batch_size=8",
            "data.crop_pixels=[{from_step: 0, pixels: 64}, {from_epoch: 1.5, pixels: 96, batch: 4}, "
            "{from_epoch: 2, pixels: 128, batch: 2}]",
        ],
    )
    assert crop_stages.stages(job, 80).stages == ((0, 64, 8), (15, 96, 4), (25, 128, 2))
    text = make_plan(job, strict=False).render()
    assert "8 x 64² pixels from step 0, 4 x 96² pixels from step" in text
    with pytest.raises(MixtureError, match="not after the one before it"):
        crop_stages.stages(job, 4)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.crop_pixels=[{from_step: 5, pixels: 64}]"], "first stage must start at step 0"),
        (["data.crop_pixels=[]"], "first stage must start at step 0"),
        (["data.crop_pixels=[{from_step: 0, pixels: 60}]"], "60 is not a multiple of 8"),
        (
            ["data.crop_pixels=[{from_step: 0, pixels: 64}, {pixels: 72}]"],
            "exactly one of from_step and from_epoch",
        ),
        (
            [
                "data.crop_pixels=[{from_step: 0, pixels: 64, batch: 4}]",
                "train={steps: null, epochs: 2}",
                "train.steps=null",
                "train.epochs=2",
            ],
            "Set train.steps",
        ),
        (["data.samples_per_epoch=100"], "data.weights"),
        (["data.weights={rain: 1}"], "must name the same degradations as data.mixture"),
        (["data.shuffle_window=4", "data.sampling=replacement"], "has no meaning with sampling: replacement"),
    ],
)
def test_an_impossible_combination_is_a_problem(overrides: list[str], says: str):
    with pytest.raises(JobFileError, match=says):
        load_job(DEMO, overrides)


def test_a_plan_counts_what_weights_give(nowhere):
    job = load_job(DEMO, [nowhere])
    weights = ", ".join(f"{d}: {n + 1}" for n, d in enumerate(job.data.mixture))
    job = load_job(DEMO, [nowhere, f"data.weights={{{weights}}}", "data.samples_per_epoch=1500"])
    plan = make_plan(job, strict=False)
    assert plan.samples_per_epoch == 1500
    total = sum(range(1, len(job.data.mixture) + 1))
    expected = [1500 * (n + 1) / total for n in range(len(job.data.mixture))]
    assert [entry.per_epoch for entry in plan.mixture.entries] == [pytest.approx(e, abs=1) for e in expected]
