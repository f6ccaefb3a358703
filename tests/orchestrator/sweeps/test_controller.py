"""A sweep is a function of its job; what dies is continued, what fails is written down, and nothing is done twice."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path

import pytest

from orchestrator.errors import ModelError, SweepError, TrainingError
from orchestrator.sweeps.controller import HOPELESS
from orchestrator.sweeps.event_log import Book, read
from orchestrator.sweeps.trial_table import table_of
from shards.store import LocalStore
from tests.orchestrator.sweeps.given import NAME, GivenTrials, psnr, rows, run

ASHA = {"name": "asha", "first_steps": 10, "reduction": 3}
GRID = {"search": {"method": "grid"}, "trials": 100}
RANDOM = {"search": {"method": "random", "seed": 3}, "trials": 8}
TPE = {"search": {"method": "tpe", "seed": 3, "startup_trials": 3}, "trials": 9}


@pytest.mark.parametrize("search", [GRID, RANDOM, TPE], ids=["grid", "random", "tpe"])
@pytest.mark.parametrize("scheduler", [{}, {"scheduler": ASHA}], ids=["none", "asha"])
def test_one_at_a_time_a_rerun_gives_the_same_table(make_sweep, tmp_path, search, scheduler) -> None:
    job = make_sweep(constraints=["parameters <= 0.9M"], **search, **scheduler)
    first, over = run(job, LocalStore(tmp_path / "a"))
    second, _ = run(job, LocalStore(tmp_path / "b"))
    assert over
    assert rows(first) == rows(second)
    assert all(trial.ended for trial in first.trials)


@pytest.mark.parametrize("search", [{**GRID, "trials": 4}, TPE], ids=["grid", "tpe"])
def test_killed_after_any_event_the_sweep_ends_with_the_same_table(make_sweep, tmp_path, search) -> None:
    job = make_sweep(scheduler=ASHA, **search)
    whole, _ = run(job, LocalStore(tmp_path / "whole"))
    events = sorted((tmp_path / "whole" / "events").iterdir())
    finished = [json.loads(path.read_bytes()) for path in events]
    for length in range(0, len(events), 3):
        store = LocalStore(tmp_path / f"cut{length}")
        for path in events[:length]:
            store.write(f"events/{path.name}", path.read_bytes())
        trials = GivenTrials()
        before = table_of(read(store))
        for trial in before.trials:  # what the checkpoints of the killed trials hold
            trials.position[trial.number] = trial.step
        table, over = run(job, store, trials)
        assert over
        assert rows(table) == rows(whole)
        ended = {event["number"] for event in finished[:length] if event["kind"] == "ended"}
        assert not ended & set(trials.begun)
        for trial in before.trials:
            assert trials.steps_run.get(trial.number, 0) <= table.trials[trial.number].length - trial.step


def test_several_at_a_time_give_the_same_table_where_nothing_depends_on_who_was_faster(
    make_sweep, tmp_path
) -> None:
    for i, search in enumerate((GRID, RANDOM)):
        job = make_sweep(**search)
        alone, _ = run(job, LocalStore(tmp_path / f"alone{i}"))
        trials = GivenTrials(pause=0.002)
        together, _ = run(job, LocalStore(tmp_path / f"together{i}"), trials, room=4)
        assert 1 < trials.most_at_once <= 4
        assert sorted(rows(alone)) == sorted(rows(together))


def test_a_trial_that_fails_is_a_row_with_its_reason_and_the_sweep_goes_on(make_sweep, tmp_path) -> None:
    fails = {
        1: TrainingError(
            "training failed after 3 restarts: OutOfMemoryError: CUDA out of memory. Tried 2 GiB\nSubmit the job again"
        ),
        2: RuntimeError("[enforce fail] out of memory: you tried to allocate 9 bytes"),
        4: ModelError("no such class"),
    }

    def curve(job, step):
        return math.nan if job.loss.spd_weight == 0.1 and step == 30 else psnr(job, step)

    job = make_sweep(**{**GRID, "trials": 7})
    trials = GivenTrials(curve, fails=fails)
    table, over = run(job, LocalStore(tmp_path), trials)
    assert over
    failed = {trial.number: trial.ending for trial in table.trials if trial.status == "failed"}
    assert failed[1].startswith("out of memory: ")
    assert failed[2].startswith("out of memory: ")
    assert failed[4] == "no such class"
    assert "step 30 is not finite" in failed[5]
    assert trials.position[5] == 30
    assert table.trials[5].step == 20
    best = table.best()
    assert best is not None
    assert best.status == "finished"


def test_a_bug_is_no_failed_trial(make_sweep, tmp_path) -> None:
    with pytest.raises(KeyError):
        run(make_sweep(**GRID), LocalStore(tmp_path), GivenTrials(fails={0: KeyError("bug")}))
    assert table_of(read(LocalStore(tmp_path))).trials[0].status == "running"


def test_asha_stops_early_and_says_why(make_sweep, tmp_path) -> None:
    job = make_sweep(scheduler=ASHA, **RANDOM)
    trials = GivenTrials()
    table, _ = run(job, LocalStore(tmp_path), trials)
    stopped = [trial for trial in table.trials if trial.status == "stopped"]
    assert len(stopped) >= 4
    assert all("go on" in trial.ending and "place" in trial.ending for trial in stopped)
    assert all(trials.position[trial.number] == trial.step < 90 for trial in stopped)
    assert table.trials[0].status == "finished"


def test_a_trial_ends_at_the_steps_of_the_sweep_and_its_job_could_go_on(make_sweep, tmp_path) -> None:
    trials = GivenTrials()
    table, over = run(make_sweep(steps=40, **RANDOM), LocalStore(tmp_path), trials)
    assert over
    assert {trial.status for trial in table.trials} == {"finished"}
    assert {trial.step for trial in table.trials} == {40}
    assert set(trials.position.values()) == {40}


def test_stopped_by_a_person_it_goes_on_later(make_sweep, tmp_path) -> None:
    job, trials = make_sweep(**RANDOM), GivenTrials(pause=0.01)
    asked = threading.Event()
    threading.Timer(0.15, asked.set).start()
    table, over = run(job, LocalStore(tmp_path), trials, room=2, stopping=asked.is_set)
    assert not over
    assert any(not trial.ended for trial in table.trials) or len(table.trials) < 8
    trials.pause = 0
    table, over = run(job, LocalStore(tmp_path), trials)
    assert over
    assert all(steps <= 90 for steps in trials.steps_run.values())


def test_a_sweep_that_was_too_short_is_continued(make_sweep, tmp_path) -> None:
    short, _ = run(make_sweep(**{**TPE, "trials": 4}), LocalStore(tmp_path))
    trials = GivenTrials()
    longer, _ = run(make_sweep(**TPE), LocalStore(tmp_path), trials)
    assert rows(longer)[:4] == rows(short)[:4]
    assert sorted(trials.begun) == [4, 5, 6, 7, 8]


def test_no_trial_is_begun_after_the_budget(make_sweep, tmp_path) -> None:
    trials = GivenTrials(pause=0.02)
    table, over = run(make_sweep(max_device_hours=0.1 / 3600, **GRID), LocalStore(tmp_path), trials)
    assert over
    assert len(table.trials) == 1
    assert "max_device_hours" in table.notes[0]


def test_a_search_that_finds_nothing_more_ends_once_however_long_its_trials_take(
    make_sweep, tmp_path
) -> None:
    space = {"model.dim": {"choice": [6, 7]}, "loss.spd_weight": {"log_range": [0.01, 0.1]}}
    job = make_sweep(space=space, constraints=["parameters >= 1M"], trials=3)
    table, over = run(job, LocalStore(tmp_path / "none"))
    assert over
    assert not table.trials
    assert len(table.rejected) == HOPELESS
    assert "candidates in a row were rejected" in table.notes[0]

    few = make_sweep(space={"model.dim": {"choice": [6, 7, 12]}}, search={"method": "grid"}, trials=9)
    table, over = run(few, LocalStore(tmp_path / "few"), GivenTrials(pause=0.1), room=3)
    assert over
    assert (len(table.trials), len(table.rejected), table.notes) == (2, 1, ["every point was tried"])


def test_a_silent_trial_is_explained_and_ends_the_sweep(make_sweep, tmp_path) -> None:
    over = threading.Event()

    class Silent(GivenTrials):
        def __call__(self, trial, job, watch):
            watch.started("run", "tracked", 1.0, 90)
            over.wait()  # a sweep that waited for its trial would never end
            return True

    with pytest.raises(SweepError, match=r"trial 0 has said nothing.*It is a test.*submit the sweep again"):
        run(make_sweep(stall_minutes=0.01, **GRID), LocalStore(tmp_path), Silent())
    over.set()


def test_two_drivers_of_one_sweep_do_not_mix_their_books(tmp_path: Path) -> None:
    one, other = Book(LocalStore(tmp_path)), Book(LocalStore(tmp_path))
    one.add("exhausted", reason="a")
    with pytest.raises(SweepError, match="runs twice"):
        other.add("exhausted", reason="a")


def test_a_book_with_a_missing_page_is_refused(tmp_path: Path) -> None:
    book = Book(LocalStore(tmp_path))
    for reason in "abc":
        book.add("exhausted", reason=reason)
    (tmp_path / "events" / "000001.json").unlink()
    with pytest.raises(SweepError, match="event 1 is missing"):
        Book(LocalStore(tmp_path))


def test_names_of_trials_come_from_the_sweep() -> None:
    from orchestrator.sweeps.controller import trial_name

    assert trial_name(NAME, 7) == f"{NAME}-t007"
