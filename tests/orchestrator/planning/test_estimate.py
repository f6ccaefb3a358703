"""What a job takes: the arithmetic by hand, earlier runs before guesses, and every shape within the job's rules."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from mirage import ModelConfig
from mirage.cost import macs
from mirage.memory import activation_bytes, cast_bytes
from orchestrator.config.loader import load_job, overrides_from
from orchestrator.config.schedule import learning_rate
from orchestrator.config.schema import Job
from orchestrator.errors import JobFileError, PlanError
from orchestrator.planning import throughput
from orchestrator.planning.cluster_shapes import compare, shapes
from orchestrator.planning.estimate import (
    ASSUMED_NETWORK,
    GIB,
    ComputeRate,
    checkpoint_bytes,
    egress,
    estimate,
    memory,
    rate_of,
    step_seconds,
)
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.planning.throughput import StepTimer, Throughput
from orchestrator.runner import plan_shapes, run_any

ON_CPUS = ("workers={min: 1, max: 4, cpus: 2, gpus: 0}", "data.readers=0")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRAGE_HOME", str(tmp_path / ".mirage"))


def planned(tmp_path: Path, *overrides: str) -> Plan:
    return make_plan(load_job("jobs/5deg.yaml", [f"storage={tmp_path}", *overrides]), strict=False)


def test_a_stated_rate_gives_hours_and_cost_by_hand(tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        *("workers.images_per_second=100", "workers.max=1", "prices={worker_hour: 2, head_hour: 0.5}"),
    )
    (one,) = plan.estimates
    assert one.hours == pytest.approx(762_300 * 32 / 100 / 3600)
    assert one.cost == pytest.approx(one.hours * 2.5)
    text = plan.render()
    assert f"USD {one.cost:,.2f} on 1 worker" in text
    assert "roughly" not in text


def test_without_prices_or_runs_a_plan_states_its_assumptions(tmp_path: Path) -> None:
    text = planned(tmp_path).render()
    assert "time       roughly" in text
    assert "an assumed H100, not measured: bound by " in text
    assert "cost       unknown" in text
    assert "per core (docs/benchmarks.md)" in planned(tmp_path, *ON_CPUS).render()


@pytest.mark.parametrize(
    ("overrides", "bound"),
    [
        (["train.global_batch_size=2", "data.readers=64", "workers.gpu_model=H200"], "kernel launches"),
        (["train.global_batch_size=256", "data.readers=64", "workers.gpu_model=L4"], "memory traffic"),
        (["data.readers=1", "workers.gpu_model=H200", "train.precision=bf16"], "data loading"),
    ],
)
def test_a_plan_names_what_bounds_an_unmeasured_gpu(tmp_path: Path, overrides: list[str], bound: str) -> None:
    plan = planned(tmp_path, "workers={min: 1, max: 1, gpus: 1}", *overrides)
    assert f"bound by {bound} (" in plan.render()


def test_memory_is_the_models_and_smaller_on_more_workers(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    config = ModelConfig.tiny()
    one, eight = (memory(plan.job, n) for n in (1, 8))
    assert one.weights == one.gradients == 4 * 6_207_412
    assert one.optimizer == 8 * 6_207_412
    assert one.activations > 32 * activation_bytes(config, 128, 128)
    assert eight.activations == pytest.approx(one.activations / 8)
    plan = planned(tmp_path, "engine={name: deepspeed, zero_stage: 3}", "train.ema_decay=0.9")
    shared = memory(plan.job, 4)
    assert (shared.weights, shared.optimizer) == (6_207_412, 2 * 6_207_412)
    assert shared.ema == 4 * 6_207_412


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    [(0, 4, 4, 8), (1, 4, 4, 2), (2, 4, 1, 2), (3, 1, 1, 2)],
)
def test_each_zero_stage_splits_one_more_part_over_the_workers(
    tmp_path: Path, stage: int, weights: int, gradients: int, optimizer: int
) -> None:
    plan = planned(tmp_path, f"engine={{name: deepspeed, zero_stage: {stage}}}")
    held = memory(plan.job, 4)  # in bytes of each parameter
    found = (held.weights, held.gradients, held.optimizer)
    assert found == tuple(6_207_412 * each for each in (weights, gradients, optimizer))


def test_a_lower_precision_keeps_copies_of_the_weights_beside_what_the_images_take(tmp_path: Path) -> None:
    def kept(images: int, precision: str) -> int:
        batch = f"train={{global_batch_size: {images}, precision: {precision}}}"
        return memory(planned(tmp_path, batch).job, 1).activations

    of_no_image = [2 * kept(8, precision) - kept(16, precision) for precision in ("fp32", "bf16")]
    assert of_no_image[0] == 0
    assert of_no_image[1] == cast_bytes(ModelConfig.tiny(), "bf16") > 0


def test_the_printed_memory_is_the_sum_of_the_estimate(tmp_path: Path) -> None:
    plan = planned(tmp_path, "workers={min: 1, max: 8}")
    few, many = (each.memory for each in plan.estimates)
    state = few.weights + few.gradients + few.optimizer + few.ema
    line = next(line for line in plan.render().splitlines() if line.startswith("memory"))
    assert f" {few.total / GIB:.2f} GiB per worker with 1 worker, {many.total / GIB:.2f} with 8: " in line
    assert f": {state / GIB:.2f} weights" in line
    assert f", {few.activations / GIB:.2f} activations" in line
    assert few.total == state + few.activations


def test_a_price_is_told_in_its_currency_for_each_number_of_workers_and_its_absence_too(
    tmp_path: Path,
) -> None:
    costs = "prices={worker_hour: 2, currency: EUR}"
    plan = planned(tmp_path, "workers={min: 1, max: 8}", costs)
    few, many = (each.cost for each in plan.estimates)
    assert f"EUR {few:,.2f} on 1 worker, EUR {many:,.2f} on 8 workers" in plan.render()
    assert "no price" not in plan.render()


def test_a_worker_that_is_too_small_is_warned_of_before_it_starts(tmp_path: Path) -> None:
    assert any("--shapes" in text for text in planned(tmp_path, "workers.memory_gib=8").warnings)
    assert not any("--shapes" in text for text in planned(tmp_path, "workers.memory_gib=80").warnings)


def measured(job: Job, seconds: float, workers: int = 1) -> tuple[Job, Throughput]:
    return job, Throughput(seconds, 100, workers, "CPU")


def test_earlier_runs_come_before_guesses_and_scale_with_the_work(tmp_path: Path) -> None:
    small = planned(tmp_path, *ON_CPUS, "workers.max=1")
    records = [measured(small.job, seconds) for seconds in (7.0, 8.0, 30.0)]
    rate = rate_of(small.job, small.stages, records)
    assert rate.measured
    assert "3 earlier runs on CPU" in rate.source
    again = estimate(small.job, small.stages, small.total_steps, 1, rate)
    assert again.step_seconds == pytest.approx(8.0)
    large = planned(tmp_path, *ON_CPUS, "workers.max=1", "model.variant=small")
    ratio = macs(ModelConfig.small(), 128, 128) / macs(ModelConfig.tiny(), 128, 128)
    took = estimate(large.job, large.stages, large.total_steps, 1, rate_of(large.job, large.stages, records))
    assert took.step_seconds == pytest.approx(8.0 * ratio)


def test_a_run_on_two_workers_predicts_itself(tmp_path: Path) -> None:
    plan = planned(tmp_path, *ON_CPUS)
    rate = rate_of(plan.job, plan.stages, [measured(plan.job, 5.0, workers=2)])
    assert estimate(plan.job, plan.stages, plan.total_steps, 2, rate).step_seconds == pytest.approx(5.0)


@pytest.mark.parametrize("other", ["train.precision=bf16", "workers.gpus=0", "train.compile=blocks"])
def test_runs_of_another_kind_are_not_used(other: str, tmp_path: Path) -> None:
    plan = planned(tmp_path, "recipe=fast", "train.precision=fp32")
    foreign = planned(tmp_path, "recipe=fast", "train.precision=fp32", other)
    assert not rate_of(plan.job, plan.stages, [measured(foreign.job, 1.0)]).measured


def test_workers_are_assumed_to_talk_at_50_microseconds_and_25_gbit_per_second() -> None:
    assert ASSUMED_NETWORK.ring(1e9, 2) == pytest.approx(2 * 50e-6 + 1e9 / (25e9 / 8))


def test_a_node_reads_the_data_once_if_its_cache_holds_them_and_in_each_epoch_otherwise(
    tmp_path: Path,
) -> None:
    job = planned(tmp_path, "data.cache_gib=2").job
    assert egress(job, 2 * GIB, epochs=10, workers=3) == 3 * 2 * GIB
    assert egress(job, 2 * GIB + 1, epochs=10, workers=3) == 10 * 3 * (2 * GIB + 1)
    assert egress(job, 2 * GIB + 1, epochs=0.1, workers=3) == 3 * (2 * GIB + 1)


def test_each_crop_stage_has_its_own_time(tmp_path: Path) -> None:
    stages = "data.crop_pixels=[{from_step: 0, pixels: 64}, {from_step: 60, pixels: 128, batch: 8}]"
    plan = planned(
        tmp_path, *ON_CPUS, "train={epochs: null, steps: 100, schedule: cosine}", stages, "workers.max=1"
    )
    took = estimate(plan.job, plan.stages, 100, 1, ComputeRate(1e9, "", measured=True))
    small, large = (3 * macs(ModelConfig.tiny(), side, side) / 1e9 for side in (64, 128))
    assert took.hours * 3600 == pytest.approx(60 * 32 * small + 40 * 8 * large)


def test_shapes_are_sorted_by_cost_and_keep_the_jobs_rules(tmp_path: Path) -> None:
    plan = planned(tmp_path, "prices.worker_hour=2", "workers.memory_gib=10")
    rows = compare(plan.job, plan.stages, plan.total_steps, plan.records)
    costs = [took.cost for _, took in rows]
    assert costs == sorted(costs)
    assert {took.workers for _, took in rows} == {1, 2, 4, 8, 16, 32}
    assert {shape.train.precision for shape, _ in rows} == {"fp32", "bf16"}
    assert {shape.engine.zero_stage for shape, _ in rows if shape.engine.name == "deepspeed"} == {1, 2, 3}
    assert {shape.train.activation_checkpointing for shape, _ in rows} == {"none", "full_resolution", "all"}
    assert max(took.memory.total for _, took in rows) <= 10 * GIB
    assert all(one.train.micro_batches == plan.job.train.micro_batches for one, _ in rows)
    text = plan_shapes(load_job("jobs/5deg.yaml", [f"storage={tmp_path}", "prices.worker_hour=2"]))
    assert "USD" in text.splitlines()[0]
    assert "more expensive shapes" in text


def test_recomputation_costs_time_and_saves_memory_in_every_pair_of_shapes(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    rows = compare(plan.job, plan.stages, plan.total_steps, ())
    found = {(t.workers, s.train.precision, s.engine, s.train.activation_checkpointing): t for s, t in rows}
    recomputed = {tuple(shape): took for (*shape, kind), took in found.items() if kind == "all"}
    assert recomputed
    for shape, took in recomputed.items():
        plain = found[*shape, "none"]
        assert took.hours > plain.hours
        assert took.memory.total < plain.memory.total


def test_where_nothing_fits_the_table_says_what_to_change(tmp_path: Path) -> None:
    job = load_job("jobs/5deg.yaml", [f"storage={tmp_path}", "workers.memory_gib=0.03"])
    assert "no shape fits into workers.memory_gib (0.03)" in plan_shapes(job)


def test_more_workers_than_images_are_refused_by_job_and_shapes(tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match="64 workers cannot share a micro-batch of 32"):
        load_job("jobs/5deg.yaml", ["workers.max=64"])
    plan = planned(tmp_path, "train.micro_batches=4")
    assert max(workers for _, workers in shapes(plan.job)) == 8


def test_jobs_that_train_no_mirage_have_no_shapes() -> None:
    with pytest.raises(PlanError, match="kind evaluate"):
        plan_shapes(load_job("jobs/evaluate/5deg.yaml"))


def test_prices_come_from_a_file_beside_the_cluster(tmp_path: Path) -> None:
    assert overrides_from(Path("jobs/clusters/prices.yaml"), "prices") == ['prices.currency="USD"']
    path = tmp_path / "prices.yaml"
    path.write_text("currency: EUR\nworker_hour: 1.5\negress_gib: null\n")
    job = load_job("jobs/5deg.yaml", overrides_from(path, "prices"))
    assert (job.prices.currency, job.prices.worker_hour, job.prices.egress_gib) == ("EUR", 1.5, None)
    path.write_text("worker_hours: 1.5\n")
    with pytest.raises(JobFileError, match='Did you mean "worker_hour"'):
        load_job("jobs/5deg.yaml", overrides_from(path, "prices"))


@pytest.mark.parametrize(("rule", "factor"), [("fixed", 1), ("linear", 16), ("sqrt", 4)])
def test_a_larger_batch_has_the_rate_that_its_rule_names(rule: str, factor: float) -> None:
    plain = load_job("jobs/5deg.yaml").train
    ruled = load_job("jobs/5deg.yaml", ["train.global_batch_size=512", f"train.lr_scaling={rule}"]).train
    assert learning_rate(ruled, 50, 1) == pytest.approx(factor * learning_rate(plain, 50, 1))


def test_a_finished_run_leaves_its_pace_for_the_next_plan(small_job) -> None:
    job = small_job(name="paced", track={"register_as": None}, example=None, seed=11)
    job = job.model_copy(update={"train": job.train.model_copy(update={"steps": 8})})
    assert throughput.earlier_runs(job) == []
    run_any(job, lambda line: None, in_process=True)
    ((kept, found),) = [(other, one) for other, one in throughput.earlier_runs(job) if one.steps == 7]
    assert (found.workers, found.device) == (1, "CPU")
    assert kept.model == job.model
    plan = make_plan(job, strict=True)
    (took,) = plan.estimates
    assert took.step_seconds == pytest.approx(found.seconds_per_step)
    assert "1 earlier run on CPU" in plan.render()
    assert "GiB of shards" in plan.render()


def test_a_record_of_another_schema_is_passed_over(small_job, small_data) -> None:
    job = small_job()
    folder = Path(job.storage) / "timings"
    folder.mkdir()
    (folder / "old.json").write_text(json.dumps({"job": {"train": {"gone": 1}}, "pace": {}}))
    assert throughput.earlier_runs(job) == []


def test_a_clock_wants_some_steps_and_takes_their_median(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def clocked(ends: Sequence[float]) -> Throughput | None:
        clock, left = StepTimer(), iter(ends)
        monkeypatch.setattr(throughput.time, "monotonic", lambda: next(left))
        for _ in ends:
            clock.step_ended()
        return clock.throughput(1, torch.device("cpu"))

    assert clocked([0, 1, 2]) is None
    found = clocked([0, 1, 2, 3, 60, 61, 62])
    assert found is not None
    assert found.seconds_per_step == 1


def test_planning_imports_neither_ray_nor_mlflow() -> None:
    code = (
        "import sys; from orchestrator.cli import main; sys.argv = ['mirage', 'plan', 'jobs/5deg.yaml', '--shapes'];\n"
        "try: main()\nfinally: print([m for m in ('ray', 'mlflow', 'deepspeed') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip().endswith("[]"), done.stderr
    assert "more expensive shapes" in done.stdout


def test_zero_stage_3_sends_half_as_much_again_as_the_gradients(tmp_path: Path) -> None:
    def times(engine: str) -> tuple[float, float]:
        plan = planned(tmp_path, f"engine={engine}")
        return step_seconds(plan.job, plan.stages.stages[0], 4, ComputeRate(1e12, "", True))

    step, communication = times("{name: ddp}")
    assert times("{name: deepspeed, zero_stage: 2}") == (step, communication)
    gradients = ASSUMED_NETWORK.all_reduce(4 * 6_207_412, 4)
    step_3, communication_3 = times("{name: deepspeed, zero_stage: 3}")
    assert communication_3 - communication == pytest.approx(0.5 * gradients)
    assert step_3 - step == pytest.approx(0.5 * gradients)


def test_a_checkpoint_holds_weights_moments_and_ema_of_four_bytes(tmp_path: Path) -> None:
    one = 4 * 6_207_412
    assert checkpoint_bytes(planned(tmp_path, "train.ema_decay=0.999").job) == one * (1 + 2 + 1)
    assert checkpoint_bytes(planned(tmp_path, "train.ema_decay=null").job) == one * (1 + 2)
