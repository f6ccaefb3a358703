"""A replica holds a bounded number of pixels, whoever waits, leaves or sends what."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.serving import replica
from orchestrator.serving.pixel_budget import PixelBudget
from orchestrator.serving.served_model import ServedModel
from tests.orchestrator.serving.inprocess import image_bytes, running

CAPACITY = 10


@settings(max_examples=200, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.integers(0, 15), st.integers(0, 4), st.one_of(st.none(), st.integers(0, 6))), max_size=12
    )
)
def test_what_is_held_never_exceeds_the_budget_and_everybody_left_has_a_turn(
    requests: list[tuple[int, int, int | None]],
) -> None:
    """Each request has pixels, the number of turns of the event loop that it takes, and when it leaves, if it does."""

    async def run() -> None:
        budget, held, most, done = PixelBudget(CAPACITY), 0, 0, []

        async def request(number: int, pixels: int, turns: int) -> None:
            nonlocal held, most
            async with budget.reserve(pixels):
                held += min(pixels, CAPACITY)
                most = max(most, held)
                try:
                    for _ in range(turns):
                        await asyncio.sleep(0)
                finally:
                    held -= min(pixels, CAPACITY)
            done.append(number)

        tasks = [
            asyncio.create_task(request(i, pixels, turns)) for i, (pixels, turns, _) in enumerate(requests)
        ]
        for turn in range(8):
            for task, (_, _, leaves) in zip(tasks, requests, strict=True):
                if leaves == turn:
                    task.cancel()
            await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert most <= CAPACITY
        assert set(done) >= {i for i, (_, _, leaves) in enumerate(requests) if leaves is None}
        async with asyncio.timeout(5), budget.reserve(CAPACITY):
            assert held == 0

    asyncio.run(run())


def test_a_replica_decodes_no_more_than_two_of_the_largest_images_at_a_time(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, encode = replica.decode, replica.encode
    held: list[int] = []
    most = 0

    def counted_decode(*arguments: Any) -> Any:
        nonlocal most
        held.append(1)
        most = max(most, len(held))
        return decode(*arguments)

    def counted_encode(*arguments: Any) -> Any:
        made = encode(*arguments)
        held.pop()
        return made

    monkeypatch.setattr(replica, "MIN_PIXELS", 0)
    monkeypatch.setattr(replica, "decode", counted_decode)
    monkeypatch.setattr(replica, "encode", counted_encode)
    images = [image_bytes(90, 60, seed=seed) for seed in range(8)]
    with running(model, max_pixels=90 * 60) as service, ThreadPoolExecutor(8) as pool:
        assert [reply.status for reply in pool.map(service.restore, images)] == [200] * 8
    assert most == 2


@pytest.mark.parametrize(
    "data", [b"", b"no image", image_bytes()[:20], image_bytes()], ids=["empty", "text", "cut", "image"]
)
def test_the_pixels_of_a_header_are_zero_where_it_has_none(data: bytes) -> None:
    assert replica.pixels_in_header(data) == (40 * 24 if data == image_bytes() else 0)
