"""Compute what a training run asks of the object store, MLflow and Ray, for any number of workers and images.

Requests of a checkpoint and of a ledger are counted by making them in a folder. Intervals are the constants of the
code. The time of a step is that of `mirage plan`. Limits of foreign systems are assumptions, which the report states.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from orchestrator.bench.counting_store import CountingStore
from orchestrator.bench.environment import Echo, Environment
from orchestrator.bench.errors import BenchError
from orchestrator.config import crop_stages
from orchestrator.config.loader import load_job
from orchestrator.config.schedule import total_steps
from orchestrator.config.schema import Job
from orchestrator.errors import OrchestratorError
from orchestrator.ownership import RENEW_SECONDS
from orchestrator.planning.estimate import ASSUMED_NETWORK, checkpoint_bytes, egress, estimate, rate_of
from orchestrator.tables import aligned
from orchestrator.tracking.background import BATCH_VALUES, POLL_SECONDS
from orchestrator.training import ray_launcher
from orchestrator.training.checkpoint import Checkpoints, CheckpointState, RunIdentity
from orchestrator.training.fencing import Turn, fenced, new_claim, write_claim
from orchestrator.training.ray_driver_relay import EXCHANGE_SECONDS
from orchestrator.training.ray_session import COST_LIMIT, SYNCHRONIZE_SECONDS
from orchestrator.training.saving import retention
from orchestrator.training.system_metrics import NodeMetrics
from shards.ledger import SampleLedger
from shards.pack import SHARD_BYTES
from shards.store import Store
from shards.stream import Batch

_BARRIER_SECONDS = 1e-3
"""Assumed time that Ray Train's barrier needs for one worker."""
_VALUES_OF_A_LINE = 16
"""Values of a line of metrics besides one for each degradation."""


@dataclass(frozen=True)
class Limit:
    """What a system bears, and the job key that asks less of it."""

    per_second: float
    what: str
    source: str
    key: str


LIMITS = {
    "reads": Limit(5_500, "requests", "S3, GET per prefix", "data.cache_gib"),
    "writes": Limit(
        3_500, "requests", "S3, PUT, LIST and DELETE per prefix", "checkpoint.every_steps, data.ledger"
    ),
    "node": Limit(ASSUMED_NETWORK.bytes_per_second, "bytes", "25 Gbit/s per node", "data.cache_gib"),
    "values": Limit(
        2_000, "values", "MLflow on SQLite, one core", "track.system_metrics_seconds, track.every_steps"
    ),
    "relay": Limit(1_000, "calls", "one Ray actor", "track.system_metrics_seconds"),
    "barrier": Limit(1_000, "calls", "Ray Train's controller", "none: the barrier becomes rarer by itself"),
    "messages": Limit(0.5, "of a step", "half of a step is communication", "train.global_batch_size"),
}
"""Assumed limits, by what is asked."""


@dataclass(frozen=True)
class Demand:
    """What a run asks for in each second of training, over all workers."""

    workers: int
    images: int
    step_seconds: float
    hours: float
    reads: float
    """Requests for shards."""
    read_bytes: float
    writes: float
    """Requests that write, list or delete."""
    written_bytes: float
    node: float
    """Bytes that one node reads."""
    values: float
    """Values that MLflow stores."""
    mlflow: float
    """Requests to MLflow."""
    relay: float
    """Calls of the driver's actor."""
    barrier: float
    """Calls of Ray Train's controller."""
    messages: float
    """Share of communication in a step."""
    connections: int
    """Most connections to the object store."""

    def first_limit(self) -> tuple[str, float]:
        """Return which limit is nearest, and which share of it is used."""
        used = {name: getattr(self, name) / limit.per_second for name, limit in LIMITS.items()}
        name = max(used, key=lambda each: used[each])
        return name, used[name]


def demand(job: Job, workers: int, images: int, image_bytes: int, per_node: int) -> Demand:
    """Return the demand of `job` with `workers` on a dataset of `images`."""
    batch = job.train.global_batch_size
    steps_per_epoch = max(1, images // batch)
    total = total_steps(job.train, steps_per_epoch)
    stages = crop_stages.stages(job, images)
    found = estimate(job, stages, total, workers, rate_of(job, stages, ()))
    step, seconds = found.step_seconds, 3600 * found.hours
    nodes = math.ceil(workers / per_node)
    packed = images * image_bytes
    read_bytes = egress(job, packed, total / steps_per_epoch, nodes) / seconds
    checkpoints = 1 / (job.checkpoint.every_steps * step)
    of_checkpoint, of_ledger = checkpoint_requests(job), ledger_requests()
    writing = ("write", "delete", "list")
    writes = checkpoints * sum(of_checkpoint[kind] for kind in writing) + 2 / RENEW_SECONDS
    if job.data.ledger:
        writes += checkpoints * workers * sum(of_ledger[kind] for kind in writing)
    lines = 1 / (job.track.every_steps * step)
    per_node_values = len(NodeMetrics(0, torch.device("cpu")).read())
    node_reports = nodes / max(job.track.system_metrics_seconds, step)
    values = lines * (_VALUES_OF_A_LINE + len(job.data.mixture)) + node_reports * per_node_values
    shortest, longest = SYNCHRONIZE_SECONDS
    barrier_seconds = max(step, min(longest, max(shortest, workers * _BARRIER_SECONDS / COST_LIMIT)))
    return Demand(
        workers,
        images,
        step_seconds=step,
        hours=found.hours,
        reads=read_bytes / min(SHARD_BYTES, packed),
        read_bytes=read_bytes,
        writes=writes,
        written_bytes=checkpoints * checkpoint_bytes(job),
        node=read_bytes / nodes,
        values=values,
        mlflow=max(values / BATCH_VALUES, min(lines + node_reports, 1 / POLL_SECONDS)),
        relay=1 / max(EXCHANGE_SECONDS, step) + node_reports + 1 / ray_launcher.POLL_SECONDS,
        barrier=2 * workers / barrier_seconds,
        messages=found.communication,
        connections=workers * (1 + job.data.readers),
    )


def checkpoint_requests(job: Job) -> Counter[str]:
    """Return the requests of one checkpoint of a run that keeps as many as the job says."""
    with tempfile.TemporaryDirectory(prefix="mirage-requests-") as folder:
        counting = CountingStore(Path(folder))
        checkpoints = Checkpoints(
            _as_a_worker(counting), RunIdentity("run", ("data",)), keep=retention(job.checkpoint)
        )
        for step in range(job.checkpoint.keep + 2):
            checkpoints.wait()
            counting.requests.clear()
            checkpoints.save(_state(step, ema=bool(job.train.ema_decay)))
        checkpoints.wait()
        return counting.requests


def ledger_requests() -> Counter[str]:
    """Return the requests of one worker that writes its ledger before a checkpoint."""
    with tempfile.TemporaryDirectory(prefix="mirage-requests-") as folder:
        counting = CountingStore(Path(folder))
        ledger = SampleLedger(_as_a_worker(counting), 0)
        ledger.record(0, _batch())
        counting.requests.clear()
        ledger.flush()
        return counting.requests


def _as_a_worker(store: CountingStore) -> Store:
    """Return the store as the workers of a run have it."""
    claim = new_claim(store, Turn(1))
    write_claim(store, claim)
    return fenced(store, claim)


def _state(step: int, *, ema: bool) -> CheckpointState:
    weights = {"w": torch.full((1,), float(step))}
    tensors = {"model": weights, "optimizer": {"w/step": torch.tensor(step)}}
    if ema:
        tensors["ema"] = {"w": torch.full((1,), step + 0.5)}
    return CheckpointState(step, step, 0, tensors)


def _batch() -> Batch:
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    return Batch(image, image, torch.zeros(1), torch.zeros(1, dtype=torch.int64), ["noise15"], ["0"], (0, 1))


def run(options: argparse.Namespace, environment: Environment, echo: Echo) -> dict[str, Any]:
    """Print the table of `mirage bench requests`."""
    found = []
    try:
        for workers in options.workers:
            batch = f"train.global_batch_size={workers * options.images_per_worker}"
            job = load_job(options.job, [batch, f"workers.max={workers}", *options.overrides])
            if not isinstance(job, Job):
                raise BenchError(f"--job {options.job}: is of kind {job.kind}, not train.")
            size = 1024 * options.image_kib
            found += [
                demand(job, workers, images, size, options.workers_per_node) for images in options.images
            ]
    except OrchestratorError as error:
        raise BenchError(str(error)) from error
    for line in aligned(_HEAD, map(_row, found), ">" * (len(_HEAD) - 1) + "<"):
        echo(line)
    echo("")
    for name, limit in LIMITS.items():
        echo(f"limit {name}: {limit.per_second:,.6g} {limit.what} ({limit.source}); asks less: {limit.key}")
    return {"demands": [{**asdict(each), "first_limit": each.first_limit()} for each in found]}


_HEAD = (
    "workers",
    "images",
    "s/step",
    "hours",
    "GET/s",
    "MiB/s read",
    "MiB/s a node",
    "PUT, LIST/s",
    "MiB/s written",
    "MLflow req/s",
    "values/s",
    "relay calls/s",
    "barrier calls/s",
    "connections",
    "nearest limit",
)


def _row(one: Demand) -> list[str]:
    name, used = one.first_limit()
    numbers = (
        one.step_seconds,
        one.hours,
        one.reads,
        one.read_bytes / 2**20,
        one.node / 2**20,
        one.writes,
        one.written_bytes / 2**20,
        one.mlflow,
        one.values,
        one.relay,
        one.barrier,
    )
    return [
        f"{one.workers:,}",
        f"{one.images:,}",
        *(f"{number:,.3g}" for number in numbers),
        f"{one.connections:,}",
        f"{name}: {100 * used:.2g} %",
    ]
