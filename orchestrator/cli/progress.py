"""Bars of long work in a terminal, and the progress of restoring photographs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from orchestrator import progress
from orchestrator.cli.app import emit_error, emit_if_possible
from orchestrator.progress import Callbacks, duration, per_second

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def use_bars_in_a_terminal() -> None:
    """Show progress by bars if standard error is a terminal that can draw them, else by lines."""
    can_draw = sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    progress.show_bars(_Bars() if can_draw else None)


class _Bars:
    """Bars of one display, which is there while one of them moves: other lines are printed as they are."""

    def __init__(self) -> None:
        self._display: Progress | None = None

    @contextmanager
    def __call__(self, labels: Sequence[str]) -> Iterator[Callbacks]:
        """Yield a callback for each label, which moves a bar of this name."""
        tasks: dict[str, TaskID] = {}
        try:
            yield tuple(partial(self._advance, tasks, label) for label in labels)
        finally:
            self._stop()

    def _advance(self, tasks: dict[str, TaskID], label: str, done: float, total: int, name: str) -> None:
        if self._display is None:
            self._display = _display()
            self._display.start()
            tasks.clear()
        display, about = self._display, name if done < total else ""
        if label not in tasks:  # what was done before does not count for the rate
            tasks[label] = display.add_task(label, total=total, completed=done, about=about)  # type: ignore[arg-type]
        display.update(tasks[label], completed=done, total=total, about=about)
        if display.finished:
            self._stop()

    def _stop(self) -> None:
        if self._display is not None:
            self._display.stop()
            self._display = None


def _display() -> Progress:
    """Return a display of bars on standard error; lines that are printed meanwhile stand above it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft
    from rich.table import Column
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(per_second(speed) if speed else "")

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        Rate(),
        TimeLeft(compact=True),
        TextColumn("{task.fields[about]}", markup=False, table_column=Column(no_wrap=True)),
        console=Console(stderr=True),
        speed_estimate_period=60,
        redirect_stdout=sys.stdout.isatty(),
    )


@contextmanager
def report_progress(total: int) -> Iterator[ProgressReporter]:
    """Yield the reporter of progress over `total` photographs."""
    if not progress.shows_bars():
        yield _Lines(total)
        return
    with progress.progress(emit_error, "restoring") as (advance,):
        yield _Bar(advance, total)


class _Bar:
    """A bar whose unit is one photograph. A large one moves it by parts.

    `start` says that a photograph is being read, `advance` that `done` of `total` parts of it are restored, and
    `finish` prints `line` when the result is written, perhaps after others have started; `worked` is False where there
    was nothing to do.
    """

    def __init__(self, advance: progress.Advance, total: int) -> None:
        self._advance, self._total, self._started, self._name = advance, total, 0, ""

    def start(self, name: str) -> None:
        self._name = name
        self._advance(self._started, self._total, name)
        self._started += 1

    def advance(self, done: int, total: int) -> None:
        self._advance(self._started - 1 + done / total, self._total, self._name)

    def finish(self, line: str, *, failed: bool, worked: bool) -> None:
        (emit_error if failed else emit_if_possible)(line)


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
        if now - self._reported >= progress.SECONDS:
            self._reported = now
            left = (now - self._began) * (total - done) / done
            emit_error(
                f"[{self._started}/{self._total}] {self._name}: {100 * done // total} %, {duration(left)} left"
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
            left = f", {duration(mean * remaining)} left" if remaining else ""
        count = f"[{self._finished}/{self._total}] " if self._total > 1 else ""
        (emit_error if failed else emit_if_possible)(f"{count}{line}{left}")


ProgressReporter = _Bar | _Lines
