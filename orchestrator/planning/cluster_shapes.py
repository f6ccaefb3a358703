"""Cluster shapes for a job, sorted by cost: workers, precision, engine, activation checkpointing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from orchestrator.config import conflicts, crop_stages
from orchestrator.config.schema import EngineChoice, Job
from orchestrator.planning.estimate import GIB, ComputeRate, Estimate, Records, estimate, rate_of
from orchestrator.planning.plan import Plan
from orchestrator.tables import aligned
from shards.crop_schedule import CropSchedule

_WORKERS = (1, 2, 4, 8, 16, 32, 64, 128)
_ENGINES = (EngineChoice(), *(EngineChoice(name="deepspeed", zero_stage=stage) for stage in (1, 2, 3)))
MAX_ROWS = 24
"""Maximum number of rows in the table."""


def shapes(job: Job) -> Iterator[tuple[Job, int]]:
    """Yield (job, workers) of every possible shape of the job."""
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
        if not list(conflicts.training_conflicts(chosen)):
            yield chosen, workers


def compare(job: Job, stages: CropSchedule, total_steps: int, records: Records) -> list[tuple[Job, Estimate]]:
    """Return every shape that fits into memory with its estimate, the cheapest first, then the fastest."""
    limit = job.workers.memory_gib
    found = []
    for shape, workers in shapes(job):
        needs = estimate(shape, stages, total_steps, workers, _rate(job, shape, stages, records))
        if limit is None or needs.memory.total <= limit * GIB:
            found.append((shape, needs))
    return sorted(found, key=lambda row: (row[1].cost or row[1].worker_hours, row[1].hours))


def render(plan: Plan) -> str:
    """Return the table of the plan's job."""
    job = plan.job
    rows = compare(job, plan.stages, plan.total_steps, plan.records)
    if not rows:
        return (
            f"no shape fits into workers.memory_gib ({job.workers.memory_gib:g}): raise it, lower "
            "train.global_batch_size, or use smaller crops."
        )
    unit = job.prices.currency if job.prices.worker_hour is not None else "worker hours"
    head = (
        "workers",
        "precision",
        "engine",
        "recomputed",
        "GiB each",
        "s/step",
        "communication",
        "hours",
        unit,
    )
    cells = [
        (
            f"{needs.workers}",
            shape.train.precision,
            "ddp" if shape.engine.name == "ddp" else f"ZeRO {shape.engine.zero_stage}",
            shape.train.activation_checkpointing,
            f"{needs.memory.total / GIB:.1f}",
            f"{needs.step_seconds:.3f}",
            f"{100 * needs.communication:.1f} %",
            f"{needs.hours:,.1f}",
            f"{needs.worker_hours if needs.cost is None else needs.cost:,.1f}",
        )
        for shape, needs in rows[:MAX_ROWS]
    ]
    lines = aligned(head, cells, "><<<>>>>>")
    if len(rows) > MAX_ROWS:
        lines.append(f"and {len(rows) - MAX_ROWS} more expensive shapes")
    sources = dict.fromkeys(needs.rate.source for _, needs in rows)
    lines.append(
        f"speed from {'; '.join(sources)}. Network assumed: 50 µs per message, 25 Gbit/s per worker."
    )
    lines.append(
        "Memory is without temporary buffers of the backward pass, hours without checkpoints, validation and restarts."
    )
    return "\n".join(lines)


def _rate(job: Job, shape: Job, stages: CropSchedule, records: Records) -> ComputeRate:
    """Return the rate of a shape. workers.images_per_second holds only for the job's own precision."""
    if shape.train.precision != job.train.precision and job.workers.images_per_second is not None:
        workers = shape.workers.model_copy(update={"images_per_second": None})
        return rate_of(shape.model_copy(update={"workers": workers}), stages, records)
    return rate_of(shape, stages, records)
