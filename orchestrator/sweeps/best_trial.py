"""The job of a sweep's best trial: to be run on, trained anew, or written to a file of its own."""

from __future__ import annotations

import yaml

from orchestrator.config.loader import job_from_mapping
from orchestrator.config.schema import Job
from orchestrator.config.search_space import candidate, put
from orchestrator.config.starter import FIRST_LINE
from orchestrator.config.sweep_schema import SweepJob, shown
from orchestrator.errors import SweepError
from orchestrator.sweeps.controller import trial_name
from orchestrator.sweeps.trial_table import Trial


def winning_job(job: SweepJob, sweep: str, trial: Trial, name: str | None = None) -> Job:
    """Return the job that makes a model of the trial: it registers, and has as many workers as there is room for.

    Run on, it is the trial's own run; trained anew, it is another, called `name` or after the sweep. Raises
    JobFileError when what the retraining changes does not go with the trial.
    """
    retrained = job.sweep.winner.then == "retrain"
    called = name or (f"{sweep}-winner" if retrained else trial_name(sweep, trial.number))
    made = candidate(job, trial.values, called)
    assert made.job is not None, "only candidates that can be run are suggested"
    content = made.job.model_dump(mode="json")
    for section in ("track", "workers", "example"):
        content[section] = job.model_dump(mode="json")[section]
    for key, value in job.sweep.winner.set.items() if retrained else ():
        put(content, key, value)
    found = job_from_mapping(content, "sweep.winner.set")
    assert isinstance(found, Job), "a trial is a training"
    return found


def as_file(job: SweepJob, sweep: str, trial: Trial, name: str) -> str:
    """Return the winning job as an executable job file that says where it comes from."""
    if trial.psnr is None:
        raise SweepError(
            f"trial {trial.number} of {sweep} has no validation: there is nothing to say for it."
        )
    found = winning_job(job, sweep, trial, name)
    chosen = ", ".join(f"{knob} {shown(value)}" for knob, value in trial.values.items())
    head = (
        f"# Trial {trial.number} of sweep {sweep}: {chosen}.\n"
        f"# There: {trial.psnr:.2f} dB validation PSNR at step {trial.step}, {trial.costs.parameters:,} parameters.\n"
    )
    return f"{FIRST_LINE}\n" + head + str(yaml.safe_dump(found.model_dump(mode="json"), sort_keys=False))
