"""`mirage bench checkpoint`: the cost of a checkpoint, in a folder and on a local S3 server.

Steps, snapshot and writer are those of a training job. A step waits for the snapshot only, its *stall*; the rest is
written in the background. How much that slows the following steps depends on the free cores: at most the CPU time that
the process spends beyond that of steps without a checkpoint, including the snapshot.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.bench.environment import Echo, Environment
from orchestrator.bench.s3 import local_bucket
from orchestrator.bench.scaling_worker import DEGRADATIONS
from orchestrator.config.loader import job_from_mapping
from orchestrator.config.schema import Job
from orchestrator.events import Event, Measured
from orchestrator.models import network
from orchestrator.tables import aligned
from orchestrator.training.checkpoint import Checkpoints, Retention, RunIdentity
from orchestrator.training.driver import ControlSignal
from orchestrator.training.engines.base import Engine
from orchestrator.training.run_state import TrainingRun, start
from orchestrator.training.saving import save
from orchestrator.training.step import train_step
from shards.cache import ShardCache
from shards.dataset import Dataset
from shards.pack import pack
from shards.sources import PhotographSource
from shards.store import LocalStore, Store, open_store
from shards.stream import Batch, TrainStream

CHECKPOINT_STEPS = 500
"""Steps between two checkpoints, the default of a job."""
_WARM_UP = 2
_DEMO = {"dim": 12, "blocks": [1, 1, 1, 1], "refinement_blocks": 0, "heads": [1, 1, 2, 2]}


@dataclass(frozen=True)
class CheckpointTiming:
    """Times of some steps without a checkpoint, and of as many after one [s]."""

    steps: int
    wall: float
    """Duration of the steps without."""
    cpu: float
    """CPU time of the process during the steps without."""
    stall: float
    """Time that the first step after the checkpoint waited."""
    write: float
    """Time from the snapshot to the complete checkpoint in the store."""
    cpu_with: float
    """CPU time of the process until the steps after were done and the checkpoint was complete."""


@dataclass(frozen=True)
class CheckpointCost:
    """Medians over the repeats [s], and shares of the training time with a checkpoint every 500 steps."""

    store: str
    bytes: int
    step: float
    stall: float
    write: float
    cpu: float
    """CPU time of one checkpoint."""
    stalled_share: float
    share_at_most: float
    """Share if no core is free besides those of the step."""


def run(options: argparse.Namespace, environment: Environment, echo: Echo) -> dict[str, Any]:
    """Measure one model size in each kind of store, print a table, return the results."""
    with tempfile.TemporaryDirectory(prefix="mirage-checkpoint-") as folder:
        root = Path(folder)
        pack(
            PhotographSource(DEGRADATIONS, seed=0, variants=1), LocalStore(root / "data"), name="photographs"
        )
        costs = []
        with local_bucket(root / "s3") if options.s3 else nullcontext() as bucket:
            for name, uri in (("folder", str(root / "run")), ("S3", bucket)):
                if uri is not None:
                    timings, size = measure(options, environment, root, open_store(uri))
                    costs.append(checkpoint_cost(name, size, timings))
    echo(render(costs, options))
    return {"rows": [asdict(cost) for cost in costs]}


def measure(
    options: argparse.Namespace, environment: Environment, root: Path, store: Store
) -> tuple[list[CheckpointTiming], int]:
    """Return the times of each repeat, and the bytes of a checkpoint."""
    job = make_job(options)
    stream = TrainStream(
        Dataset([str(root / "data")], ShardCache(root / "cache", 2**30)),
        [(name, 50) for name in DEGRADATIONS],
        seed=0,
        crop_pixels=options.crop,
        global_batch_size=options.batch,
    )
    batch = next(stream.steps(0, 1, 0))
    run = start(job, Engine(environment.device, job.train.precision), stream, store, None)
    checkpoints = Checkpoints(
        store, RunIdentity("bench", ()), keep=Retention(1), header=network.header(job.model)
    )
    _train(run, batch, _WARM_UP)
    save(run, checkpoints, _MetricsDriver())  # the first one opens connections and allocates buffers
    checkpoints.wait()
    timings = []
    for _ in range(options.repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        _train(run, batch, options.steps)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        driver, before = _MetricsDriver(), time.process_time()
        save(run, checkpoints, driver)
        _train(run, batch, options.steps)
        checkpoints.wait()
        timings.append(
            CheckpointTiming(
                options.steps,
                wall,
                cpu,
                driver.metrics["perf/checkpoint_stall_seconds"],
                checkpoints.write_seconds,
                time.process_time() - before,
            )
        )
    return timings, sum(store.stat(key).size for key in store.list())


def make_job(options: argparse.Namespace) -> Job:
    """Return a job with averaged weights (`recipe: fast`) whose steps are timed."""
    job = job_from_mapping(
        {
            "name": "bench",
            "recipe": "fast",
            "setting": "5deg",
            "storage": ".",
            "model": _DEMO if options.size == "demo" else {"variant": options.size},
            "data": {"manifests": "photographs", "crop_pixels": options.crop},
            "train": {"steps": 10**6, "global_batch_size": options.batch, "precision": options.precision},
            "track": {"experiment": "bench"},
        }
    )
    assert isinstance(job, Job), "a job without a kind trains"
    return job


def checkpoint_cost(name: str, size: int, timings: list[CheckpointTiming]) -> CheckpointCost:
    """Return the medians, and their shares of the training time."""
    step = statistics.median(timing.wall / timing.steps for timing in timings)
    stall = statistics.median(timing.stall for timing in timings)
    cpu = max(0.0, statistics.median(timing.cpu_with - timing.cpu for timing in timings))
    step_cpu = statistics.median(timing.cpu / timing.steps for timing in timings)
    return CheckpointCost(
        store=name,
        bytes=size,
        step=step,
        stall=stall,
        write=statistics.median(timing.write for timing in timings),
        cpu=cpu,
        stalled_share=stall / (stall + CHECKPOINT_STEPS * step),
        share_at_most=cpu / (cpu + CHECKPOINT_STEPS * step_cpu),
    )


def render(costs: list[CheckpointCost], options: argparse.Namespace) -> str:
    """Return the table as text."""
    rows = [
        (
            cost.store,
            f"{cost.step:.3f}",
            f"{cost.stall:.4f}",
            f"{cost.write:.3f}",
            f"{cost.cpu:.3f}",
            f"{100 * cost.stalled_share:.3f} % waiting, at most {100 * cost.share_at_most:.2f} %",
        )
        for cost in costs
    ]
    share = f"of training at one per {CHECKPOINT_STEPS} steps"
    title = (
        f"{options.size}, {options.batch} images of {options.crop}² per step, {costs[0].bytes / 2**20:.1f} MiB per "
        f"checkpoint; medians of {options.repeats} repeats of {options.steps} steps"
    )
    head = ("store", "s/step", "stall, s", "written after, s", "CPU, s", share)
    return "\n".join([title, *aligned(head, rows, "<>>>><")])


def _train(run: TrainingRun, batch: Batch, steps: int) -> None:
    for _ in range(steps):
        train_step(run, [batch])
    if run.engine.device.type == "cuda":
        import torch

        torch.cuda.synchronize(run.engine.device)


class _MetricsDriver:
    """A driver that keeps the metrics."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def emit(self, event: Event) -> None:
        if isinstance(event, Measured):
            self.metrics |= event.metrics

    def control_signal(self, step: int) -> ControlSignal:
        return ControlSignal.CONTINUE
