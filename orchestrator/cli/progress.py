"""Progress over many photographs: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from orchestrator.cli.app import emit, emit_error

if TYPE_CHECKING:
    from rich.progress import Progress

_QUIET_SECONDS = 10.0
"""Minimum time between plain lines about one large photograph."""


@contextmanager
def report_progress(total: int) -> Iterator[ProgressReporter]:
    """Yield the reporter of progress over `total` photographs."""
    if not sys.stderr.isatty():
        yield _Lines(total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.fields[count]}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[name]}"),
    )
    bar = Progress(
        *columns,
        console=Console(stderr=True),
        speed_estimate_period=3600,
        redirect_stdout=sys.stdout.isatty(),
        transient=True,
    )
    with bar:
        yield _Bar(bar, total)


class _Bar:
    """A bar whose unit is one photograph. A large one moves it by parts.

    `start` says that a photograph is being read, `advance` that `done` of `total` parts of it are restored, and
    `finish` prints `line` when the result is written, perhaps after others have started; `worked` is False where there
    was nothing to do.
    """

    def __init__(self, bar: Progress, total: int) -> None:
        self._bar, self._total, self._started, self._finished = bar, total, 0, 0
        self._task = bar.add_task("", total=total, count=f"0/{total}", name="")

    def start(self, name: str) -> None:
        self._bar.update(self._task, completed=self._started, name=name)
        self._started += 1

    def advance(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=self._started - 1 + done / total)

    def finish(self, line: str, *, failed: bool, worked: bool) -> None:
        self._finished += 1
        self._bar.update(self._task, count=f"{self._finished}/{self._total}")
        (emit_error if failed else emit)(line)


class _Lines:
    """A line per photograph, with the time left by the mean of those that took work; methods as those of `_Bar`."""

    def __init__(self, total: int) -> None:
        self._total, self._started, self._finished, self._idle = total, 0, 0, 0
        self._busy = 0.0
        self._name = ""
        self._began = self._reported = self._counted = time.monotonic()

    def start(self, name: str) -> None:
        self._name = name
        self._began = self._reported = time.monotonic()
        if self._started == self._finished:  # no result of an earlier one waits
            self._counted = self._began
        self._started += 1

    def advance(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._reported >= _QUIET_SECONDS:
            self._reported = now
            left = (now - self._began) * (total - done) / done
            emit_error(
                f"[{self._started}/{self._total}] {self._name}: {100 * done // total} %, {_duration(left)} left"
            )

    def finish(self, line: str, *, failed: bool, worked: bool) -> None:
        self._finished += 1
        left = ""
        if not worked:
            self._idle += 1
        else:
            now = time.monotonic()
            self._busy, self._counted = self._busy + now - self._counted, now
            remaining = self._total - self._started
            mean = self._busy / (self._started - self._idle)
            left = f", {_duration(mean * remaining)} left" if remaining else ""
        count = f"[{self._finished}/{self._total}] " if self._total > 1 else ""
        (emit_error if failed else emit)(f"{count}{line}{left}")


ProgressReporter = _Bar | _Lines


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
