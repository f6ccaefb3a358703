"""Progress over many photographs: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from orchestrator.cli.app import emit, emit_error

if TYPE_CHECKING:
    from rich.progress import Progress

_QUIET_SECONDS = 10.0
"""A plain line about a large photograph comes at most this often."""


class ProgressReporter(Protocol):
    """Hears what becomes of photographs, one after the other."""

    def begin(self, name: str) -> None:
        """The next photograph is being read."""

    def within(self, done: int, total: int) -> None:
        """So much of the work on it is done."""

    def end(self, line: str, *, failed: bool, worked: bool) -> None:
        """It is over; `worked` is False where there was nothing to do."""


@contextmanager
def report_progress(total: int) -> Iterator[ProgressReporter]:
    """Yield what shows the progress over `total` photographs."""
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
    """A bar whose unit is one photograph; a large one moves it by parts."""

    def __init__(self, bar: Progress, total: int) -> None:
        self._bar, self._total, self._over = bar, total, 0
        self._task = bar.add_task("", total=total, count=f"0/{total}", name="")

    def begin(self, name: str) -> None:
        self._bar.update(self._task, name=name)

    def within(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=self._over + done / total)

    def end(self, line: str, *, failed: bool, worked: bool) -> None:
        self._over += 1
        self._bar.update(self._task, completed=self._over, count=f"{self._over}/{self._total}")
        (emit_error if failed else emit)(line)


class _Lines:
    """A line per photograph, with the time that is left by the mean of those that took work."""

    def __init__(self, total: int) -> None:
        self._total, self._over, self._worked = total, 0, 0
        self._busy = 0.0
        self._name = ""
        self._began = self._told = time.monotonic()

    def begin(self, name: str) -> None:
        self._name = name
        self._began = self._told = time.monotonic()

    def within(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._told >= _QUIET_SECONDS:
            self._told = now
            left = (now - self._began) * (total - done) / done
            emit_error(
                f"[{self._over + 1}/{self._total}] {self._name}: {100 * done // total} %, {_time(left)} left"
            )

    def end(self, line: str, *, failed: bool, worked: bool) -> None:
        self._over += 1
        left = ""
        if worked:
            self._worked += 1
            self._busy += time.monotonic() - self._began
            more = self._total - self._over
            left = f", {_time(self._busy / self._worked * more)} left" if more else ""
        count = f"[{self._over}/{self._total}] " if self._total > 1 else ""
        (emit_error if failed else emit)(f"{count}{line}{left}")


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
