"""Run a function in several processes without waiting for each of them to import torch."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence

import torch.multiprocessing


def run_processes(
    function: Callable[..., None], number: int, *arguments: object, also: Sequence[str] = ()
) -> None:
    """Call function(rank, *arguments) in `number` processes and wait for them. Raises what one of them raises.

    They have the environment that this process had when it used a forkserver first, and need not import `also` then.
    """
    # torch imports torch._dynamo with the first optimizer, which takes longer than all else that a process does.
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["orchestrator.training.loop", "torch._dynamo", *also]
    )
    running = torch.multiprocessing.start_processes(
        function, arguments, number, join=False, start_method="forkserver"
    )
    try:
        while not running.join():
            pass
    finally:
        for process in running.processes:
            process.kill()
