"""Long work tells how far it is: a bar in a terminal, a few lines elsewhere, nothing on standard output."""

from __future__ import annotations

import os
import pty
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import events
from orchestrator import progress as module
from orchestrator.cli.progress import report_progress, use_bars_in_a_terminal
from orchestrator.console import text_console
from orchestrator.progress import SECONDS, Lines, duration, progress


class Clock:
    """A clock that the test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def lines(clock: Clock) -> tuple[list[str], Lines]:
    said: list[str] = []
    return said, Lines(said.append, "packing", clock)


def test_a_line_has_count_share_rate_time_left_and_name() -> None:
    clock = Clock()
    said, advance = lines(clock)
    advance(1_000, 4_000, "a.png")  # done by an earlier process
    clock.now += 20
    advance(1_100, 4_000, "b.png")
    assert said == ["packing 1,100/4,000, 28 %, 5.0 per second, 10 min left  b.png"]
    clock.now += 3_000
    advance(4_000, 4_000, "z.png")
    assert said[1:] == ["packing 4,000/4,000 in 50 min"]


@given(st.lists(st.floats(0, 40), min_size=1, max_size=60))
def test_lines_are_never_closer_than_the_interval_and_short_work_has_none(pauses: list[float]) -> None:
    clock = Clock()
    said: list[tuple[float, str]] = []
    advance = Lines(lambda line: said.append((clock.now, line)), "packing", clock)
    for number, pause in enumerate(pauses, 1):
        clock.now += pause
        advance(number, len(pauses), "x")
    running = [at for at, line in said if " in " not in line]
    assert all(later - earlier >= SECONDS for earlier, later in zip([100.0, *running], running, strict=False))
    assert bool(running) == any(" in " in line for _, line in said)
    if sum(pauses) < SECONDS:
        assert said == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59, "59 s"), (90, "2 min"), (7_000, "117 min"), (9_000, "2.5 h")]
)
def test_a_time_is_in_its_largest_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


class Terminal:
    """A terminal that keeps what is written to it."""

    def __init__(self) -> None:
        self._outer, inner = pty.openpty()
        self.stream = open(inner, "w")  # noqa: SIM115  # closed by `close`
        self._written = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # the other side is closed
            while piece := os.read(self._outer, 1 << 16):
                self._written += piece

    def close(self) -> None:
        """Close the terminal, and wait until all that it showed has been read."""
        self.stream.close()
        self._reader.join()

    def text(self) -> str:
        """Return what the closed terminal showed, without colours and cursor movements."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._written.decode())


@contextmanager
def terminal(kind: str = "xterm") -> Iterator[Terminal]:
    """Make standard error a terminal for the block."""
    terminal = Terminal()
    variables = {"TERM": kind, "COLUMNS": "120"}
    with mock.patch.dict(os.environ, variables), mock.patch.object(sys, "stderr", terminal.stream):
        use_bars_in_a_terminal()
        try:
            yield terminal
        finally:
            module.show_bars(None)
            terminal.close()


def test_a_terminal_has_a_bar_for_each_part_and_lines_stand_above() -> None:
    with terminal() as shown, progress(pytest.fail, "reading", "packing") as (read, pack):
        read(1, 2, "a.png")
        print("a word of the work", file=sys.stderr)
        read(2, 2, "b.png")
        pack(1, 3, "c.png")
        pack(3, 3, "d.png")
    assert re.search(r"reading .* 2/2", shown.text())
    assert re.search(r"packing .* 3/3", shown.text())
    assert "a word of the work\r\n" in shown.text()


def test_a_bar_ends_with_its_block_also_when_the_work_fails() -> None:
    with terminal() as shown:
        with pytest.raises(ZeroDivisionError), progress(pytest.fail, "packing") as (advance,):  # noqa: PT012
            advance(1, 3, "a.png")
            raise ZeroDivisionError
        assert sys.stderr is shown.stream  # Rich has put the stream back
    assert "1/3" in shown.text()


def test_a_training_has_one_bar_with_loss_and_learning_rate() -> None:
    said: list[str] = []
    metrics = {
        "loss/fourier": 0.5,
        "loss/l1": 0.0,
        "loss/psnr": -20.5,
        "loss/total": 0.25,
        "optim/lr": 0.001,
        "perf/images_per_second": 8.0,
        "perf/data_wait": 0.01,
    }
    with terminal() as shown, progress(pytest.fail, "training") as (move,):
        emit = text_console(said.append, move)
        emit(events.Progress(10, metrics, 40, 61.0))
        emit(events.LogMessage("resumed"))
        emit(events.Progress(20, metrics, 40, 61.0))
    assert re.search(
        r"training .* 20/40 .*total 0.2500  fourier 0.5000  psnr -20.5000  lr 1.00e-03  8.0 images/s",
        shown.text(),
    )
    assert said == ["resumed"]


def test_restored_photographs_move_the_bar_by_their_parts(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal() as shown, report_progress(2) as reporter:
        for name in ("[a].png", "b.png"):
            reporter.start(name)
            reporter.advance(1, 2)
            reporter.finish(f"{name} -> out", failed=False, worked=True)
    assert "[a].png" in shown.text()
    assert capsys.readouterr().out == "[a].png -> out\nb.png -> out\n"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_replaces_lines_only_where_standard_output_is_a_terminal_too(is_terminal: bool) -> None:
    with terminal(), mock.patch.object(sys.stdout, "isatty", return_value=is_terminal):
        assert module.shows_bars()
        assert module.replaces_lines() == is_terminal


@pytest.mark.parametrize("kind", ["dumb", "unknown"])
def test_a_terminal_that_cannot_draw_has_lines(kind: str) -> None:
    with terminal(kind):
        assert not module.shows_bars()


def test_every_long_operation_reports_its_progress() -> None:
    """A walk over the sources: what reads or writes much opens `progress`."""
    long = ["cli/pack", "cli/datasets", "cli/models", "cli/local", "data/job", "evaluation/job"]
    for file in [*long, "restoration/job", "training/job", "cli/progress"]:
        source = Path(module.__file__).parent / f"{file}.py"
        assert "progress(e" in source.read_text(), file
