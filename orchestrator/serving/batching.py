"""Dynamic batching of waiting items with equal keys.

While one batch runs, other items arrive. When it ends, the item that has waited longest runs next, together with
others of its key up to the maximum. So an idle worker starts at once, and a busy one has full batches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")

StillWanted = Callable[[], bool]
"""Returns whether any caller still waits for a batch; thread-safe."""
RunBatch = Callable[[Key, Sequence[Item], StillWanted], Awaitable[Sequence[Result]]]


class Batcher(Generic[Key, Item, Result]):
    """Queue that runs items of equal key in batches, one batch at a time; used from one event loop.

    run_batch: gets a key and its items, returns one result per item.
    max_batch: returns the largest number of items of a key in a batch.
    """

    def __init__(self, run_batch: RunBatch[Key, Item, Result], max_batch: Callable[[Key], int]) -> None:
        self._run_batch = run_batch
        self._max_batch = max_batch
        self._waiting: list[tuple[Key, Item, asyncio.Future[Result]]] = []
        self._running: asyncio.Task[None] | None = None

    async def submit(self, key: Key, item: Item) -> Result:
        """Return the result of one item. Cancelling the caller removes the item, unless its batch has started."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, item, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while batch := self._next_batch():
            key, futures = batch[0][0], [future for _, _, future in batch]

            def still_wanted(futures: Sequence[asyncio.Future[Result]] = futures) -> bool:
                return not all(future.done() for future in futures)

            try:
                results = await self._run_batch(key, [item for _, item, _ in batch], still_wanted)
                assert len(results) == len(batch)
            except Exception as error:  # raised to the callers; the next batch must run
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
            else:
                for future, result in zip(futures, results, strict=True):
                    if not future.done():
                        future.set_result(result)
        self._running = None

    def _next_batch(self) -> list[tuple[Key, Item, asyncio.Future[Result]]]:
        self._waiting = [entry for entry in self._waiting if not entry[2].done()]
        if not self._waiting:
            return []
        key = self._waiting[0][0]
        batch = [entry for entry in self._waiting if entry[0] == key][: self._max_batch(key)]
        taken = {id(future) for _, _, future in batch}
        self._waiting = [entry for entry in self._waiting if id(entry[2]) not in taken]
        return batch
