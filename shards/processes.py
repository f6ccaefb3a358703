"""Work spread over processes of this machine, results in any order, nothing left behind when it is killed.

A process ends by itself when the one that started it dies: its pipe breaks. One that dies (for want of memory,
say) is an error that says so, never a hang.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol, TypeVar

from shards.errors import PackError, ShardsError

T = TypeVar("T")
R = TypeVar("R")
RowsCallback = Callable[[int, str], None]
"""Called with the number of rows that are done since the last call, and the id of the last of them."""


class TaskRunner(Protocol):
    """Somewhere to do tasks: here, in processes, on a cluster."""

    def __call__(
        self, work: Callable[[T, RowsCallback], R], tasks: Sequence[T], on_rows: RowsCallback
    ) -> Iterator[tuple[int, R]]:
        """Index and result of every task, in the order in which they end. `work` must be importable by name."""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def run_inline(
    work: Callable[[T, RowsCallback], R], tasks: Sequence[T], on_rows: RowsCallback
) -> Iterator[tuple[int, R]]:
    """One task after another in this process."""
    for index, task in enumerate(tasks):
        yield index, work(task, on_rows)


class ProcessPool:
    """Tasks in at most `jobs` processes; one task, or one job, stays in this process."""

    def __init__(self, jobs: int) -> None:
        if jobs < 1:
            raise PackError(f"jobs is {jobs}; at least one process is needed.")
        self.jobs = jobs

    def __call__(
        self, work: Callable[[T, RowsCallback], R], tasks: Sequence[T], on_rows: RowsCallback
    ) -> Iterator[tuple[int, R]]:
        """Index and result of every task, in the order in which they end."""
        if min(self.jobs, len(tasks)) < 2:
            yield from run_inline(work, tasks, on_rows)
            return
        context = multiprocessing.get_context(
            "spawn"
        )  # threads of this process, boto3's too, do not survive a fork
        waiting = iter(enumerate(tasks))
        pool: dict[Connection, SpawnProcess] = {}
        try:
            for _ in range(min(self.jobs, len(tasks))):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, work), daemon=True)
                process.start()
                theirs.close()
                pool[ours] = process
                ours.send(next(waiting, None))
            busy = set(pool)
            while busy:
                for connection in wait(list(busy)):
                    assert isinstance(connection, Connection)
                    message = _receive(connection, pool[connection])
                    if isinstance(message, BaseException):
                        raise message
                    kind, *content = message
                    if kind == "rows":
                        on_rows(*content)
                        continue
                    yield content[0], content[1]
                    following = next(waiting, None)
                    connection.send(following)
                    if following is None:
                        busy.discard(connection)
        finally:
            for connection, process in pool.items():
                process.terminate()
                process.join()
                connection.close()


def _receive(connection: Connection, process: SpawnProcess) -> Any:
    try:
        return connection.recv()
    except (EOFError, OSError):
        process.join(10)
        return PackError(
            f"a packing process ended unexpectedly (exit status {process.exitcode}). If memory ran out, use fewer "
            "with --jobs. What is packed already is kept: pack again to go on."
        )


def _serve(connection: Connection, work: Callable[[Any, RowsCallback], Any]) -> None:
    """Do tasks until there are none, or until whoever sends them is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that started us, which ends us
    try:
        while (item := connection.recv()) is not None:
            index, task = item
            try:
                result = work(task, lambda rows, name: connection.send(("rows", rows, name)))
            except ShardsError as error:
                connection.send(error)
                return
            connection.send(("done", index, result))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
