"""Run tasks in several processes of this machine.

A worker process ends when its parent dies, because its pipe breaks. A worker that dies, for example out of memory,
is reported as an error.
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
from shards.progress import ProgressCallback

T = TypeVar("T")
R = TypeVar("R")
RowsCallback = Callable[[int, str], None]
"""Called with the number of rows finished since the last call, and the id of the last one."""


class TaskRunner(Protocol):
    """Protocol of an executor of tasks: in this process, in several, or on a cluster."""

    def __call__(
        self, work: Callable[[T, RowsCallback], R], tasks: Sequence[T], on_rows: RowsCallback
    ) -> Iterator[tuple[int, R]]:
        """Yield index and result of every task as they finish. `work` must be importable by name."""


def count_rows(on_progress: ProgressCallback | None, total: int) -> RowsCallback:
    """Return a callback that adds up the finished rows of all tasks and reports the sum."""
    done = 0

    def on_rows(rows: int, id_: str) -> None:
        nonlocal done
        done += rows
        if on_progress is not None:
            on_progress(done, total, id_)

    return on_rows


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def run_inline(
    work: Callable[[T, RowsCallback], R], tasks: Sequence[T], on_rows: RowsCallback
) -> Iterator[tuple[int, R]]:
    """Run the tasks one after another in this process."""
    for index, task in enumerate(tasks):
        yield index, work(task, on_rows)


class ProcessPool:
    """Executor with at most `jobs` processes; a single task or job runs in this process."""

    def __init__(self, jobs: int) -> None:
        if jobs < 1:
            raise PackError(f"jobs is {jobs}; it must be at least 1.")
        self.jobs = jobs

    def __call__(
        self, work: Callable[[T, RowsCallback], R], tasks: Sequence[T], on_rows: RowsCallback
    ) -> Iterator[tuple[int, R]]:
        """Yield index and result of every task as they finish."""
        if min(self.jobs, len(tasks)) < 2:
            yield from run_inline(work, tasks, on_rows)
            return
        # Threads of this process, boto3's too, do not survive a fork.
        context = multiprocessing.get_context("spawn")
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
            "processes with --processes. Finished shards are kept: run the same command again to continue."
        )


def _serve(connection: Connection, work: Callable[[Any, RowsCallback], Any]) -> None:
    """Run tasks until there are no more, or until the parent process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends its workers
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
