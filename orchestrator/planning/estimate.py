"""Estimates of a job: memory per worker, time, cost and egress.

Time is work over speed. The work of a step is three times the multiply-adds of the forward pass, plus those of
recomputed blocks. The speed is that of one worker: stated by the job (`workers.images_per_second`), measured in earlier
runs of the same store, or assumed. `scaling_model` adds the communication.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mirage.cost import macs, parameters, recomputed_macs
from mirage.memory import Backend, Precision, StepMode, activation_bytes, cast_bytes, recomputed_bytes
from orchestrator.config import crop_stages
from orchestrator.config.schema import Job
from orchestrator.console import count
from orchestrator.planning import gpu_speed
from orchestrator.planning.scaling_model import Network, StepCost, WorkerSpeed, predict
from orchestrator.planning.throughput import Throughput
from shards.crop_schedule import CropSchedule, TrainingStage

GIB = 2**30

ASSUMED_NETWORK = Network(latency_seconds=50e-6, bytes_per_second=25e9 / 8)
"""Assumed network between workers: 50 µs per message, 25 Gbit/s per worker."""

_CPU_RATE = 12e9
"""Multiply-adds of training per second and core: MIRAGE-T, 2 crops of 128², 2.6 s per step (docs/benchmarks.md)."""


Records = Sequence[tuple[Job, Throughput]]
"""Earlier runs with their jobs."""


@dataclass(frozen=True)
class ComputeRate:
    """Training speed of one worker alone in multiply-adds per second, and its source."""

    per_second: float
    source: str
    measured: bool
    busy: bool = False
    """Whether it was measured while the machine was busy with other work."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of one worker during a step, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    """Activations of the worker's share of a micro-batch, including one recomputed block."""

    @property
    def total(self) -> int:
        """Return the sum, which excludes temporary buffers of the backward pass."""
        return self.weights + self.gradients + self.optimizer + self.ema + self.activations


@dataclass(frozen=True)
class Estimate:
    """Estimate of a job for one number of workers."""

    workers: int
    memory: MemoryEstimate
    step_seconds: float
    """Mean seconds of a step over the run."""
    communication: float
    """Share of communication in it."""
    hours: float
    cost: float | None
    """Cost of workers and head; None without a price."""
    rate: ComputeRate

    @property
    def worker_hours(self) -> float:
        """Return the hours of all workers together."""
        return self.hours * self.workers


def largest_share(job: Job, batch: int, workers: int) -> int:
    """Return the number of images of a micro-batch in the largest worker's share."""
    return math.ceil(batch // job.train.micro_batches / workers)


def memory(job: Job, workers: int) -> MemoryEstimate:
    """Return the memory of one of `workers` at the crop stage that needs the most."""
    config, train = job.model.build(), job.train
    precision = precision_of(job)
    backend: Backend = "triton" if job.workers.gpus else "cpu"
    mode = StepMode(precision, train.activation_checkpointing, backend)
    kept = 0
    for stage, batch in zip(crop_stages.declared(job), crop_stages.batches(job), strict=True):
        each = activation_bytes(config, stage.pixels, stage.pixels, mode)
        each += recomputed_bytes(config, stage.pixels, stage.pixels, mode)
        kept = max(kept, largest_share(job, batch, workers) * each)
    return memory_of(job, workers, parameters(config), kept + cast_bytes(config, precision))


def memory_of(job: Job, workers: int, count: int, activations: int) -> MemoryEstimate:
    """Return the memory of one of `workers` for a network of `count` parameters whose activations are known."""
    whole = 4 * count
    zero = job.engine.zero_stage if job.engine.name == "deepspeed" else 0
    return MemoryEstimate(
        weights=whole // (workers if zero == 3 else 1),
        gradients=whole // (workers if zero >= 2 else 1),
        optimizer=len(job.train.moments) * whole // (workers if zero >= 1 else 1),
        ema=whole if job.train.ema_decay else 0,
        activations=activations,
    )


def rate_of(job: Job, stages: CropSchedule, records: Records) -> ComputeRate:
    """Return the speed of one of the job's workers: stated, measured in earlier runs, or assumed."""
    stated, first = job.workers.images_per_second, stages.stages[0]
    if stated is not None:
        source = f"workers.images_per_second {stated:g}"
        return ComputeRate(stated * _work(job, first.pixels), source, measured=True)
    similar = [(other, measured) for other, measured in records if _comparable(job, other)]
    quiet = [record for record in similar if not record[1].is_busy]
    similar, busy = (quiet or similar), not quiet
    if similar:
        rates = [_measured_rate(other, measured) for other, measured in similar]
        devices = ", ".join(sorted({measured.device for _, measured in similar}))
        runs = count(len(similar), "earlier run")
        per = statistics.median(rates) * (1 if job.workers.gpus else job.workers.cpus)
        return ComputeRate(per, f"{runs} on {devices}", measured=True, busy=busy)
    if job.workers.gpus:
        return _predicted_rate(job, first)
    per = _CPU_RATE * job.workers.cpus
    source = f"an assumed {_CPU_RATE / 1e9:.0f} G multiply-adds/s per core (docs/benchmarks.md)"
    return ComputeRate(per, source, measured=False)


def _predicted_rate(job: Job, stage: TrainingStage) -> ComputeRate:
    """Return the rate of the job's GPU by its datasheet, at the share of the fewest workers, and what bounds it."""
    name = job.workers.gpu_model or gpu_speed.ASSUMED_GPU
    images = largest_share(job, stage.batch, job.workers.min)
    config = job.model.build()
    work = 3.0 * macs(config, stage.pixels, stage.pixels)  # what is computed again adds in proportion
    found = gpu_speed.bounds(
        gpu_speed.GPUS[name], config, job.train.precision, images, stage.pixels, work, job.data.readers
    )
    bound = max(found, key=found.__getitem__)
    per = job.workers.gpus * images * work / found[bound]
    times = ", ".join(f"{what} {1e3 * seconds:.0f} ms" for what, seconds in found.items())
    source = f"the datasheet of an assumed {name}, not measured: bound by {bound} ({times} a step of {images} images)"
    return ComputeRate(per, source, measured=False)


def estimate(job: Job, stages: CropSchedule, total_steps: int, workers: int, rate: ComputeRate) -> Estimate:
    """Return the estimate for `workers`. Raises ValueError when a micro-batch has fewer images than workers."""
    seconds, communication = 0.0, 0.0
    for stage, steps in _spans(stages, total_steps):
        per_step, communicating = step_seconds(job, stage, workers, rate)
        seconds += steps * per_step
        communication += steps * communicating
    hours = seconds / 3600
    prices = job.prices
    cost = None
    if prices.worker_hour is not None:
        cost = hours * (workers * prices.worker_hour + prices.head_hour)
    return Estimate(
        workers=workers,
        memory=memory(job, workers),
        step_seconds=seconds / total_steps,
        communication=communication / seconds,
        hours=hours,
        cost=cost,
        rate=rate,
    )


def step_seconds(job: Job, stage: TrainingStage, workers: int, rate: ComputeRate) -> tuple[float, float]:
    """Return the seconds of a step, and the part of them that is communication."""
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
    communication = point.communication
    if job.engine.name == "deepspeed" and job.engine.zero_stage == 3:  # it also gathers the weights twice
        communication += 0.5 * point.gradients
    return point.compute + communication, communication


def checkpoint_bytes(job: Job) -> int:
    """Return the bytes of one checkpoint: weights, the optimiser's moments, EMA."""
    return 4 * parameters(job.model.build()) * (1 + len(job.train.moments) + bool(job.train.ema_decay))


def egress(job: Job, packed: int, epochs: float, workers: int) -> int:
    """Return the bytes read from the store: all `packed` bytes per node, in each epoch if its cache is smaller.

    Each worker is assumed on its own node, which is the most expensive case.
    """
    times = 1.0 if packed <= job.data.cache_gib * GIB else max(1.0, epochs)
    return int(workers * packed * times)


def _work(job: Job, side: int) -> float:
    """Return the multiply-adds of training for one image of `side` pixels."""
    config = job.model.build()
    return 3.0 * macs(config, side, side) + recomputed_macs(
        config, side, side, job.train.activation_checkpointing
    )


def _measured_rate(job: Job, measured: Throughput) -> float:
    """Return the multiply-adds per second of a worker (on CPUs, of a core) of a finished run, without communication."""
    stage = crop_stages.stages(job, 1).stages[-1]
    any_rate = ComputeRate(1.0, "", measured=True)
    _, communication = step_seconds(job, stage, measured.workers, any_rate)
    computing = max(measured.seconds_per_step - communication, measured.seconds_per_step / 2)
    images = job.train.micro_batches * largest_share(job, stage.batch, measured.workers)
    return images * _work(job, stage.pixels) / computing / (1 if job.workers.gpus else job.workers.cpus)


def _comparable(job: Job, other: Job) -> bool:
    """Return whether both jobs use the same kind of device, precision and compilation."""
    return (
        other.model.class_ is None
        and bool(job.workers.gpus) == bool(other.workers.gpus)
        and job.train.precision == other.train.precision
        and job.train.compile == other.train.compile
    )


def precision_of(job: Job) -> Precision:
    """Return the precision of the activations."""
    return "fp32" if job.train.precision in ("fp32", "tf32") else "bf16"


def _spans(stages: CropSchedule, total: int) -> list[tuple[TrainingStage, int]]:
    """Return each crop stage with its number of steps."""
    starts = [*(stage.from_step for stage in stages.stages[1:]), total]
    spans = zip(stages.stages, starts, strict=True)
    return [(stage, min(end, total) - stage.from_step) for stage, end in spans if stage.from_step < total]
