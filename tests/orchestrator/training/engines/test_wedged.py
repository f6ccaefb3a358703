"""A worker that hangs is noticed by the others: they wait for as long as the job says, and no longer."""

from __future__ import annotations

import multiprocessing
import time
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.config.schema import Job

PATIENCE_SECONDS = 2
WEDGED, TOLD, NOT_TOLD = 0, 3, 4


def work(rank: int, meeting: Path, job: Job, what: str) -> None:
    import os

    import torch
    import torch.distributed as dist

    from orchestrator.training.engines.ddp import timed_out_waiting
    from orchestrator.training.engines.factory import engine_for

    patience = timedelta(seconds=job.workers.collective_timeout_seconds)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=patience
    )
    engine = engine_for(job, torch.device("cpu"))
    engine.all_reduce_max(rank)
    if rank == 1:
        time.sleep(60)
        os._exit(WEDGED)
    try:
        if what == "a flag":
            engine.all_reduce_max(rank)
        else:
            engine.all_reduce_sum(torch.ones(3))
    except RuntimeError as error:
        os._exit(TOLD if timed_out_waiting(error) else NOT_TOLD)
    os._exit(NOT_TOLD)


@pytest.mark.parametrize("what", ["a flag", "a sum"])
def test_nobody_waits_for_ever_for_a_worker_that_hangs(small_job, tmp_path, what: str) -> None:
    job = small_job(workers={"min": 2, "max": 2, "collective_timeout_seconds": PATIENCE_SECONDS})
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["orchestrator.resilience.local_workers"])
    workers = [context.Process(target=work, args=(rank, tmp_path / "meeting", job, what)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    workers[0].join(60)
    assert workers[1].exitcode is None, "the other one was to hang"
    workers[1].kill()
    workers[1].join()
    assert workers[0].exitcode == TOLD
