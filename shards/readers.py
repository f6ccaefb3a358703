"""Read items in subprocesses, which are replaced when they hang or die.

What an item contains depends on its index alone, so new readers deliver the same ones. Batches pass through /dev/shm;
a reader that finds it full hangs or dies.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from multiprocessing.connection import wait
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from shards.errors import ReaderError, ShardsError

log = logging.getLogger(__name__)

I = TypeVar("I")  # noqa: E741  # an index
T = TypeVar("T")

ATTEMPTS = 3
"""Times that readers may fail in a row before an item arrives."""
STOPPING_SECONDS = 10.0
"""How long to wait for readers once the process is asked to stop."""
_POLL_SECONDS = 2.0
_CLOSE_SECONDS = 10.0
_END = object()
_LITTLE_MEMORY = 1 << 20
_SHARED_MEMORY = "/dev/shm"


def read_in_processes(
    read: Callable[[I], T],
    indices: Callable[[int], Iterable[I]],
    readers: int,
    *,
    timeout_seconds: float,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[T]:
    """Yield `read(index)` for each of `indices(0)`; `indices(n)` leaves out the first n.

    Readers of which nothing comes for `timeout_seconds` are replaced, and sooner while `stopping`. Raises ReaderError
    when they fail `ATTEMPTS` times in a row, and what `read` raises.
    """
    done = failures = 0
    while True:
        try:
            with closing(_Readers(read, indices(done), readers)) as running:
                for item in running.items(timeout_seconds, stopping):
                    done, failures = done + 1, 0
                    yield item
            return
        except _FailedError as error:
            failures += 1
            if failures == ATTEMPTS:
                raise ReaderError(
                    f"data.readers: {error}. So did those that replaced them, {ATTEMPTS} times in a row."
                    f"{_shared_memory_remedy()} With data.readers 0 the worker reads by itself. "
                    "Submit the job again to resume from its newest checkpoint."
                ) from error
            log.warning("%s; new readers read the same samples again", error)


class _FailedError(Exception):
    """Readers hang or are dead; the message names them."""


class _Raised:
    """An exception of `read`. Returned by a reader, since torch would hide its type behind text."""

    def __init__(self, error: Exception) -> None:
        if not isinstance(error, ShardsError):  # whose text says it all
            error.add_note(f"In a reader:\n{traceback.format_exc()}")
        try:
            pickle.loads(pickle.dumps(error))
            self.error = error
        except Exception:
            self.error = RuntimeError(traceback.format_exc())


class _Items(TorchDataset[Any], Generic[I, T]):
    """A map-style dataset for torch's DataLoader."""

    def __init__(self, read: Callable[[I], T]) -> None:
        self._read = read

    def __getitem__(self, index: I) -> T | _Raised:
        try:
            return self._read(index)
        except Exception as error:
            return _Raised(error)


class _Readers(Generic[I, T]):
    """One set of reader processes.

    A thread receives what they send: a reader that stops in the middle of a batch would block it for ever. It is then
    left behind, with the pipe that it reads from.
    """

    def __init__(self, read: Callable[[I], T], indices: Iterable[I], number: int) -> None:
        # Children of a fork server do not inherit this process's threads, locks or CUDA context.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["shards.stream"])
        loader: DataLoader[Any] = DataLoader(
            _Items(read),
            batch_size=None,
            sampler=indices,
            num_workers=number,
            multiprocessing_context=context,
            pin_memory=torch.cuda.is_available(),
        )
        before = {process.pid for process in multiprocessing.active_children()}
        try:
            loaded = iter(loader)
        except OSError as error:  # no room in /dev/shm, no process, no file left
            for process in _children_besides(before):
                process.kill()
            raise _FailedError(f"readers do not start: {error}") from error
        self._processes = _children_besides(before)
        self._received: queue.Queue[Any] = queue.Queue(1)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._receive, args=[loaded], name="readers", daemon=True)
        self._thread.start()

    def _receive(self, loaded: Iterator[Any]) -> None:
        try:
            for item in loaded:
                self._put(item)
                if self._closed.is_set():
                    return
            self._put(_END)
        except Exception as error:  # of torch: what `read` raises is an item
            self._put(_FailedError(repr(error)))

    def _put(self, item: Any) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._received.put(item, timeout=_POLL_SECONDS)
                return

    def items(self, timeout_seconds: float, stopping: Callable[[], bool]) -> Iterator[T]:
        """Yield the items. Raises _FailedError when readers hang or are dead."""
        try:
            yield from self._items(timeout_seconds, stopping)
        except _FailedError:
            self.kill()
            raise

    def _items(self, timeout_seconds: float, stopping: Callable[[], bool]) -> Iterator[T]:
        waiting_since = time.monotonic()
        while True:
            try:
                item = self._received.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                self._check(time.monotonic() - waiting_since, timeout_seconds, stopping)
                continue
            if item is _END:
                return
            if isinstance(item, _FailedError):
                wait([process.sentinel for process in self._processes], timeout=1)
                raise _FailedError(self._died() or f"reader process {self._named()} failed: {item}")
            if isinstance(item, _Raised):
                raise item.error
            yield item
            waiting_since = time.monotonic()

    def _check(self, waited: float, timeout: float, stopping: Callable[[], bool]) -> None:
        if died := self._died():
            raise _FailedError(died)
        limit = min(timeout, STOPPING_SECONDS) if stopping() else timeout
        left = _shared_memory_left()
        if waited > limit or (left is not None and left < _LITTLE_MEMORY):
            raise _FailedError(f"reader process {self._named()} delivered nothing for {waited:.0f} s")

    def _died(self) -> str:
        """Return which processes died, or ""."""
        dead = [f"{p.pid} (exit status {p.exitcode})" for p in self._processes if p.exitcode]
        return f"reader process {', '.join(dead)} died; -9 may be a lack of memory" if dead else ""

    def _named(self) -> str:
        return ", ".join(str(process.pid) for process in self._processes)

    def kill(self) -> None:
        """Kill the processes, also those that are suspended."""
        self._closed.set()
        for process in self._processes:
            process.kill()

    def close(self) -> None:
        """End the processes after their current item; kill those that do not end within seconds."""
        if not self._closed.is_set():
            self._closed.set()
            self._thread.join(_CLOSE_SECONDS)
        self.kill()


def _children_besides(known: set[int | None]) -> list[multiprocessing.process.BaseProcess]:
    return [process for process in multiprocessing.active_children() if process.pid not in known]


def _shared_memory_left() -> int | None:
    """Return the free bytes of /dev/shm, None if there is none."""
    try:
        found = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _shared_memory_remedy() -> str:
    left = _shared_memory_left()
    if left is None or left >= 64 * _LITTLE_MEMORY:
        return ""
    return (
        f" {_SHARED_MEMORY}, through which readers pass their batches, has {left / 2**20:.1f} MiB left: give it more "
        "(docker run --shm-size), or use fewer readers."
    )
