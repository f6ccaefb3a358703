"""Shapes of a cluster for one job, sorted by what they cost: workers, precision, engine, recomputation."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from orchestrator.config import crop_stages, validation
from orchestrator.config.schema import EngineChoice, Job
from orchestrator.planning.estimate import GIB, ComputeRate, Estimate, Records, estimate, rate_of
from orchestrator.planning.plan import Plan
from shards.crop_schedule import CropSchedule

_WORKERS = (1, 2, 4, 8, 16, 32, 64, 128)
_ENGINES = (
    EngineChoice(),
    *(EngineChoice(name="deepspeed", zero_stage=stage) for stage in (1, 2, 3)),
)
MAX_ROWS = 24
"""Rows of the table; the rest is counted."""


def shapes(job: Job) -> Iterator[tuple[Job, int]]:
    """Yield (job, workers) of every shape that the job's rules allow; more workers than images are none."""
    smallest = min(crop_stages.batches(job))
    counts = sorted({n for n in (*_WORKERS, job.workers.min, job.workers.max)})
    precisions = ("fp32", "bf16") if job.workers.gpus else (job.train.precision,)
    for workers, precision, engine, recompute in product(
        counts, precisions, _ENGINES, ("none", "full_resolution", "all")
    ):
        if workers > smallest // job.train.micro_batches or (workers == 1 and engine.name != "ddp"):
            continue
        train: dict[str, Any] = {"precision": precision, "activation_checkpointing": recompute}
        chosen = job.model_copy(
            update={
                "train": job.train.model_copy(update=train),
                "workers": job.workers.model_copy(update={"min": workers, "max": workers}),
                "engine": engine,
            }
        )
        if not list(validation.training_conflicts(chosen)):
            yield chosen, workers


def compare(job: Job, stages: CropSchedule, total_steps: int, records: Records) -> list[tuple[Job, Estimate]]:
    """Return every shape that fits with what it takes, the cheapest first, the quicker of equals before."""
    limit = job.workers.memory_gib
    found = []
    for shape, workers in shapes(job):
        took = estimate(shape, stages, total_steps, workers, _rate(job, shape, stages, records))
        if limit is None or took.memory.total <= limit * GIB:
            found.append((shape, took))
    return sorted(found, key=lambda row: (row[1].money or row[1].worker_hours, row[1].hours))


def render(plan: Plan) -> str:
    """Return the table of the plan's job."""
    job = plan.job
    rows = compare(job, plan.stages, plan.total_steps, plan.records)
    if not rows:
        return (
            f"no shape fits into workers.memory_gib {job.workers.memory_gib:g}: raise it, lower "
            "train.global_batch_size, or train on smaller crops."
        )
    unit = job.prices.currency if job.prices.worker_hour is not None else "worker hours"
    lines = [
        f"{'workers':>7}  {'precision':<9}  {'engine':<8}  {'recompute':<15}  {'GiB each':>8}  "
        f"{'s/step':>8}  {'talking':>7}  {'hours':>9}  {unit:>12}"
    ]
    for shape, took in rows[:MAX_ROWS]:
        engine = "ddp" if shape.engine.name == "ddp" else f"ZeRO {shape.engine.zero_stage}"
        cost = took.worker_hours if took.money is None else took.money
        lines.append(
            f"{took.workers:>7}  {shape.train.precision:<9}  {engine:<8}  {shape.train.activation_checkpointing:<15}  "
            f"{took.memory.total / GIB:>8.1f}  {took.step_seconds:>8.3f}  {100 * took.communication:>5.1f} %  "
            f"{took.hours:>9,.1f}  {cost:>12,.1f}"
        )
    if len(rows) > MAX_ROWS:
        lines.append(f"and {len(rows) - MAX_ROWS} dearer shapes")
    sources = dict.fromkeys(took.rate.source for _, took in rows)
    lines.append(f"rates: {'; '.join(sources)}. Messages: 50 µs, 25 Gbit/s a worker, assumed.")
    lines.append(
        "Memory is without the temporaries of the backward pass, hours without checkpoints, validation and restarts."
    )
    return "\n".join(lines)


def _rate(job: Job, shape: Job, stages: CropSchedule, records: Records) -> ComputeRate:
    """The rate of a shape: what the job states is stated of its own precision."""
    if shape.train.precision != job.train.precision and job.workers.images_per_second is not None:
        workers = shape.workers.model_copy(update={"images_per_second": None})
        return rate_of(shape.model_copy(update={"workers": workers}), stages, records)
    return rate_of(shape, stages, records)
