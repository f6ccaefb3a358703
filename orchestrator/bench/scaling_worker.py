"""One worker of `mirage bench scaling`: `python -m orchestrator.bench.scaling_worker TASK RANK`, times out as JSON.

All workers of a group do the same at the same time. First each trains its share by itself, which is computing with the
others' load on the machine; then all train together; then each by itself again. What a step takes longer together is
talking. In between, the collectives of a step are timed alone, with sizes of the model's.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mirage import MIRAGE, ModelConfig
from mirage.collective import Share
from mirage.loss import LossWeights, restoration_loss
from orchestrator.training.engines.base import Engine, InProcessEngine
from orchestrator.training.engines.ddp import DDPEngine
from shards.cache import ShardCache
from shards.dataset import Dataset
from shards.stream import Batch, TrainStream

DEGRADATIONS = ("noise25", "rain", "haze")
_WARM_UP = 1


@dataclass(frozen=True)
class Task:
    """What a group of workers does."""

    config: dict[str, Any]
    workers: int
    batch: int
    crop: int
    steps: int
    """Timed ones of each sort."""
    threads: int
    device: str
    data: str
    """Folder of a packed dataset."""
    folder: str
    """Where the workers of this group find each other."""


@dataclass(frozen=True)
class Times:
    """Seconds that one worker measured."""

    alone: list[float]
    """Steps on its own share, nobody talking."""
    together: list[float]
    data: list[float]
    """Waiting for the batches of those."""
    gradients: float
    """One all-reduce of the model's gradients."""
    small: float
    """One all-reduce of a batch norm's sums."""


def main(task: Task, rank: int) -> Times:
    """Measure as worker `rank`."""
    torch.set_num_threads(task.threads)
    device = torch.device(task.device, rank) if task.device == "cuda" else torch.device("cpu")
    stream = TrainStream(
        Dataset([task.data], ShardCache(Path(task.folder) / f"cache-{rank}", 2**30)),
        [(name, 50) for name in DEGRADATIONS],
        seed=0,
        crop_pixels=task.crop,
        global_batch_size=task.batch,
    )
    batches = stream.steps(0, task.workers, rank)
    first = next(batches)
    with _group(task, rank, "meet"):
        pass  # all have imported and packed caches: from here on they run side by side
    alone = _steps(task, InProcessEngine(device), lambda: first)[0]
    with _group(task, rank, "work"):
        together, waited = _steps(task, DDPEngine(device), lambda: next(batches))
        sums = 2 * int(task.config["dim"]) + 1
        gradients = _collective(task, device, sum(p.numel() for p in MIRAGE(_config(task)).parameters()), 5)
        small = _collective(task, device, sums, 70)
    alone += _steps(task, InProcessEngine(device), lambda: first)[0]
    return Times(alone, together, waited, gradients, small)


def _steps(task: Task, engine: Engine, draw: Callable[[], Batch]) -> tuple[list[float], list[float]]:
    """Take steps of a fresh model; return the seconds of each without its data, and those of its data."""
    torch.manual_seed(0)
    model = MIRAGE(_config(task)).to(engine.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, fused=True)
    called = engine.wrap(model, optimizer)
    took, waited = [], []
    for _ in range(_WARM_UP + task.steps):
        begin = time.perf_counter()
        batch = draw()
        _finish(engine.device)
        drawn = time.perf_counter()
        degraded, clean = batch.to_float(engine.device, 0, "release")
        with engine.sync(last=True):
            output = called(degraded, batch.positions.to(engine.device))
            share = Share(*batch.share) if engine.world_size > 1 else None
            engine.backward(restoration_loss(output, clean, LossWeights(), share).total, last=True)
        engine.step(optimizer, None)
        _finish(engine.device)
        waited.append(drawn - begin)
        took.append(time.perf_counter() - drawn)
    return took[_WARM_UP:], waited[_WARM_UP:]


def _collective(task: Task, device: torch.device, numbers: int, times: int) -> float:
    """Median seconds of an all-reduce of so many numbers; 0 where there is nobody to talk to."""
    if task.workers == 1:
        return 0.0
    values, found = torch.zeros(numbers, device=device), []
    for _ in range(times + 2):
        dist.barrier()
        begin = time.perf_counter()
        dist.all_reduce(values)
        _finish(device)
        found.append(time.perf_counter() - begin)
    return statistics.median(found[2:])


@contextmanager
def _group(task: Task, rank: int, name: str) -> Iterator[None]:
    dist.init_process_group(
        "nccl" if task.device == "cuda" else "gloo",
        init_method=f"file://{task.folder}/{name}",
        rank=rank,
        world_size=task.workers,
    )
    try:
        dist.barrier()
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _config(task: Task) -> ModelConfig:
    return ModelConfig.from_dict(task.config)


if __name__ == "__main__":
    asked = Task(**json.loads(Path(sys.argv[1]).read_text()))
    print(json.dumps(asdict(main(asked, int(sys.argv[2])))))
