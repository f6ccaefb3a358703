"""The record of a run: bounded however long it runs, the same after a restart, and honest about what happened."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from orchestrator import events
from orchestrator.history.curve import MAX_POINTS, Curve
from orchestrator.history.record import Facts, History, thinned
from orchestrator.history.store import read_history, read_status, write_history, write_status
from shards.store import LocalStore

FACTS = Facts(
    **{
        "run": "small-0123456789",
        "folder": "/store/runs/small-0123456789",
        "name": "small",
        "setting": "5deg",
    },
    **{"recipe": "fast", "protocol": "rgb", "degradations": ["rain"], "job": "name: small\n", "plan": "plan"},
    **{
        "total_steps": 100,
        "parameters": 7,
        "batch": 4,
        "predictions": [],
        "speed_from": "",
        "currency": "EUR",
    },
    **{"worker_hour": None, "head_hour": 0.0, "data": [], "tracked": "run 1 at sqlite:///x"},
)


def begun(now: float = 0.0, **changes: object) -> History:
    history = History(replace(FACTS, **changes))
    history.begin(history.facts, "here", "1.0", 1, now)
    return history


def progress(step: int, loss: float = 1.0) -> events.Progress:
    metrics = {"loss/total": loss, "perf/images_per_second": 8.0, "perf/data_wait": 0.1, "optim/lr": 1e-3}
    return events.Progress(step, metrics, 100, 5.0)


@given(some.lists(some.floats(-1e6, 1e6), min_size=1, max_size=50), some.integers(0, 3))
def test_each_point_is_the_mean_of_its_measurements(values: list[float], halvings: int) -> None:
    curve = Curve(every=2**halvings)
    for step, value in enumerate(values):
        curve.add(step, value)
    groups = [values[i : i + curve.every] for i in range(0, len(values), curve.every)]
    assert curve.values == pytest.approx([sum(g) / len(g) for g in groups], rel=1e-4, abs=1)
    assert curve.steps[-1] == len(values) - 1


def test_a_curve_of_any_length_has_a_bounded_number_of_points_that_cover_it() -> None:
    curve, most = Curve(), 0
    for step in range(20 * MAX_POINTS):
        curve.add(step, float(step))
        most = max(most, len(curve.steps))
    assert most <= MAX_POINTS + 1
    assert len(curve.steps) == len(curve.values) > MAX_POINTS // 2 - 1
    assert curve.steps == sorted(set(curve.steps))
    assert curve.steps[-1] == 20 * MAX_POINTS - 1
    assert all(
        abs(value - step) <= curve.every for step, value in zip(curve.steps, curve.values, strict=True)
    )


def test_a_run_that_resumes_before_its_last_measurements_repeats_them_without_a_zigzag() -> None:
    whole, resumed = Curve(), Curve()
    for step in range(1, 100):
        whole.add(step, 1.0 * step)
    for step in (*range(1, 80), *range(50, 100)):
        resumed.add(step, 1.0 * step)
    assert (resumed.steps, resumed.values) == (whole.steps, whole.values)


def test_what_is_not_finite_is_a_gap_and_the_record_stays_json(tmp_path) -> None:
    history = begun()
    for step, loss in enumerate((1.0, math.nan, math.inf, 2.0), 1):
        history.add(progress(step, loss), float(step))
    assert history.curves["loss/total"].values == [1.0, None, None, 2.0]
    store = LocalStore(tmp_path)
    write_history(store, history)
    write_status(store, history.status())
    assert read_history(store) == history
    assert read_status(store) == history.status()


def test_the_record_of_a_run_of_a_million_steps_is_as_small_as_that_of_a_short_one() -> None:
    def size(steps: int) -> int:
        history = begun()
        for step in range(0, steps, 100):
            history.add(progress(step, step / 7), step / 10)
            if step % 1000 == 0:
                history.add(events.WorkersReplaced((0,), "killed " * 200), step / 10)
                history.begin(FACTS, "there", "1.0", 1, step / 10)
        assert len(json.dumps(asdict(history.status()))) < 8_000
        return len(json.dumps(asdict(history)))

    assert size(1_000_000) < 2.5 * size(110_000)


def test_a_process_that_ended_without_a_word_is_named_by_the_next_one() -> None:
    history = begun(now=100.0)
    history.add(progress(40), 160.0)
    history.begin(FACTS, "elsewhere", "1.1", 1, 1000.0)
    history.add(events.Resumed("000000020-0123456789ab", 20), 1001.0)
    history.add(progress(60), 1030.0)
    history.end("failed", "a worker died too often", 1040.0)
    first, second = history.processes
    assert (first.end, first.last_step, first.seconds) == ("ended without a word", 40, 60.0)
    assert (second.first_step, second.last_step, second.host) == (20, 60, "elsewhere")
    assert second.end == "failed: a worker died too often"
    assert history.seconds == 100.0, "the time between both is not the run's"
    assert [note.text for note in history.notes] == [
        "the process before this one ended without a word",
        "resumed from checkpoint 000000020-0123456789ab at step 20",
        "failed: a worker died too often",
    ]


def test_workers_that_start_again_do_not_move_the_begin_of_their_process() -> None:
    history = begun()
    history.add(progress(40), 1.0)
    history.add(events.Resumed("000000020-0123456789ab", 20), 2.0)
    history.begin(FACTS, "elsewhere", "1.1", 1, 3.0)
    for step in (40, 30):
        history.add(events.Resumed(f"0000000{step}-0123456789ab", step), 4.0)
    history.add(progress(60), 5.0)
    assert [(process.first_step, process.last_step) for process in history.processes] == [(0, 40), (40, 60)]
    assert [process.resumed_at for process in history.processes] == [[20], [40, 30]]


@pytest.mark.parametrize("psnr", [math.inf, math.nan, 30.0])
def test_the_score_of_a_photograph_that_is_restored_exactly_can_be_recorded(
    tmp_path: Path, psnr: float
) -> None:
    store, history = LocalStore(tmp_path), begun()
    history.score(psnr)
    history.end("finished", "", 1.0)
    write_history(store, history)
    write_status(store, history.status())
    assert history.status().psnr == (psnr if math.isfinite(psnr) else None)


def test_a_clock_that_is_set_back_gives_no_negative_time() -> None:
    history = begun(now=1000.0)
    history.add(progress(1), 900.0)
    history.end("stopped", "", 950.0)
    assert history.seconds >= 0
    assert history.worker_seconds >= 0


def test_no_password_reaches_the_record() -> None:
    history = begun()
    history.add(events.LogMessage("cannot reach https://me:secret@host/x", "warning"), 1.0)
    assert "secret" not in json.dumps(asdict(history))


@settings(max_examples=30)
@given(some.lists(some.none() | some.floats(0, 1), max_size=80), some.integers(2, 40))
def test_thinning_keeps_the_first_and_the_last_value(values: list[float | None], count: int) -> None:
    chosen = thinned(values, count)
    assert len(chosen) == min(count, len(values))
    assert chosen[:1] == values[:1]
    assert chosen[-1:] == values[-1:]
