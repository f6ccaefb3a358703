"""A submitted sweep is stopped, a trial diverges, and it still ends with a registered winner.

Killed drivers and lost nodes are in test_sweep_trials.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.sweeps.event_log import read_events
from orchestrator.sweeps.event_schema import Observed, SweepEvent
from orchestrator.sweeps.trial_table import TrialTable, table_of
from shards.store import LocalStore
from tests.claims import wait_until
from tests.slow.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.cluster]

SWEEP = """#!/usr/bin/env -S python -m orchestrator run
extends: small.yaml
name: tuned
kind: sweep
sweep:
  space:
    model.dim: {choice: [8, 6]}
    train.learning_rate: {choice: [1.0e-3, 1.0e+30, 1.0e-4]}   # the second one diverges
  search: {method: grid}
  scheduler: {name: asha, first_steps: 20, reduction: 2}
  trials: 3
  winner: {then: continue}
train: {steps: 60, clip_norm: null}
workers: {min: 1, max: 1, cpus: 1}
checkpoint: {every_steps: 10}
validation: {every_steps: 10, photographs: 1, crop_pixels: 32}
track: {experiment: tuned, register_as: tuned, log: text}
"""


def events(project: Project) -> list[SweepEvent]:
    folder = project.root / ".mirage" / "store" / "mirage" / "sweeps"
    return [event for sweep in folder.glob("tuned-*") for event in read_events(LocalStore(sweep))]


def observed(project: Project, number: int) -> list[Observed]:
    return [event for event in events(project) if isinstance(event, Observed) and event.number == number]


def table(project: Project) -> TrialTable:
    return table_of(events(project))


def test_a_stopped_sweep_continues_and_a_trial_that_diverges_does_not_end_it(project: Project) -> None:
    project.write_job("tuned", SWEEP)
    stopped = project.start("jobs/tuned.yaml")
    wait_until(lambda: any(trial.step for trial in table(project).trials), "one is validated", 400)
    project.stop(stopped)
    project.wait_for_status(stopped, "STOPPED")
    wait_until(lambda: not project.workers("TrialTrainable"), "the processes of the trials end")
    before = table(project)
    left = [trial.number for trial in before.trials if trial.step and not trial.ended]
    assert left

    done = project.finish("jobs/tuned.yaml")
    assert done.status == 0, done.text
    after = table(project)
    assert len(after.trials) == 3
    assert all(trial.ended for trial in after.trials)
    (diverged,) = (trial for trial in after.trials if trial.status == "failed")
    assert diverged.values["train.learning_rate"] == 1e30
    assert "not finite" in diverged.ending
    assert len(after.rejected) == 3
    assert all("Nearest" in one.reason for one in after.rejected)
    for number in left:
        assert after.trials[number].attempts == 2
        steps = [event.step for event in observed(project, number)]
        assert steps == sorted(set(steps))  # it resumed from its checkpoint: no validation is repeated

    best = after.best()
    assert best is not None
    assert re.search(r"tuned version 1, alias candidate", done.text)
    (folder,) = (project.root / ".mirage" / "sweeps").glob("tuned-*")
    assert best.run in (folder / "report.html").read_text()
    exported = project.mirage("sweep", "export", "tuned", "-o", "jobs/mine.yaml")
    assert exported.status == 0, exported.text
    planned = project.mirage("plan", "jobs/mine.yaml")
    assert planned.status == 0, planned.text
    assert "job mine" in planned.text
    assert Path(project.root / "jobs" / "mine.yaml").stat().st_mode & 0o111
