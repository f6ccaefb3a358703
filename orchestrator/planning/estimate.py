"""What a job takes: memory of a worker, time, money and what leaves the store; each says what it rests on.

Time is work over rate. The work of a step is counted: three times the forward pass's multiply-adds, and those of blocks
that run again. The rate is one worker's, and comes from the job (`workers.images_per_second`), from earlier runs in
the same store, or, failing both, from an assumption that is told. Communication is added by
`orchestrator.planning.scaling_model`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mirage.cost import macs, parameters, recomputed_macs
from mirage.memory import Form, Kept, Precision, activation_bytes, cast_bytes, recomputed_bytes
from orchestrator.config import crop_stages
from orchestrator.config.schema import Job
from orchestrator.planning.scaling_model import Network, StepCost, WorkerSpeed, predict
from orchestrator.planning.throughput import Throughput
from shards.crop_schedule import CropSchedule, TrainingStage

GIB = 2**30

ASSUMED_NETWORK = Network(latency_seconds=50e-6, bytes_per_second=25e9 / 8)
"""Between workers, where nobody measured: 50 µs a message, 25 Gbit/s a worker."""

_CPU_RATE = 12e9
"""Multiply-adds of training per second and core: T, 2 crops of 128², 2.6 s a step (docs/benchmarks.md)."""
_GPU_RATE = {"fp32": 400 * 3 * 5.31e9, "bf16": 800 * 3 * 5.31e9}
"""The same per GPU: 400 crops of 128² a second of T in fp32, 800 in bf16. A guess: no GPU has run this yet."""


Records = Sequence[tuple[Job, Throughput]]
"""Earlier runs with their jobs."""


@dataclass(frozen=True)
class ComputeRate:
    """Multiply-adds per second that one worker alone trains, and who says so."""

    per_second: float
    source: str
    measured: bool


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one worker while a step runs."""

    weights: int
    gradients: int
    optimizer: int
    averaged: int
    activations: int
    """Kept for the backward pass, of all images of a micro-batch that the worker holds, and the block that is back."""

    @property
    def total(self) -> int:
        """All of it, without the temporaries of the backward pass."""
        return self.weights + self.gradients + self.optimizer + self.averaged + self.activations


@dataclass(frozen=True)
class Estimate:
    """What a job takes on one number of workers."""

    workers: int
    memory: MemoryEstimate
    step_seconds: float
    """Mean over the run."""
    communication: float
    """Share of that."""
    hours: float
    money: float | None
    """For workers and head; None without a price."""
    rate: ComputeRate

    @property
    def worker_hours(self) -> float:
        """Hours of all workers together."""
        return self.hours * self.workers


def largest_share(job: Job, batch: int, workers: int) -> int:
    """Return the most images of a micro-batch that one of the workers holds."""
    return math.ceil(batch // job.train.micro_batches / workers)


def memory(job: Job, workers: int) -> MemoryEstimate:
    """Return what one of `workers` holds at the stage of crops that takes most."""
    config, train, engine = job.model.build(), job.train, job.engine
    precision = _precision(job)
    form: Form = "composed" if job.workers.gpus else "regions"
    how = Kept(precision, train.activation_checkpointing, form)
    kept = 0
    for stage, batch in zip(crop_stages.declared(job), crop_stages.batches(job), strict=True):
        each = activation_bytes(config, stage.pixels, stage.pixels, how)
        each += recomputed_bytes(config, stage.pixels, stage.pixels, how)
        kept = max(kept, largest_share(job, batch, workers) * each)
    whole = 4 * parameters(config)
    zero = engine.zero_stage if engine.name == "deepspeed" else 0
    return MemoryEstimate(
        weights=whole // (workers if zero == 3 else 1),
        gradients=whole // (workers if zero >= 2 else 1),
        optimizer=2 * whole // (workers if zero >= 1 else 1),
        averaged=whole if train.ema_decay else 0,
        activations=kept + cast_bytes(config, precision),
    )


def rate_of(job: Job, stages: CropSchedule, records: Records) -> ComputeRate:
    """Return the rate of one of the job's workers: stated, measured in earlier runs, or assumed."""
    stated, first = job.workers.images_per_second, stages.stages[0]
    if stated is not None:
        return ComputeRate(
            stated * _work(job, first.pixels), f"workers.images_per_second {stated:g}", measured=True
        )
    alike = [(other, pace) for other, pace in records if _comparable(job, other)]
    if alike:
        rates = [_measured(other, pace) for other, pace in alike]
        devices = ", ".join(sorted({pace.device for _, pace in alike}))
        runs = "1 earlier run" if len(alike) == 1 else f"{len(alike)} earlier runs"
        per = statistics.median(rates) * (1 if job.workers.gpus else job.workers.cpus)
        return ComputeRate(per, f"{runs} on {devices}", measured=True)
    if job.workers.gpus:
        per = _GPU_RATE[_precision(job)]
        return ComputeRate(
            per,
            f"a guess of {per / 1e12:.1f} T multiply-adds/s a GPU; no GPU has run this yet",
            measured=False,
        )
    per = _CPU_RATE * job.workers.cpus
    return ComputeRate(
        per, f"an assumed {_CPU_RATE / 1e9:.0f} G multiply-adds/s a core (docs/benchmarks.md)", measured=False
    )


def estimate(job: Job, stages: CropSchedule, total_steps: int, workers: int, rate: ComputeRate) -> Estimate:
    """Return what the job takes on `workers`. ValueError when they are more than a micro-batch has images."""
    seconds, talking = 0.0, 0.0
    for stage, steps in _spans(stages, total_steps):
        step, communication = step_seconds(job, stage, workers, rate)
        seconds += steps * step
        talking += steps * communication
    hours = seconds / 3600
    prices = job.prices
    money = None
    if prices.worker_hour is not None:
        money = hours * (workers * prices.worker_hour + prices.head_hour)
    return Estimate(
        workers=workers,
        memory=memory(job, workers),
        step_seconds=seconds / total_steps,
        communication=talking / seconds,
        hours=hours,
        money=money,
        rate=rate,
    )


def step_seconds(job: Job, stage: TrainingStage, workers: int, rate: ComputeRate) -> tuple[float, float]:
    """Return the seconds of a step and those of them that workers talk."""
    config = job.model.build()
    blocks = sum(s.blocks for s in config.stages()) if config.batch_norm == "synced" else 0
    load = StepCost(
        parameters=parameters(config),
        blocks=blocks if config.branch_ratios[1] else 0,
        norm_channels=2 * config.dim,
        embedding=2 * config.spd_embed_dim if job.loss.spd_weight else 0,
        micro_batches=job.train.micro_batches,
    )
    machine = WorkerSpeed(step_seconds=0.0, image_seconds=_work(job, stage.pixels) / rate.per_second)
    point = predict(workers, stage.batch, load, machine, ASSUMED_NETWORK)
    again = (
        1.5 if job.engine.name == "deepspeed" and job.engine.zero_stage == 3 else 1.0
    )  # weights are gathered twice
    talking = point.communication + (again - 1) * point.gradients
    return point.compute + talking, talking


def checkpoint_bytes(job: Job) -> int:
    """Return the size of one checkpoint: weights, two moments, the average."""
    return 4 * parameters(job.model.build()) * (3 + bool(job.train.ema_decay))


def egress(job: Job, held: int, epochs: float, workers: int) -> int:
    """Return what leaves the store: `held` bytes of shards for each node, again each epoch where its cache is smaller.

    Each worker is taken to be on a node of its own, which is the dearest.
    """
    times = 1.0 if held <= job.data.cache_gib * GIB else max(1.0, epochs)
    return int(workers * held * times)


def _work(job: Job, side: int) -> float:
    """Multiply-adds that training does for one image of `side` pixels."""
    config = job.model.build()
    return 3.0 * macs(config, side, side) + recomputed_macs(
        config, side, side, job.train.activation_checkpointing
    )


def _measured(job: Job, pace: Throughput) -> float:
    """Multiply-adds per second of one worker, on CPUs per core, of a run that is over; what it talked is left out."""
    stage = crop_stages.stages(job, 1).stages[-1]
    guess = ComputeRate(1.0, "", measured=True)
    _, talking = step_seconds(job, stage, pace.workers, guess)
    computing = max(pace.seconds_per_step - talking, pace.seconds_per_step / 2)
    images = job.train.micro_batches * largest_share(job, stage.batch, pace.workers)
    return images * _work(job, stage.pixels) / computing / (1 if job.workers.gpus else job.workers.cpus)


def _comparable(job: Job, other: Job) -> bool:
    """Whether a run of `other` says how fast `job` goes: the same kind of device, precision and way to run blocks."""
    return (
        other.model.class_ is None
        and bool(job.workers.gpus) == bool(other.workers.gpus)
        and job.train.precision == other.train.precision
        and job.train.compile == other.train.compile
    )


def _precision(job: Job) -> Precision:
    return "fp32" if job.train.precision in ("fp32", "tf32") else "bf16"


def _spans(stages: CropSchedule, total: int) -> list[tuple[TrainingStage, int]]:
    """Each stage of crops with the steps that it lasts."""
    starts = [*(stage.from_step for stage in stages.stages[1:]), total]
    spans = zip(stages.stages, starts, strict=True)
    return [(stage, min(end, total) - stage.from_step) for stage, end in spans if stage.from_step < total]
