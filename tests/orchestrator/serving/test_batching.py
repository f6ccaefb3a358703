from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from orchestrator.serving.batching import Batcher, StillWanted


class Recorder:
    """Runs batches of integers and doubles them; the first batch waits for `go`."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.go = asyncio.Event()
        self.wanted: StillWanted | None = None

    async def run(self, key: str, items: Sequence[int], wanted: StillWanted) -> list[int]:
        self.batches.append((key, list(items)))
        self.wanted = wanted
        await self.go.wait()
        if 13 in items:
            raise ValueError("thirteen")
        return [2 * item for item in items]


async def waiting(batcher: Batcher[str, int, int], *entries: tuple[str, int]) -> list[asyncio.Task[int]]:
    tasks = []
    for key, item in entries:
        tasks.append(asyncio.create_task(batcher.submit(key, item)))
        await asyncio.sleep(0.01)
    return tasks


def test_items_of_equal_key_run_together_and_the_oldest_first() -> None:
    async def check() -> None:
        recorder = Recorder()
        batcher: Batcher[str, int, int] = Batcher(recorder.run, lambda key: 3)
        tasks = await waiting(
            batcher, ("a", 1), ("b", 2), ("a", 3), ("b", 4), ("a", 5), ("b", 6), ("b", 7), ("a", 8)
        )
        recorder.go.set()
        assert await asyncio.gather(*tasks) == [2, 4, 6, 8, 10, 12, 14, 16]
        assert recorder.batches == [("a", [1]), ("b", [2, 4, 6]), ("a", [3, 5, 8]), ("b", [7])]

    asyncio.run(check())


def test_an_error_is_raised_to_the_callers_of_its_batch_only() -> None:
    async def check() -> None:
        recorder = Recorder()
        recorder.go.set()
        batcher: Batcher[str, int, int] = Batcher(recorder.run, lambda key: 2)
        bad, good = await waiting(batcher, ("a", 13), ("b", 1))
        with pytest.raises(ValueError, match="thirteen"):
            await bad
        assert await good == 2

    asyncio.run(check())


def test_a_cancelled_caller_removes_its_item() -> None:
    async def check() -> None:
        recorder = Recorder()
        batcher: Batcher[str, int, int] = Batcher(recorder.run, lambda key: 2)
        first, second, third = await waiting(batcher, ("a", 1), ("a", 2), ("a", 3))
        second.cancel()
        await asyncio.sleep(0)
        recorder.go.set()
        assert [await first, await third] == [2, 6]
        assert recorder.batches == [("a", [1]), ("a", [3])]

    asyncio.run(check())


def test_a_running_batch_can_see_that_no_caller_waits() -> None:
    async def check() -> None:
        recorder = Recorder()
        batcher: Batcher[str, int, int] = Batcher(recorder.run, lambda key: 2)
        (only,) = await waiting(batcher, ("a", 1))
        assert recorder.wanted is not None
        assert recorder.wanted()
        only.cancel()
        await asyncio.sleep(0)
        assert not recorder.wanted()

    asyncio.run(check())
