"""One worker of `mirage bench scaling`: `python -m orchestrator.bench.scaling_worker SPEC RANK`, prints times as JSON.

All workers of a group do the same at the same time. First each trains on its share alone, under the load that the
others cause; then all train together; then each alone again. The additional time of a step together is communication.
In between, the collectives of a step are timed on their own, with the sizes of the model's.
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
from mirage.collective import BatchShare
from mirage.loss import LossWeights, restoration_loss
from orchestrator.training.engines.base import Engine
from orchestrator.training.engines.ddp import DDPEngine
from shards.cache import ShardCache
from shards.dataset import Dataset
from shards.stream import Batch, TrainStream

DEGRADATIONS = ("noise25", "rain", "haze")
_WARM_UP = 1


@dataclass(frozen=True)
class ScalingSpec:
    """What the workers of a group measure."""

    config: dict[str, Any]
    workers: int
    batch: int
    crop: int
    steps: int
    """Timed steps of each kind."""
    threads: int
    device: str
    data: str
    """Folder of a packed dataset."""
    folder: str
    """Folder through which the workers of a group find each other."""


@dataclass(frozen=True)
class WorkerTimes:
    """Times measured by one worker [s]."""

    alone: list[float]
    """Steps on its own share without communication."""
    together: list[float]
    data: list[float]
    """Waits for the batches of the steps together."""
    gradients: float
    """One all-reduce of the model's gradients."""
    small: float
    """One all-reduce of a batch norm's sums."""


@dataclass(frozen=True)
class ScalingRow:
    """Times on one number of workers: medians over steps, of the slowest worker [s]."""

    workers: int
    share: int
    """Images of the largest share."""
    compute: float
    communication: float
    data: float
    spread: float
    """Standard deviation of the steps over their mean."""
    gradients: float
    small: float

    @property
    def step(self) -> float:
        """Time of a step [s]."""
        return self.compute + self.communication + self.data


def main(spec: ScalingSpec, rank: int) -> WorkerTimes:
    """Measure as worker `rank`."""
    torch.set_num_threads(spec.threads)
    device = torch.device(spec.device, rank) if spec.device == "cuda" else torch.device("cpu")
    stream = TrainStream(
        Dataset([spec.data], ShardCache(Path(spec.folder) / f"cache-{rank}", 2**30)),
        [(name, 50) for name in DEGRADATIONS],
        seed=0,
        crop_pixels=spec.crop,
        global_batch_size=spec.batch,
    )
    batches = stream.steps(0, spec.workers, rank)
    first = next(batches)
    with _group(spec, rank, "meet"):
        pass  # all have imported everything: from here on they run at the same time
    alone = _steps(spec, Engine(device), lambda: first)[0]
    with _group(spec, rank, "work"):
        together, waited = _steps(spec, DDPEngine(device), lambda: next(batches))
        sums = 2 * int(spec.config["dim"]) + 1
        gradients = _collective(spec, device, sum(p.numel() for p in MIRAGE(_config(spec)).parameters()), 5)
        small = _collective(spec, device, sums, 70)
    alone += _steps(spec, Engine(device), lambda: first)[0]
    return WorkerTimes(alone, together, waited, gradients, small)


def _steps(spec: ScalingSpec, engine: Engine, draw: Callable[[], Batch]) -> tuple[list[float], list[float]]:
    """Take steps of a new model; return the seconds of each without waiting for data, and those of waiting."""
    torch.manual_seed(0)
    model = MIRAGE(_config(spec)).to(engine.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, fused=True)
    wrapped = engine.wrap(model, optimizer)
    took, waited = [], []
    for _ in range(_WARM_UP + spec.steps):
        begin = time.perf_counter()
        batch = draw()
        _synchronize(engine.device)
        drawn = time.perf_counter()
        degraded, clean = batch.to_float(engine.device, 0, "release")
        with engine.sync(last=True):
            output = wrapped(degraded, batch.positions.to(engine.device))
            share = BatchShare(*batch.share) if engine.world_size > 1 else None
            engine.backward(restoration_loss(output, clean, LossWeights(), share).total)
        engine.step(optimizer, None)
        _synchronize(engine.device)
        waited.append(drawn - begin)
        took.append(time.perf_counter() - drawn)
    return took[_WARM_UP:], waited[_WARM_UP:]


def _collective(spec: ScalingSpec, device: torch.device, numbers: int, repeats: int) -> float:
    """Return the median seconds of an all-reduce of so many numbers; 0 for a single worker."""
    if spec.workers == 1:
        return 0.0
    values, found = torch.zeros(numbers, device=device), []
    for _ in range(repeats + 2):
        dist.barrier()
        begin = time.perf_counter()
        dist.all_reduce(values)
        _synchronize(device)
        found.append(time.perf_counter() - begin)
    return statistics.median(found[2:])


@contextmanager
def _group(spec: ScalingSpec, rank: int, name: str) -> Iterator[None]:
    dist.init_process_group(
        "nccl" if spec.device == "cuda" else "gloo",
        init_method=f"file://{spec.folder}/{name}",
        rank=rank,
        world_size=spec.workers,
    )
    try:
        dist.barrier()
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _config(spec: ScalingSpec) -> ModelConfig:
    return ModelConfig.from_dict(spec.config)


if __name__ == "__main__":
    spec = ScalingSpec(**json.loads(Path(sys.argv[1]).read_text()))
    print(json.dumps(asdict(main(spec, int(sys.argv[2])))))
