"""Readers that hang, die or fail never hang a run, and those that replace them deliver the same items."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shards import readers
from shards.errors import CorruptObjectError, ReaderError
from shards.readers import ATTEMPTS, read_in_processes

ITEMS = 6


PATIENCE_SECONDS = 120
"""For readers that do not hang: a busy machine may start them late."""


@pytest.fixture(scope="module", autouse=True)
def started(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Start the process that readers are forked from; it imports torch, which takes seconds."""
    read = Read(tmp_path_factory.mktemp("none"), die, 0, 0)
    assert values(items(read, timeout_seconds=PATIENCE_SECONDS)) == list(range(ITEMS))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_POLL_SECONDS", 0.2)


class Read:
    """Reads an item; at `at`, the first `times` readers get into trouble."""

    def __init__(self, folder: Path, trouble: Callable[[], None], at: int, times: int) -> None:
        self.folder, self.trouble, self.at, self.times = folder, trouble, at, times

    def __call__(self, index: int) -> Tensor:
        if index == self.at:
            for attempt in range(self.times):
                try:
                    (self.folder / str(attempt)).touch(exist_ok=False)
                except FileExistsError:
                    continue
                self.trouble()
        return torch.full((3,), index)


def hang() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def exit_early() -> None:
    os._exit(0)


def items(read: Callable[[int], Tensor], **options: object) -> Iterator[Tensor]:
    numbers = lambda done: islice(range(ITEMS), done, None)  # noqa: E731
    return read_in_processes(read, numbers, 2, **{"timeout_seconds": 3, **options})


def values(found: Iterator[Tensor]) -> list[int]:
    return [int(item[0]) for item in found]


@pytest.mark.parametrize("at", [0, 3, ITEMS - 1])
@pytest.mark.parametrize("trouble", [hang, die, exit_early])
def test_a_reader_in_trouble_is_named_and_replaced_and_every_item_arrives_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: Callable[[], None], at: int
) -> None:
    patience = {} if trouble is hang else {"timeout_seconds": PATIENCE_SECONDS}
    assert values(items(Read(tmp_path, trouble, at, 1), **patience)) == list(range(ITEMS))
    (*_, warning) = caplog.messages
    assert len(caplog.messages) == 1 or trouble is hang  # a busy machine may start a reader too late
    assert "reader process" in warning
    assert "the same samples" in warning


@pytest.mark.parametrize("trouble", [hang, die])
def test_readers_that_fail_again_and_again_end_in_one_clear_error(
    tmp_path: Path, trouble: Callable[[], None]
) -> None:
    arrived: list[int] = []
    patience = {} if trouble is hang else {"timeout_seconds": PATIENCE_SECONDS}
    with pytest.raises(ReaderError, match=r"data\.readers: reader process \d+.*3 times in a row"):
        arrived.extend(int(item[0]) for item in items(Read(tmp_path, trouble, 0, ATTEMPTS), **patience))
    assert arrived == []


def test_two_failures_between_items_that_arrive_are_not_in_a_row(tmp_path: Path) -> None:
    read = Read(tmp_path, die, 2, ATTEMPTS - 1)
    assert values(items(read, timeout_seconds=PATIENCE_SECONDS)) == list(range(ITEMS))


def test_a_hung_reader_is_replaced_soon_once_the_process_is_asked_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "STOPPING_SECONDS", 3)
    read = Read(tmp_path, hang, 3, 1)
    assert values(items(read, timeout_seconds=10_000, stopping=lambda: True)) == list(range(ITEMS))


def test_a_full_shared_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_shared_memory_left", lambda: 4096)
    with pytest.raises(ReaderError, match=r"/dev/shm, through which .* has 0\.0 MiB left.*--shm-size"):
        values(items(Read(tmp_path, hang, 1, ATTEMPTS), timeout_seconds=10_000))


def test_readers_that_cannot_start_are_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a /dev/shm of 64 KiB, where not even their locks have room."""
    monkeypatch.setattr(readers, "_shared_memory_left", lambda: 0)

    def no_room(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(readers.DataLoader, "__iter__", no_room)
    with pytest.raises(ReaderError, match=r"do not start: .*No space left on device.*/dev/shm.*0\.0 MiB"):
        values(items(Read(tmp_path, hang, 1, 0)))


class UnpicklableError(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


def corrupt() -> None:
    raise CorruptObjectError("shard 7 is damaged")


def out_of_memory() -> None:
    raise MemoryError("no more")


def runtime_error() -> None:
    raise RuntimeError("of the code that reads")


def unpicklable() -> None:
    raise UnpicklableError("a", "b")


@pytest.mark.parametrize(
    ("trouble", "kind", "text"),
    [
        (corrupt, CorruptObjectError, "shard 7 is damaged"),
        (out_of_memory, MemoryError, "no more"),
        (runtime_error, RuntimeError, "of the code that reads"),
        (unpicklable, RuntimeError, "UnpicklableError: a"),
    ],
)
def test_an_error_of_the_code_that_reads_is_raised_as_it_is_and_not_tried_again(
    tmp_path: Path, trouble: Callable[[], None], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        values(items(Read(tmp_path, trouble, 1, 1), timeout_seconds=PATIENCE_SECONDS))
