"""Dynamic batching: what waits and is alike runs together, and nothing waits for company.

While one batch runs, others arrive. When it ends, the one that has waited longest goes next and takes along those of
its own key, as many as fit. An idle restorer therefore starts at once, and a busy one has full batches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")

Wanted = Callable[[], bool]
"""Whether somebody still waits for anything of a batch; may be asked from any thread."""
Run = Callable[[Key, Sequence[Item], Wanted], Awaitable[Sequence[Result]]]


class Batcher(Generic[Key, Item, Result]):
    """Runs items in batches of equal key, one batch at a time; used from one event loop.

    run: gets a key and its items, returns as many results.
    most: how many items of a key make a batch at most.
    """

    def __init__(self, run: Run[Key, Item, Result], most: Callable[[Key], int]) -> None:
        self._run = run
        self._most = most
        self._waiting: list[tuple[Key, Item, asyncio.Future[Result]]] = []
        self._running: asyncio.Task[None] | None = None

    async def submit(self, key: Key, item: Item) -> Result:
        """Return the result of one item. Cancelling the caller takes the item out, if it has not started."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, item, future))
        if self._running is None:
            self._running = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while batch := self._next():
            key, futures = batch[0][0], [future for _, _, future in batch]

            def wanted(futures: Sequence[asyncio.Future[Result]] = futures) -> bool:
                return not all(future.done() for future in futures)

            try:
                results = await self._run(key, [item for _, item, _ in batch], wanted)
                assert len(results) == len(batch)
            except Exception as error:  # it belongs to those who wait; the next batch must run
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
            else:
                for future, result in zip(futures, results, strict=True):
                    if not future.done():
                        future.set_result(result)
        self._running = None

    def _next(self) -> list[tuple[Key, Item, asyncio.Future[Result]]]:
        self._waiting = [entry for entry in self._waiting if not entry[2].done()]
        if not self._waiting:
            return []
        key = self._waiting[0][0]
        batch = [entry for entry in self._waiting if entry[0] == key][: self._most(key)]
        taken = {id(future) for _, _, future in batch}
        self._waiting = [entry for entry in self._waiting if id(entry[2]) not in taken]
        return batch
