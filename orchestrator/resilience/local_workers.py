"""Local worker group without Ray: processes that use gloo and can be killed at a given step."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch
import torch.distributed as dist

from orchestrator.console import text
from orchestrator.errors import TrainingError
from orchestrator.events import Event
from orchestrator.training.assignment import WorkerAssignment
from orchestrator.training.driver import ControlSignal
from orchestrator.training.engines.base import Engine
from orchestrator.training.engines.factory import engine_for

_POLL_SECONDS = 0.05
_ONE_HOUR_SECONDS = 3600


@dataclass(frozen=True)
class LocalSegment:
    """One start of a run on local workers, and how it ends."""

    run: WorkerAssignment
    world_size: int
    steps: int
    """Number of steps to run."""
    victim: int | None = None
    """Rank that gets SIGKILL after the last step, before a checkpoint; None: all stop with a checkpoint."""


def run_local_segment(segment: LocalSegment, timeout_seconds: float = _ONE_HOUR_SECONDS) -> None:
    """Run `segment` to its end. Raises TrainingError if a worker does not end as specified."""
    # The fork server imports torch once for all workers, and what torch imports with the first optimizer: seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo"])
    with tempfile.TemporaryDirectory(prefix="mirage-segment-") as folder:
        ranks = range(segment.world_size)
        workers = [
            context.Process(target=_work, args=(segment, rank, Path(folder), dict(os.environ)))
            for rank in ranks
        ]
        try:
            for worker in workers:
                worker.start()
            status = _wait(workers, time.monotonic() + timeout_seconds)
        finally:
            for worker in workers:
                worker.kill()
                worker.join()
        expected_status = (
            {segment.victim: -signal.SIGKILL} if segment.victim is not None else dict.fromkeys(ranks, 0)
        )
        for rank, expected in expected_status.items():
            if status.get(rank) != expected:
                output = _output_file(Path(folder), rank).read_text(errors="replace").splitlines()
                raise TrainingError(
                    f"worker {rank} of {segment.world_size} ended with status {status.get(rank)}, not {expected}:\n"
                    + "\n".join(output[-8:])
                )


def _wait(workers: list[ForkServerProcess], deadline: float) -> dict[int, int]:
    """Wait until all workers have ended or one has failed; return exit statuses by rank."""
    while True:
        ended = {rank: code for rank, worker in enumerate(workers) if (code := worker.exitcode) is not None}
        if len(ended) == len(workers) or any(ended.values()) or time.monotonic() > deadline:
            return ended
        time.sleep(_POLL_SECONDS)


def _output_file(folder: Path, rank: int) -> Path:
    return folder / f"worker-{rank}.txt"


class _HeadlessDriver:
    """Headless driver that stops the segment after its number of steps."""

    def __init__(self, segment: LocalSegment, rank: int) -> None:
        self._steps_left = segment.steps
        self._is_victim = segment.victim == rank
        self._all_survive = segment.victim is None

    def emit(self, event: Event) -> None:
        if line := text(event):
            print(line, flush=True)  # to the output file, which is shown if the worker fails

    def control_signal(self, step: int) -> ControlSignal:
        self._steps_left -= 1
        if self._steps_left > 0:
            return ControlSignal.CONTINUE
        if self._is_victim:
            os.kill(os.getpid(), signal.SIGKILL)
        if not self._all_survive:
            time.sleep(_ONE_HOUR_SECONDS)  # the parent kills this worker once the victim has ended
        return ControlSignal.STOP


def _work(segment: LocalSegment, rank: int, folder: Path, environment: Mapping[str, str]) -> None:
    """Run one worker with its output redirected to a file."""
    with _output_file(folder, rank).open("wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    try:
        _train(segment, rank, folder / "rendezvous")
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # gloo threads may wait for ended workers


def _train(segment: LocalSegment, rank: int, rendezvous: Path) -> None:
    job = segment.run.resolved_job()
    torch.set_num_threads(max(1, int(job.workers.cpus)))
    device = torch.device("cpu")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(segment.world_size))
    single = segment.world_size == 1 and job.engine.name == "ddp"
    if not single:
        timeout = timedelta(seconds=job.workers.collective_timeout_seconds)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{rendezvous}",
            rank=rank,
            world_size=segment.world_size,
            timeout=timeout,
        )
    engine = Engine(device, job.train.precision) if single else engine_for(job, device)
    segment.run.train(job, engine, _HeadlessDriver(segment, rank))
    if not single:
        dist.destroy_process_group()
