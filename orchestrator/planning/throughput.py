"""How fast runs went: measured in the run, kept beside the runs of a store, read by `plan` for the next one.

    <storage>/timings/<run>.json      {"job": what decides the time, "pace": what was measured}

Only finished runs leave one. A plan takes those on the same kind of device and in the same precision, and turns them
into multiply-adds per second of one worker.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch

from orchestrator.config.renamed import with_current_names
from orchestrator.config.schema import Job
from orchestrator.paths import below
from shards.errors import MissingObjectError, ShardsError
from shards.store import Store, open_store

_LEAST_STEPS = 5
"""Fewer say nothing: the first ones warm up."""
_MOST_RECORDS = 40
"""Of one store that a plan reads."""
_DECIDES = ("model", "data", "train", "engine", "workers")


@dataclass(frozen=True)
class Throughput:
    """What a run measured of itself, on worker 0."""

    seconds_per_step: float
    """Median from the end of one step to the end of the next, waiting for data included."""
    steps: int
    workers: int
    device: str


class StepTimer:
    """Notes the ends of steps."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=2000)

    def step_ended(self) -> None:
        """Note it."""
        self._ends.append(time.monotonic())

    def pace(self, workers: int, device: torch.device) -> Throughput | None:
        """Return the pace so far, None while it says nothing."""
        ends = list(self._ends)
        steps = len(ends) - 1
        if steps < _LEAST_STEPS:
            return None
        seconds = statistics.median(b - a for a, b in pairwise(ends))
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        return Throughput(seconds, steps, workers, name)


def store_throughput(job: Job, run: str, pace: Mapping[str, Any] | None) -> None:
    """Keep what the finished `run` measured beside the runs of its store."""
    if pace is None:
        return
    content = job.model_dump(mode="json", include=set(_DECIDES))
    record = {"job": content, "pace": pace}
    _timings(job.storage).write(f"{run}.json", json.dumps(record, sort_keys=True).encode())


def as_record(pace: Throughput | None) -> dict[str, Any] | None:
    """Return it as JSON values."""
    return None if pace is None else asdict(pace)


def earlier_runs(job: Job) -> list[tuple[Job, Throughput]]:
    """Return what earlier runs in the job's store measured, each with its job; nothing where the store is out of reach.

    Records of another version's schema are passed over.
    """
    from pydantic import ValidationError

    found: list[tuple[Job, Throughput]] = []
    try:
        store = _timings(job.storage)
        for key in store.list()[-_MOST_RECORDS:]:
            record = json.loads(store.read(key))
            values, _ = with_current_names({**job.model_dump(mode="json"), **record["job"]})
            try:
                found.append((Job.model_validate(values), Throughput(**record["pace"])))
            except (ValidationError, TypeError):
                continue
    except (ShardsError, MissingObjectError, FileNotFoundError):
        return found
    return found


def _timings(storage: str) -> Store:
    return open_store(below(storage, "timings"))
