"""An event of a sweep costs the same after any number of events, and a proposal grows no faster than its trials."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from orchestrator.config.loader import load_job
from orchestrator.config.schema import METRIC
from orchestrator.config.sweep_schema import SweepJob
from orchestrator.sweeps.event_log import EventLog, _key, in_order
from orchestrator.sweeps.event_schema import Rejected
from orchestrator.sweeps.ray_search import searcher_of
from tests.orchestrator.sweeps.simulated import MemoryStore
from tests.scale.counted import calls
from tests.scale.growth import grows, stays_flat

EVENTS = [30, 300, 1500]
TRIALS = [25, 100, 400]
CALLS_PER_TRIAL = 60


def test_an_event_costs_the_same_after_any_number_of_events():
    def one_more(count: int) -> int:
        log = EventLog(MemoryStore(), echo=lambda line: None)  # type: ignore[arg-type]
        for index in range(count):
            log.add(Rejected({}, "no", index))
        return calls(lambda: log.add(Rejected({}, "no", count)))

    stays_flat(one_more, EVENTS)


def test_the_event_after_the_millionth_comes_after_it():
    keys = [_key(index) for index in (999_999, 1_000_000, 1_000_001)]
    assert in_order(reversed(keys)) == keys


@pytest.mark.filterwarnings("ignore:Define-by-run function")
def test_a_proposal_does_not_repeat_the_history():
    def proposal(trials: int) -> int:
        job = load_job(
            Path("jobs/sweeps/demo.yaml"),
            ["sweep.search.method=tpe", f"sweep.search.startup_trials={trials}"],
        )
        assert isinstance(job, SweepJob)
        searcher, decode = searcher_of(job.sweep)
        scores = random.Random(0)
        for number in range(trials):  # at random, which is quick
            searcher.suggest(f"{number}")
            searcher.on_trial_complete(f"{number}", {METRIC: scores.gauss(25, 1), "training_iteration": 1})
        return calls(lambda: decode(searcher.suggest("next")))

    costs = grows(proposal, TRIALS, at_most=1.05)
    assert costs[-1] <= CALLS_PER_TRIAL * TRIALS[-1]
