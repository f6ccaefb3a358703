"""Throughput of runs: measured in a run, stored beside the runs of a store, read by `plan` for the next one.

    <storage>/timings/<run>.json      {"job": the sections that decide the speed, "pace": the measurement}

Only finished runs are stored. A plan uses those on the same kind of device and in the same precision.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field

from orchestrator.config.renamed import with_current_names
from orchestrator.config.schema import Job
from orchestrator.paths import below
from orchestrator.records import RecordError, read_record
from shards.errors import MissingObjectError, ObjectExistsError, ShardsError
from shards.store import Store, open_store
from shards.store.checked import read_checked

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_MIN_STEPS = 5
"""Minimum number of measured steps; the first ones are slow."""
_MAX_RECORDS = 40
"""Maximum number of records of a store that a plan reads."""
_BUSY_LOAD = 1.5
"""Load per core above which a machine counts as busy with other work."""
_SPEED_SECTIONS = ("model", "data", "train", "engine", "workers")


@dataclass(frozen=True)
class Throughput:
    """Throughput of a run, measured by worker 0."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

    seconds_per_step: Annotated[float, Field(gt=0)]
    """Median time from the end of one step to the end of the next, including waits for data."""
    steps: Annotated[int, Field(ge=1)]
    workers: Annotated[int, Field(ge=1)]
    device: str
    load_per_core: float | None = None
    """Load average of the machine over its cores at the end; None in records of older versions."""

    @property
    def is_busy(self) -> bool:
        """Return whether other work slowed the run down: it loads each core with at most about one process."""
        return self.load_per_core is not None and self.load_per_core > _BUSY_LOAD


@dataclass(frozen=True)
class _Record:
    job: dict[str, Any]
    pace: Throughput


class StepTimer:
    """Measures the time between ends of steps."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=2000)

    def step_ended(self) -> None:
        """Record the end of a step."""
        self._ends.append(time.monotonic())

    def throughput(self, workers: int, device: torch.device) -> Throughput | None:
        """Return the throughput so far, None with too few steps."""
        ends = list(self._ends)
        steps = len(ends) - 1
        if steps < _MIN_STEPS:
            return None
        seconds = statistics.median(b - a for a, b in pairwise(ends))
        name = "CPU"
        if device.type == "cuda":
            import torch

            name = torch.cuda.get_device_name(device)
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
        return Throughput(seconds, steps, workers, name, load)


def store_throughput(job: Job, run: str, throughput: Mapping[str, Any] | None) -> None:
    """Store the throughput of the finished `run` in the store of its job; a failure is a warning."""
    if throughput is None:
        return
    content = job.model_dump(mode="json", include=set(_SPEED_SECTIONS))
    data = json.dumps({"job": content, "pace": throughput}, sort_keys=True).encode()
    key = f"{run}.json"
    try:
        store = _timings(job.storage)
        try:
            store.write(key, data)
        except ObjectExistsError:  # of an earlier training of the run, or damaged
            store.delete(key)
            store.write(key, data)
    except ShardsError as error:  # the result does not depend on it
        log.warning("plans will not know how fast run %s was: %s", run, error)


def earlier_runs(job: Job) -> list[tuple[Job, Throughput]]:
    """Return the jobs and throughputs of earlier runs in the job's store; none where it cannot be reached.

    Records that this version cannot read are ignored.
    """
    found: list[tuple[Job, Throughput]] = []
    with suppress(ShardsError, FileNotFoundError):
        store = _timings(job.storage)
        for key in store.list()[-_MAX_RECORDS:]:
            with suppress(MissingObjectError, ValueError, TypeError, AttributeError):
                record = read_checked(store, key, partial(read_record, _Record), RecordError)
                values, _ = with_current_names({**job.model_dump(mode="json"), **record.job})
                found.append((Job.model_validate(values), record.pace))
    return found


def _timings(storage: str) -> Store:
    return open_store(below(storage, "timings"))
