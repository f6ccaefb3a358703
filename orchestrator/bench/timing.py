"""Paired measurement: every repeat runs all candidates in turn, so that a slow minute slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Clock = Callable[[Callable[[], object]], float]


@dataclass(frozen=True)
class Ratio:
    """Times of the reference over times of the candidate, repeat by repeat; above 1 the candidate is faster."""

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""

    def __str__(self) -> str:
        """Return the median with the quartiles in parentheses."""
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def cpu_seconds(run: Callable[[], object]) -> float:
    """Return the process's CPU time of one run, which does not include other programs on the machine."""
    start = time.process_time()
    run()
    return time.process_time() - start


def gpu_seconds(run: Callable[[], object]) -> float:
    """Return the time of one run on the current CUDA device, between two events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def interleaved(
    runs: Mapping[str, Callable[[], object]], repeats: int, clock: Clock
) -> dict[str, list[float]]:
    """Return the seconds of each run, measured as A B A B after one untimed run of each."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(clock(run))
    return times


def ratio(reference: list[float], candidate: list[float]) -> Ratio:
    """Return the ratio of paired times."""
    ratios = [a / b for a, b in zip(reference, candidate, strict=True)]
    if len(ratios) == 1:
        return Ratio(ratios[0], ratios[0], ratios[0])
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(statistics.median(ratios), low, high)
