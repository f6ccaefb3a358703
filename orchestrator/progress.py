"""Report how far long work is: a bar in a terminal, elsewhere a line every few seconds, each with rate and time left.

    with progress(echo, "reading", "packing") as (read, pack):
        pack(3, 100, "a.png")           # 3 of 100 are done, the last one was a.png

Work that ends within the first seconds prints no line. `orchestrator.cli` installs the bars.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from orchestrator.console import Echo

SECONDS = 10.0
"""Time between two lines."""

Advance = Callable[[float, int, str], None]
"""A `shards.progress.ProgressCallback` that also takes parts of an item."""
Callbacks = tuple[Advance, ...]
Bars = Callable[[Sequence[str]], AbstractContextManager[Callbacks]]
"""Returns one callback for each label; each moves a bar."""

_bars: Bars | None = None


def show_bars(bars: Bars | None) -> None:
    """Show progress by `bars` from now on, None: by lines."""
    global _bars
    _bars = bars


def shows_bars() -> bool:
    """Return whether progress is shown by bars."""
    return _bars is not None


def replaces_lines() -> bool:
    """Return whether a bar may take the place of lines on standard output: not where that is kept in a file."""
    return shows_bars() and sys.stdout.isatty()


@contextmanager
def progress(echo: Echo, *labels: str) -> Iterator[Callbacks]:
    """Yield a progress callback for each label; without bars, `echo` prints its lines."""
    if _bars is None:
        yield tuple(Lines(echo, label) for label in labels)
        return
    with _bars(labels) as callbacks:
        yield callbacks


class Pace:
    """Rate and time left of work that is `done` by now. What was done before the first call does not count."""

    def __init__(self, done: float, now: float) -> None:
        self._first, self._began = done, now

    def rate(self, done: float, now: float) -> float | None:
        """Return what is done in a second; None before anything is."""
        return (
            (done - self._first) / (now - self._began) if done > self._first and now > self._began else None
        )

    def describe(self, done: float, total: float, now: float) -> str:
        """Return rate and time left as the end of a line; "" before they are known."""
        rate = self.rate(done, now)
        return "" if rate is None else f", {per_second(rate)}, {duration((total - done) / rate)} left"


class Lines:
    """A progress callback that prints a line every `SECONDS`."""

    def __init__(self, echo: Echo, label: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._echo, self._label, self._clock = echo, label, clock
        self._began = self._printed = clock()
        self._pace: Pace | None = None
        self._silent = True

    def __call__(self, done: float, total: int, name: str) -> None:
        """Print how far the work is, if the last line is old enough or the work has ended."""
        now = self._clock()
        if self._pace is None:
            self._pace = Pace(done, now)
        if done >= total:
            if not self._silent:
                self._echo(f"{self._label} {done:,}/{total:,} in {duration(now - self._began)}")
                self._silent = True
        elif now - self._printed >= SECONDS:
            self._printed, self._silent = now, False
            percent = f"{100 * done / total:.0f} %"
            pace = self._pace.describe(done, total, now)
            self._echo(f"{self._label} {done:,}/{total:,}, {percent}{pace}{f'  {name}' if name else ''}")


def per_second(rate: float) -> str:
    """Return a rate in words: per second, or per minute where that is easier to read."""
    return f"{rate:.1f} per second" if rate >= 0.5 else f"{60 * rate:.1f} per minute"


def duration(seconds: float) -> str:
    """Return a time in words, in the largest unit that leaves two digits."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
