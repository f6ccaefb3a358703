"""What `mirage plan` says of the published settings, without their data."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from orchestrator.config.loader import load_job
from orchestrator.config.schema import Job
from orchestrator.data import datasets
from orchestrator.errors import OrchestratorError
from orchestrator.planning import throughput
from orchestrator.planning.plan import make_plan
from shards.dataset import Dataset
from shards.errors import ShardsError, UnreachableStoreError


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("MIRAGE_HOME", str(tmp_path / ".mirage"))
    return f"storage={tmp_path / 'empty'}"


def test_plan_of_five_degradations_is_the_published_arithmetic(nowhere) -> None:
    plan = make_plan(load_job("jobs/5deg.yaml", [nowhere]), strict=False)
    assert plan.parameters == 6_207_412
    assert plan.parameters_at_inference == 6_158_576
    assert f"{plan.macs / 1e9:.2f}" == "16.25"
    assert plan.samples_per_epoch == 162_646
    assert plan.steps_per_epoch == 5_082
    assert plan.total_steps == 762_300
    text = plan.render()
    assert "samples of 128² pixels, " in text
    assert "no gradient accumulation" in text
    assert all(part in text for part in ("6,207,412", "16.25 GMACs", "162,646", "5,082", "warning:"))


def test_a_plan_says_how_a_batch_is_accumulated(nowhere) -> None:
    text = make_plan(load_job("jobs/5deg.yaml", [nowhere, "train.micro_batches=2"]), strict=False).render()
    assert "2 micro-batches of 16" in text


def test_a_store_out_of_reach_is_a_warning_and_is_not_asked_again(nowhere, monkeypatch) -> None:
    def out_of_reach(job: Job) -> Dataset:
        raise UnreachableStoreError("the store did not answer.")

    asked: list[Job] = []
    monkeypatch.setattr(datasets, "open_dataset", out_of_reach)
    monkeypatch.setattr(throughput, "earlier_runs", lambda job: asked.append(job) or [])
    plan = make_plan(load_job("jobs/5deg.yaml", [nowhere]), strict=False)
    assert any("the store did not answer" in warning for warning in plan.warnings)
    assert asked == []


def test_small_variant_has_its_published_counts(nowhere) -> None:
    plan = make_plan(load_job("jobs/5deg.yaml", [nowhere, "model.variant=small"]), strict=False)
    assert plan.parameters == 9_678_983
    assert f"{plan.macs / 1e9:.2f}" == "26.68"


def test_the_plan_lists_each_crop_stage(nowhere) -> None:
    stages = "data.crop_pixels=[{from_step: 0, pixels: 64}, {from_step: 1000, pixels: 128, batch: 8}]"
    steps = "train={epochs: null, steps: 2000, schedule: cosine}"
    text = make_plan(load_job("jobs/5deg.yaml", [nowhere, stages, steps]), strict=False).render()
    assert "samples of 32 x 64² pixels from step 0, 8 x 128² pixels from step 1,000, " in text


def test_three_degradations_have_their_epoch(nowhere) -> None:
    plan = make_plan(load_job("jobs/5deg.yaml", [nowhere, "setting=3deg"]), strict=False)
    assert (plan.samples_per_epoch, plan.steps_per_epoch) == (142_431, 4_450)


def test_data_out_of_reach_is_an_error_for_a_run(nowhere) -> None:
    with pytest.raises((ShardsError, OrchestratorError), match="bsd400-wed"):
        make_plan(load_job("jobs/5deg.yaml", [nowhere]), strict=True)


def test_a_job_that_packs_plans_with_what_it_will_pack(nowhere) -> None:
    plan = make_plan(load_job("jobs/demo.yaml", [nowhere]), strict=False)
    assert plan.counts_source == "to be packed"
    assert not plan.warnings
    assert min(entry.count for entry in plan.mixture.entries) > 0


def test_a_weight_for_an_alignment_that_is_not_there_is_refused() -> None:
    with pytest.raises(OrchestratorError, match=r"loss.spd_weight.*nothing to align. Set it to 0"):
        load_job("jobs/5deg.yaml", ["model.alignment=none"])
    assert load_job("jobs/5deg.yaml", ["model.alignment=none", "loss.spd_weight=0"]).loss.spd_weight == 0


@pytest.mark.parametrize("name", ["blind", "5deg-synthetic"])
def test_a_plan_says_what_readers_must_deliver_and_what_pipelines_cost(nowhere, tmp_path, name: str) -> None:
    for number in range(50):
        Image.new("RGB", (160, 160), (number, 0, 0)).save(tmp_path / f"{number}.png")
    overrides = [nowhere, f"data.pack.root={tmp_path}", "workers.max=1", "train.steps=1000"]
    job = load_job(f"jobs/{name}.yaml", [*overrides, "workers.images_per_second=64"])
    text = make_plan(job, strict=False).render()
    (line,) = (line for line in text.splitlines() if line.startswith("readers "))
    assert "64.0 crops a second for each worker, from 8 readers, 8.0 each" in line
    used = set(job.degradations) & set(job.data.mixture)
    assert used, "the job has pipelines"
    assert all(f"{one} " in line for one in used)
    (clean,) = {part.split(" x ")[0].split()[-1] for part in text.splitlines() if " x 1 " in part}
    assert clean == "49"
    faster = load_job(f"jobs/{name}.yaml", [*overrides, "workers.images_per_second=1000000"])
    assert any("pipelines need about" in warning for warning in make_plan(faster, strict=False).warnings)


def test_a_plan_without_pipelines_says_what_readers_must_deliver(nowhere) -> None:
    job = load_job("jobs/5deg.yaml", [nowhere, "workers.max=1", "workers.images_per_second=64"])
    assert (
        "64.0 crops a second for each worker, from 8 readers, 8.0 each"
        in make_plan(job, strict=False).render()
    )


def test_epochs_and_batches_are_those_of_the_stages_that_the_run_reaches() -> None:
    stages = "data.crop_pixels=[{from_step: 0, pixels: 64}, {from_step: 20, pixels: 128, batch: 2}]"

    def lines(steps: int) -> str:
        job = load_job(Path("jobs/demo.yaml"), [stages, f"train.steps={steps}", "workers.max=2"])
        plan = make_plan(job, strict=False)
        used = plan.steps_per_epoch * 8
        assert plan.epochs == pytest.approx((8 * min(steps, 20) + 2 * max(0, steps - 20)) / used)
        return plan.render()

    assert "batch      8, then 2 images" in lines(30)
    assert "7, then 1 SPD negatives" in lines(30)
    assert "batch      8 images" in lines(20)
    assert "128²" not in lines(20)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["train.schedule=cosine"], "schedule cosine\n"),
        (["train.schedule=cosine", "train.minimum_rate=1e-6"], "schedule cosine to 1e-06\n"),
        (
            [
                "train={schedule: multistep, epochs: null, steps: 3000, milestones: [100, 2000], rate_factor: 0.25}"
            ],
            "schedule multistep: x 0.25 at steps 100, 2,000\n",
        ),
        (
            ["train={schedule: plateau, rate_factor: 0.25, patience: 4, warmup_steps: 0}"],
            "schedule plateau: x 0.25 after 5 validations without a higher val/psnr\n",
        ),
        (
            [
                "train={schedule: restarts, epochs: null, steps: 3000, warmup_steps: 0, "
                "cycles: [{steps: 1000}, {steps: 2000, weight: 0.5, minimum_rate: 1e-6}]}"
            ],
            "schedule restarts: 1,000 steps at 1 to 0, 2,000 steps at 0.5 to 1e-06\n",
        ),
        (["engine.name=ddp"], "engine     ddp\n"),
        (["engine={name: deepspeed, zero_stage: 2}"], "engine     deepspeed, ZeRO stage 2\n"),
        (["workers={min: 1, max: 1, gpus: 1}"], "over 1 worker of 1 GPU each"),
        (["workers={min: 1, max: 2, gpus: 0, cpus: 3}"], "over 1 to 2 workers of 3 CPU each"),
    ],
)
def test_a_plan_says_schedule_engine_and_workers_as_the_job_gives_them(
    nowhere, overrides: list[str], says: str
) -> None:
    assert says in make_plan(load_job("jobs/5deg.yaml", [nowhere, *overrides]), strict=False).render()
