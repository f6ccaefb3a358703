"""A report says what the rows say: who is on the front, which knob mattered, where trials stopped, what it cost."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.sweeps.event_log import Book, read
from orchestrator.sweeps.importance import comparable, explained, front, importance
from orchestrator.sweeps.report import compute_of, leaderboard, write_report
from orchestrator.sweeps.trial_table import table_of
from shards.store import LocalStore
from tests.orchestrator.sweeps.given import NAME, GivenTrials, run

ASHA = {"name": "asha", "first_steps": 10, "reduction": 3}


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 40)), min_size=1, max_size=30))
def test_the_front_is_what_no_other_point_beats(points: list[tuple[int, int]]) -> None:
    found = front([(float(x), float(y)) for x, y in points])
    for i, (x, y) in enumerate(points):
        beaten = any((a <= x and b > y) or (a < x and b >= y) for a, b in points)
        if i in found:
            assert not beaten
        elif not beaten:
            assert points.index((x, y)) in found or any(points[j] == (x, y) for j in found)


def test_a_knob_that_decides_explains_all_and_one_without_effect_stays_below_chance() -> None:
    groups = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert explained(groups, np.array([1.0, 1, 1, 2, 2, 2, 5, 5, 5])) == pytest.approx(1)
    assert explained(groups, np.array([1.0, 2, 3, 1, 2, 3, 1, 2, 3])) == pytest.approx(0)
    assert explained(groups, np.ones(9)) == 0


def test_importance_tells_the_knob_that_matters_from_the_one_that_does_not(make_sweep, tmp_path) -> None:
    job = make_sweep(search={"method": "grid"}, trials=100)
    table, _ = run(job, LocalStore(tmp_path))
    step, trials = comparable(table.trials)
    found = {one.knob: one for one in importance(job.sweep.space, trials)}
    assert step == 90
    assert found["model.dim"].share > 0.8 > found["model.dim"].chance
    assert found["model.dim"].verdict == "matters"
    ratios = found["model.branch_ratios"]
    assert ratios.share < ratios.chance
    assert ratios.verdict == "cannot be told from chance"
    assert all(one.low <= one.share <= 1 for one in found.values())


def test_trials_are_compared_at_a_step_that_all_of_them_reached(make_sweep, tmp_path) -> None:
    job = make_sweep(scheduler=ASHA, search={"method": "random"}, trials=9)
    table, _ = run(job, LocalStore(tmp_path))
    step, trials = comparable(table.trials)
    assert step == min(trial.step for trial in table.trials) == 10
    assert len(trials) == 9


def test_compute_is_compared_with_the_same_trials_run_out_and_with_a_full_grid(make_sweep, tmp_path) -> None:
    job = make_sweep(scheduler=ASHA, search={"method": "random"}, trials=9)
    table, _ = run(job, LocalStore(tmp_path), GivenTrials(pause=0.002))
    spent = compute_of(job, table)
    assert spent.points == 27
    assert spent.spent < spent.whole < spent.grid
    assert spent.grid == pytest.approx(3 * spent.whole)


@pytest.fixture
def written(make_sweep, tmp_path) -> tuple[Path, str, str]:
    job = make_sweep(
        scheduler=ASHA, search={"method": "random", "seed": 1}, trials=9, constraints=["parameters <= 0.9M"]
    )
    store = LocalStore(tmp_path / "book")
    fails = {4: MemoryError("out of memory <script>")}
    run(job, store, GivenTrials(fails=fails))
    folder = tmp_path / "report"
    write_report(job, NAME, read(store), folder)
    return folder, (folder / "report.md").read_text(), (folder / "report.html").read_text()


def test_both_reports_hold_every_trial_and_every_reason(written, make_sweep, tmp_path) -> None:
    _, markdown, page = written
    table = table_of(read(LocalStore(tmp_path / "book")))
    for text in (markdown, unescape(page)):
        assert all(one.reason in text for one in table.rejected)
        assert all(trial.run in text for trial in table.trials if trial.run)
        assert "9 trials: " in text
        assert "1 failed" in text
        assert "the best 1 go on" in text
        assert "somewhat too good" in text
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_page_holds_its_pictures_and_asks_nobody_for_anything(written) -> None:
    folder, markdown, page = written
    assert page.count("<svg") >= 5
    assert not re.findall(r"(?:src|href)\s*=", page)
    assert "url(" not in page

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
    for name in re.findall(r"!\[.*?\]\((.*?)\)", markdown):
        ElementTree.fromstring((folder / name).read_text())


def test_the_papers_models_are_marked_on_the_front(written) -> None:
    folder, _, _ = written
    drawn = unescape((folder / "front-parameters.svg").read_text())
    assert "paper's T, published 30.41 dB" in drawn
    assert "paper's S, published 30.68 dB" in drawn
    assert "published 30.41 dB" in (folder / "front-macs.svg").read_text()


def test_a_report_of_a_sweep_without_any_result_is_a_report(make_sweep, tmp_path) -> None:
    job = make_sweep(trials=2, search={"method": "grid"})
    store = LocalStore(tmp_path / "book")
    Book(store).add("submitted", job="jobs/x.yaml", code="0", data=[])
    write_report(job, NAME, read(store), tmp_path / "report")
    assert "0 trials" in (tmp_path / "report" / "report.md").read_text()
    assert leaderboard(job, table_of(read(store)))[0].startswith("trial")
