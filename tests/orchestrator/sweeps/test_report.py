"""A report says what the rows say: the Pareto front, which parameter mattered, where trials stopped, what it cost."""

from __future__ import annotations

import math
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.schema import METRIC
from orchestrator.sweeps.event_log import EventLog, read_events
from orchestrator.sweeps.event_schema import Costs, Ended, Exploited, Observed, Rejected, Started, Suggested
from orchestrator.sweeps.importance import comparable, explained, importance, pareto_front
from orchestrator.sweeps.report import compute_of, leaderboard, write_report
from orchestrator.sweeps.trial_table import TrialTable, table_of
from tests.orchestrator.sweeps.simulated import NAME, MemoryStore, run

ASHA = {"name": "asha", "first_steps": 10, "reduction": 3}


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 40)), min_size=1, max_size=30))
def test_no_other_point_beats_one_on_the_front(points: list[tuple[int, int]]) -> None:
    found = pareto_front([(float(x), float(y)) for x, y in points])
    for i, (x, y) in enumerate(points):
        beaten = any((a <= x and b > y) or (a < x and b >= y) for a, b in points)
        if i in found:
            assert not beaten
        elif not beaten:
            assert points.index((x, y)) in found or any(points[j] == (x, y) for j in found)


def test_a_parameter_that_decides_explains_all_and_one_without_effect_nothing() -> None:
    groups = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert explained(groups, np.array([1.0, 1, 1, 2, 2, 2, 5, 5, 5])) == pytest.approx(1)
    assert explained(groups, np.array([1.0, 2, 3, 1, 2, 3, 1, 2, 3])) == pytest.approx(0)
    assert explained(groups, np.ones(9)) == 0


def test_importance_separates_the_parameter_that_matters_from_the_one_that_does_not(make_sweep) -> None:
    job = make_sweep(search={"method": "grid"}, trials=100)
    step, trials = comparable(run(job).trials)
    found = {one.parameter: one for one in importance(job.sweep.space, trials)}
    assert step == 90
    assert found["model.dim"].share > 0.8 > found["model.dim"].chance
    assert found["model.dim"].verdict == "matters"
    ratios = found["model.branch_ratios"]
    assert ratios.share < ratios.chance
    assert ratios.verdict == "indistinguishable from chance"
    assert all(one.low <= one.share <= 1 for one in found.values())


def test_trials_are_compared_at_a_step_that_all_of_them_reached(make_sweep) -> None:
    job = make_sweep(scheduler=ASHA, search={"method": "random"}, trials=9)
    table = run(job)
    step, trials = comparable(table.trials)
    assert step == min(trial.step for trial in table.trials) == 10
    assert len(trials) == 9


def test_compute_is_compared_with_the_same_trials_run_out_and_with_a_full_grid(make_sweep) -> None:
    job = make_sweep(scheduler=ASHA, search={"method": "random"}, trials=9)
    spent = compute_of(job, run(job))
    assert spent.points == 27
    assert spent.spent < spent.unstopped < spent.grid
    assert spent.grid == pytest.approx(3 * spent.unstopped)


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def written(make_sweep, store, tmp_path) -> tuple[Path, str, str]:
    job = make_sweep(
        scheduler=ASHA, search={"method": "random", "seed": 1}, trials=9, constraints=["parameters <= 0.9M"]
    )
    if not store.content:
        run(job, store, fails={4: 10}, reason="out of memory <script>")
    folder = tmp_path / "report"
    write_report(job, NAME, read_events(store), folder)
    return folder, (folder / "report.md").read_text(), (folder / "report.html").read_text()


def test_both_reports_hold_every_trial_and_every_reason(written, store) -> None:
    _, markdown, page = written
    table = table_of(read_events(store))
    assert table.rejected
    for text in (markdown, unescape(page)):
        assert all(one.reason in text for one in table.rejected)
        assert all(trial.run in text for trial in table.trials if trial.run)
        assert "9 trials: " in text
        assert "1 failed" in text
        assert "stopped by asha" in text
        assert "biased upwards" in text
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_page_holds_its_pictures_and_loads_nothing(written) -> None:
    folder, markdown, page = written
    assert page.count("<svg") == 5
    assert not re.findall(r"<(?:img|script|link|iframe)", page)
    assert not re.findall(r"(?:src|href)\s*=\s*[\"'](?!#)", page)

    class Balanced(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag, attrs):
            if tag != "meta":
                self.open.append(tag)

        def handle_startendtag(self, tag, attrs):
            pass

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    parser = Balanced()
    parser.feed(page)
    assert not parser.open
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", markdown)
    assert len(pictures) == 5
    for name in pictures:
        ElementTree.fromstring((folder / name).read_text())


def test_a_report_of_the_same_events_is_the_same(make_sweep, written, store, tmp_path) -> None:
    _, _, page = written
    write_report(
        make_sweep(
            scheduler=ASHA,
            search={"method": "random", "seed": 1},
            trials=9,
            constraints=["parameters <= 0.9M"],
        ),
        NAME,
        read_events(store),
        tmp_path / "again",
    )
    assert (tmp_path / "again" / "report.html").read_text() == page


def test_the_papers_models_are_marked_on_the_front(written) -> None:
    folder, _, _ = written
    drawn = unescape((folder / "front-parameters.svg").read_text())
    assert "paper's T, published 30.41 dB" in drawn
    assert "paper's S, published 30.68 dB" in drawn
    assert "published 30.41 dB" in (folder / "front-macs_224.svg").read_text()


def test_a_report_without_any_result_is_a_report(make_sweep, tmp_path) -> None:
    job = make_sweep(trials=2, search={"method": "grid"})
    log = EventLog(MemoryStore())
    log.submit(b"", code="0", data=[])
    write_report(job, NAME, log.events, tmp_path / "report")
    assert "0 trials" in (tmp_path / "report" / "report.md").read_text()
    assert leaderboard(job, table_of(log.events))[0].startswith("trial")


def trials(*specs: tuple[str, int, float, int]) -> TrialTable:
    """Return a table of trials by status, step of their only validation, its PSNR, and parameters."""
    table = TrialTable()
    for number, (status, step, psnr, parameters) in enumerate(specs):
        table.apply(Suggested(number, {}, "", Costs(parameters, parameters, 1, 1)))
        if status == "waiting":
            continue
        table.apply(Started(number, 1, "run", "", 2.0, 90, True))
        table.apply(Observed(number, 1, step, {METRIC: psnr}, 3.0))
        if status != "running":
            table.apply(Ended(number, status, "why", 4.0))
    return table


def test_finished_trials_are_ranked_by_psnr_then_stopped_ones_by_step_then_the_others() -> None:
    table = trials(
        ("failed", 90, 40.0, 1),
        ("waiting", 0, 0.0, 1),
        ("running", 10, 40.0, 1),
        ("stopped", 20, 39.0, 1),
        ("stopped", 30, 20.0, 1),
        ("stopped", 30, 21.0, 1),
        ("finished", 90, 30.0, 2),
        ("finished", 80, 30.0, 1),
        ("finished", 70, 31.0, 9),
        ("finished", 90, math.nan, 1),
        ("finished", 90, 30.0, 1),
    )
    assert [row.number for row in table.ranked()] == [8, 7, 10, 6, 9, 5, 4, 3, 2, 1, 0]
    best = table.best()
    assert best is not None
    assert best.number == 8
    assert trials(("stopped", 30, 21.0, 1), ("finished", 90, math.nan, 1)).best() is None


def test_a_table_counts_candidates_and_the_time_of_devices() -> None:
    table = trials(("finished", 90, 30.0, 1), ("running", 10, 30.0, 1), ("waiting", 0, 0.0, 1))
    table.apply(Rejected({}, "too large", 3))
    assert table.candidates == 4
    new = table.trials[2]
    assert (new.attempts, new.devices, new.length, new.step, new.generation) == (0, 0, 0, 0, 0)
    assert table.device_seconds == (4.0 + 3.0) * 2.0
    row = table.trials[0]
    table.apply(Started(1, 2, "again", "", 2.0, 90, True))
    table.apply(Observed(1, 2, 20, {METRIC: 31.0}, 5.0))
    assert (table.trials[1].wall_seconds, table.trials[1].attempts) == (8.0, 2)
    assert table.trials[1].curve == [(10, 30.0), (20, 31.0)]
    table.apply(Ended(0, "failed", "later", 100.0))
    assert (row.status, row.ending, row.wall_seconds) == ("finished", "why", 4.0)
    with pytest.raises(LookupError):
        table.apply(Suggested(7, {}, "", Costs(1, 1, 1, 1)))


def test_a_copy_keeps_the_curve_before_its_step_and_has_the_score_of_its_origin() -> None:
    table = trials(("running", 10, 20.0, 1), ("running", 20, 30.0, 1))
    for step in (20, 30):
        table.apply(Observed(0, 1, step, {METRIC: 21.0}, 3.0))
    table.apply(Exploited(0, 1, 20, {"a": 1}))
    row = table.trials[0]
    assert (row.curve, row.step, row.psnr, row.generation) == ([(10, 20.0), (20, 30.0)], 20, 30.0, 1)
    assert row.values == {"a": 1}
