"""`mirage bench checkpoint`: what a checkpoint costs a run, in a folder and on a real S3 server.

Steps, snapshot and writer are the run's own. Some steps without a checkpoint and as many after one take turns in one
process. A step waits for the snapshot alone, its *stall*; the rest is written in the background. What that takes from
steps that go on meanwhile depends on the cores that are free: at most the CPU time that the process spent beyond that
of the steps without, the snapshot included.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.bench.environment import Setting
from orchestrator.bench.s3 import s3_server
from orchestrator.bench.scaling_worker import DEGRADATIONS
from orchestrator.config.loader import job_from_mapping
from orchestrator.config.schema import Job
from orchestrator.events import Event, Measured
from orchestrator.models import network
from orchestrator.training.checkpoint import Checkpoints, Identity
from orchestrator.training.driver import ControlSignal
from orchestrator.training.engines.base import InProcessEngine
from orchestrator.training.loop import Run, save, start, train_step
from shards.cache import ShardCache
from shards.dataset import Dataset
from shards.pack import pack
from shards.sources import PhotographSource
from shards.store import LocalStore, Store, open_store
from shards.stream import Batch, TrainStream

Say = Callable[[str], object]

EVERY = 500
"""Steps between two checkpoints, by default of a job."""
_WARM_UP = 2
_DEMO = {"dim": 12, "blocks": [1, 1, 1, 1], "refinement_blocks": 0, "heads": [1, 1, 2, 2]}


@dataclass(frozen=True)
class Turn:
    """Some steps without a checkpoint, and as many after one. Seconds."""

    steps: int
    wall: float
    """Of the steps without."""
    cpu: float
    """Of the process meanwhile."""
    stall: float
    """That the first step after the checkpoint had to wait."""
    write: float
    """From the snapshot to the complete record in the store."""
    cpu_with: float
    """Of the process until the steps were taken and the checkpoint was complete."""


@dataclass(frozen=True)
class Cost:
    """Medians over turns, in seconds, and shares of the training time with a checkpoint every 500 steps."""

    store: str
    bytes: int
    step: float
    stall: float
    write: float
    cpu: float
    """That a checkpoint takes of the process, on one core."""
    stalled_share: float
    share_at_most: float
    """Were no core free beside those of the step."""


def run(options: argparse.Namespace, setting: Setting, say: Say) -> dict[str, Any]:
    """Measure one size of model in each kind of store."""
    with tempfile.TemporaryDirectory(prefix="mirage-checkpoint-") as folder:
        root = Path(folder)
        pack(
            PhotographSource(DEGRADATIONS, seed=0, variants=1), LocalStore(root / "data"), name="photographs"
        )
        costs = []
        with s3_server(root / "s3") if options.s3 else nullcontext() as bucket:
            for name, uri in (("folder", str(root / "run")), ("S3", bucket)):
                if uri is not None:
                    turns, size = measure(options, setting, root, open_store(uri))
                    costs.append(cost(name, size, turns))
    say(render(costs, options))
    return {"rows": [asdict(each) for each in costs]}


def measure(
    options: argparse.Namespace, setting: Setting, root: Path, store: Store
) -> tuple[list[Turn], int]:
    """Return what every turn took, and the bytes of a checkpoint."""
    job = job_of(options)
    stream = TrainStream(
        Dataset([str(root / "data")], ShardCache(root / "cache", 2**30)),
        [(name, 50) for name in DEGRADATIONS],
        seed=0,
        crop_pixels=options.crop,
        global_batch_size=options.batch,
    )
    batch = next(stream.steps(0, 1, 0))
    run = start(job, InProcessEngine(setting.device, job.train.precision), stream, store, None)
    checkpoints = Checkpoints(store, Identity("bench", ()), keep=1, header=network.header(job.model))
    _steps(run, batch, _WARM_UP)
    save(run, checkpoints, _Deaf())  # the first one brings up connections and buffers
    checkpoints.wait()
    turns = []
    for _ in range(options.repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        _steps(run, batch, options.steps)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        driver, before = _Deaf(), time.process_time()
        save(run, checkpoints, driver)
        _steps(run, batch, options.steps)
        checkpoints.wait()
        turns.append(
            Turn(
                options.steps,
                wall,
                cpu,
                driver.values["perf/checkpoint_stall_seconds"],
                checkpoints.write_seconds,
                time.process_time() - before,
            )
        )
    return turns, sum(store.stat(key).size for key in store.list())


def job_of(options: argparse.Namespace) -> Job:
    """Return the job whose steps are taken: with averaged weights, as `recipe: fast` has them."""
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


def cost(name: str, size: int, turns: list[Turn]) -> Cost:
    """Return the medians, and what they are of a run."""
    step = statistics.median(turn.wall / turn.steps for turn in turns)
    stall = statistics.median(turn.stall for turn in turns)
    cpu = max(0.0, statistics.median(turn.cpu_with - turn.cpu for turn in turns))
    busy = statistics.median(turn.cpu / turn.steps for turn in turns)
    return Cost(
        store=name,
        bytes=size,
        step=step,
        stall=stall,
        write=statistics.median(turn.write for turn in turns),
        cpu=cpu,
        stalled_share=stall / (stall + EVERY * step),
        share_at_most=cpu / (cpu + EVERY * busy),
    )


def render(costs: list[Cost], options: argparse.Namespace) -> str:
    """Return the table."""
    lines = [
        f"{options.size}, {options.batch} images of {options.crop}² a step, {costs[0].bytes / 2**20:.1f} MiB a "
        f"checkpoint; medians of {options.repeats} turns of {options.steps} steps",
        f"store     s/step   stall, s   written after, s   CPU, s   of training at one per {EVERY} steps",
    ]
    lines += [
        f"{each.store:<8}  {each.step:>6.3f}   {each.stall:>8.4f}   {each.write:>16.3f}   {each.cpu:>6.3f}   "
        f"{100 * each.stalled_share:.3f} % waiting, at most {100 * each.share_at_most:.2f} %"
        for each in costs
    ]
    return "\n".join(lines)


def _steps(run: Run, batch: Batch, count: int) -> None:
    for _ in range(count):
        train_step(run, [batch])


class _Deaf:
    """A driver that keeps the numbers."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def emit(self, event: Event) -> None:
        if isinstance(event, Measured):
            self.values |= event.metrics

    def control_signal(self, step: int) -> ControlSignal:
        return ControlSignal.CONTINUE
