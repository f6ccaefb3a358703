from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from orchestrator.serving.admission import AdmissionControl, UploadBudget, UploadsFullError


def test_it_admits_as_many_requests_as_its_capacity() -> None:
    admission = AdmissionControl(2)
    assert [admission.acquire() for _ in range(3)] == [True, True, False]
    admission.release()
    assert admission.acquire()
    assert admission.in_flight == 2


def test_retry_after_follows_the_mean_duration_and_the_number_of_replicas() -> None:
    admission = AdmissionControl(1)
    assert admission.retry_after(1) == 1
    admission.acquire()
    admission.release(30.0)
    assert admission.retry_after(1) == 30
    assert admission.retry_after(4) == 8
    admission.acquire()
    admission.release(1000.0)
    assert admission.retry_after(1) == 60


async def arriving(*sizes: int) -> AsyncIterator[bytes]:
    for size in sizes:
        yield b"x" * size


def test_uploads_together_hold_their_bytes_up_to_the_capacity_until_they_end() -> None:
    async def check() -> None:
        budget = UploadBudget(10)
        with budget.upload() as first:
            assert [len(chunk) async for chunk in first.counted(arriving(4, 3))] == [4, 3]
            assert budget.held == 7
            with budget.upload() as second:
                assert [len(chunk) async for chunk in second.counted(arriving(2, 1))] == [2, 1]
                with pytest.raises(UploadsFullError):
                    _ = [chunk async for chunk in second.counted(arriving(1))]
                assert budget.held == 10
            assert budget.held == 7
        assert budget.held == 0

    asyncio.run(check())


def test_a_duration_counts_a_fifth_in_the_mean_and_a_request_without_one_does_not() -> None:
    admission = AdmissionControl(1)
    for seconds in (10.0, 20.0, None):
        assert admission.acquire()
        admission.release(seconds)
    assert admission.retry_after(1) == 12
    assert admission.retry_after(0) == 12
