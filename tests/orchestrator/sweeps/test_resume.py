"""A sweep is a function of its job: whatever interrupts it, it ends with the same table, and nothing runs twice."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.config.sweep_schema import SweepJob
from orchestrator.errors import SweepError
from orchestrator.sweeps.event_log import EventLog, read_events
from orchestrator.sweeps.event_schema import Ended, Exhausted, Exploited, Observed
from orchestrator.sweeps.trial_table import table_of
from shards.store import LocalStore
from tests.orchestrator.sweeps.simulated import KilledError, MemoryStore, SimulatedTune, rows, run

GRID = {"search": {"method": "grid"}, "trials": 4}
RANDOM = {"search": {"method": "random", "seed": 3}, "trials": 6, "constraints": ["parameters <= 0.9M"]}
TPE = {"search": {"method": "tpe", "seed": 3, "startup_trials": 2}, "trials": 6}
TWO = {**TPE, "search": {**TPE["search"], "second_objective": "parameters"}}
ASHA = {"scheduler": {"name": "asha", "first_steps": 10, "reduction": 3}}
MEDIAN = {"scheduler": {"name": "median", "first_steps": 10}}
HYPERBAND = {"scheduler": {"name": "hyperband", "first_steps": 10}, **RANDOM, "trials": 9}
POPULATION = {
    "space": {
        "loss.spd_weight": {"log_range": [0.001, 0.1]},
        "train.learning_rate": {"log_range": [1e-4, 1e-2]},
    },
    "search": {"method": "random", "seed": 1},
    "trials": 4,
}
PBT = {**POPULATION, "scheduler": {"name": "pbt", "first_steps": 20}}
PB2 = {**POPULATION, "scheduler": {"name": "pb2", "first_steps": 40}}

SWEEPS: dict[str, dict[str, Any]] = {
    "grid": GRID,
    "random with asha": RANDOM | ASHA,
    "tpe with asha": TPE | ASHA,
    "tpe with median": TPE | MEDIAN,
    "tpe for two objectives": TWO,
    "hyperband": HYPERBAND,
    "pbt": PBT,
}


def finished_events(job: SweepJob, **options: Any) -> list[object]:
    """Return the events of a whole sweep."""
    simulated = SimulatedTune(job, MemoryStore(), **options)
    simulated.run()
    return list(simulated.log.events)


@pytest.mark.parametrize("fails", [{}, {1: 40}], ids=["", "a trial fails"])
@pytest.mark.parametrize("name", SWEEPS)
def test_killed_after_any_event_a_sweep_ends_with_the_same_table(make_sweep, name, fails) -> None:
    job, store = make_sweep(**SWEEPS[name]), MemoryStore()
    whole = SimulatedTune(job, store, fails=fails)
    table = whole.run()
    for length in range(1, len(whole.log.events), 3):
        left = store.before(length)
        before = table_of(read_events(left))
        resumed = SimulatedTune(job, left, fails=fails)
        assert rows(resumed.run()) == rows(table)
        ended = {row.number for row in before.trials if row.ended}
        assert not ended & {number for number, _ in resumed.steps_run}
        assert len(resumed.steps_run) + sum(map(len, (row.observed for row in before.trials))) <= len(
            whole.steps_run
        ) + sum(row.generation for row in table.trials)


def test_pb2_is_repeated_as_well(make_sweep) -> None:
    job, store = make_sweep(**PB2), MemoryStore()
    table = run(job, store)
    assert any(row.generation for row in table.trials)
    assert rows(run(job, store.before(len(store.content) * 2 // 3))) == rows(table)


@pytest.mark.parametrize("name", ["grid", "hyperband", "pbt"])
def test_several_at_a_time_give_the_same_table_where_nothing_depends_on_speed(make_sweep, name) -> None:
    job = make_sweep(**SWEEPS[name])
    assert rows(run(job)) == rows(run(job, concurrent=3))


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3)])
def test_concurrency_may_change_and_no_ended_row_changes(make_sweep, before: int, after: int) -> None:
    job, store = make_sweep(**TPE | ASHA), MemoryStore()
    with pytest.raises(KilledError):
        SimulatedTune(job, store, concurrent=before, dies_at=30).run()
    first = table_of(read_events(store))
    ended = [row for row in first.trials if row.ended]
    assert ended
    assert len(ended) < len(first.trials)
    table = run(job, store, concurrent=after)
    assert len(table.trials) == 6
    assert all(table.trials[row.number] == row for row in ended)


def test_a_sweep_that_was_too_short_is_continued(make_sweep) -> None:
    store = MemoryStore()
    short = run(make_sweep(**{**TPE, "trials": 3}), store)
    longer = SimulatedTune(make_sweep(**TPE), store)
    table = longer.run()
    assert rows(table)[:3] == rows(short)[:3]
    assert {number for number, _ in longer.steps_run} == {3, 4, 5}
    assert rows(run(make_sweep(**TPE))) == rows(table)


def test_asha_stops_early_and_says_why(make_sweep) -> None:
    table = run(make_sweep(**RANDOM | ASHA))
    stopped = [row for row in table.trials if row.status == "stopped"]
    assert len(stopped) >= 3
    assert all(row.step < 90 and "stopped by asha" in row.ending for row in stopped)
    assert table.trials[0].status == "finished"


def test_a_failed_trial_is_a_row_with_its_reason(make_sweep) -> None:
    table = run(make_sweep(**GRID), fails={1: 40})
    row = table.trials[1]
    assert (row.status, row.step, row.ending) == ("failed", 30, "the run has diverged")
    best = table.best()
    assert best is not None
    assert best.status == "finished"


def test_a_trial_ends_at_the_steps_of_the_sweep(make_sweep) -> None:
    table = run(make_sweep(steps=40, **GRID))
    assert {(row.status, row.step, row.whole) for row in table.trials} == {("finished", 40, False)}


# --- population-based training --------------------------------------------------------------------------------


def test_pbt_copies_good_trials_and_changes_their_values_within_bounds(make_sweep) -> None:
    simulated = SimulatedTune(make_sweep(**PBT), MemoryStore())
    table = simulated.run()
    copies = [event for event in simulated.log.events if isinstance(event, Exploited)]
    assert len(copies) == sum(row.generation for row in table.trials) >= 3
    for event in copies:
        assert event.number != event.origin
        assert event.step % 20 == 0
        assert 0.001 <= event.values["loss.spd_weight"] <= 0.1
        assert 1e-4 <= event.values["train.learning_rate"] <= 1e-2
    assert {row.step for row in table.trials} == {90}
    final = {row.number: row.values for row in table.trials}
    newest = {event.number: event.values for event in copies}
    assert all(final[number] == values for number, values in newest.items())


def test_a_copied_trial_shows_the_score_of_its_new_weights(make_sweep) -> None:
    simulated = SimulatedTune(make_sweep(**PBT), MemoryStore())
    simulated.run()
    at, event = next((i, e) for i, e in enumerate(simulated.log.events) if isinstance(e, Exploited))
    table = table_of(simulated.log.events[: at + 1])
    row, origin = table.trials[event.number], table.trials[event.origin]
    assert (row.step, row.psnr) == (event.step, origin.observed[event.step]["val/psnr"])


# --- the event log --------------------------------------------------------------------------------------------


def test_two_drivers_of_one_sweep_do_not_mix_their_events(tmp_path: Path) -> None:
    one, other = EventLog(LocalStore(tmp_path)), EventLog(LocalStore(tmp_path))
    one.add(Exhausted("a"))
    with pytest.raises(SweepError, match="runs twice"):
        other.add(Exhausted("a"))


def test_an_event_log_with_a_missing_event_is_refused(tmp_path: Path) -> None:
    log = EventLog(LocalStore(tmp_path))
    for reason in "abc":
        log.add(Exhausted(reason))
    (tmp_path / "events" / "000001.json").unlink()
    with pytest.raises(SweepError, match="event 1 is missing"):
        EventLog(LocalStore(tmp_path))


def test_a_log_that_cannot_be_repeated_says_so(make_sweep, tmp_path) -> None:
    job = make_sweep(**GRID)
    with pytest.raises(KilledError):
        SimulatedTune(job, LocalStore(tmp_path), dies_at=30).run()
    path = sorted((tmp_path / "events").iterdir())[-1]
    event = json.loads(path.read_bytes())
    path.write_text(json.dumps({**event, "kind": "ended", "status": "stopped", "reason": "by hand"}))
    with pytest.raises(SweepError, match=r"cannot be continued.*Give the sweep another name"):
        run(job, LocalStore(tmp_path))


def test_the_seconds_of_a_trial_are_those_of_its_newest_validation(make_sweep) -> None:
    ended = [e for e in finished_events(make_sweep(**GRID), fails={0: 10, 1: 40}) if isinstance(e, Ended)]
    assert {e.number: e.seconds for e in ended} == {0: 0.0, 1: 30.0, 2: 90.0, 3: 90.0}


def test_asha_tells_the_rank_among_all_that_reached_the_step(make_sweep) -> None:
    events = finished_events(make_sweep(**RANDOM | ASHA))
    scores: dict[int, list[float]] = defaultdict(list)
    ranks = 0
    for event in events:
        if isinstance(event, Observed):
            scores[event.step].append(event.metrics["val/psnr"])
            newest = event
        if isinstance(event, Ended) and event.status == "stopped":
            found, own = scores[newest.step], newest.metrics["val/psnr"]
            rank = 1 + sum(score > own for score in found)
            assert event.reason == (
                f"{own:.2f} dB at step {newest.step}, rank {rank} of {len(found)} so far: stopped by asha"
            )
            ranks += 1
    assert ranks


def test_choices_of_the_scheduler_leave_random_numbers_of_others_alone(make_sweep) -> None:
    random.seed(5)
    np.random.seed(5)
    expected = random.Random(5).random(), np.random.RandomState(5).rand()
    run(make_sweep(**PBT))
    assert (random.random(), np.random.rand()) == expected


def test_a_continued_sweep_draws_what_it_would_have_drawn_in_earlier_versions(make_sweep) -> None:
    scheduler = SimulatedTune(make_sweep(**PBT), MemoryStore()).scheduler  # its seed is 1
    with scheduler._seeded(20):
        drawn = random.random(), np.random.rand()
    assert drawn == (0.5015512015947864, 0.36727214271403497)
