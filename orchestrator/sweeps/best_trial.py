"""The job of one trial: to run it, to continue or retrain the best one, or to export it to a file."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.config.loader import dump_job, job_from_mapping
from orchestrator.config.schema import Job
from orchestrator.config.search_space import Values, candidate, format_params, set_key
from orchestrator.config.starter import FIRST_LINE
from orchestrator.config.sweep_schema import SweepJob
from orchestrator.errors import SweepError
from orchestrator.outputs import write_output
from orchestrator.sweeps.trial_table import TrialRow, TrialTable


def trial_job(job: SweepJob, sweep: str, number: int, generation: int, values: Values) -> Job:
    """Return the job of a trial. Raises SweepError if the values contradict each other."""
    name = f"{sweep}-t{number:03d}" + (f"-g{generation}" if generation else "")
    made = candidate(job, values, name)
    if made.job is None:
        raise SweepError(f"trial {number} with {format_params(values)}: {made.impossible}")
    return made.job


def winning_job(job: SweepJob, sweep: str, trial: TrialRow, name: str | None = None) -> Job:
    """Return the job that makes a registered model of a trial, with as many workers as the sweep's job allows.

    Continued, it is the trial's own run; retrained, another one, called `name` or after the sweep. Raises JobFileError
    if the changes for retraining contradict the trial's values.
    """
    retrained = job.sweep.winner.then == "retrain"
    made = trial_job(job, sweep, trial.number, trial.generation, trial.values)
    content, own = made.model_dump(mode="json"), job.model_dump(mode="json")
    for section in ("track", "workers", "checkpoint", "example"):
        content[section] = own[section]
    if name or retrained:
        content["name"] = name or f"{sweep}-winner"
    for key, value in job.sweep.winner.set.items() if retrained else ():
        set_key(content, key, value)
    found = job_from_mapping(content, "sweep.winner.set")
    assert isinstance(found, Job), "a trial is a training job"
    return found


def export_job(job: SweepJob, sweep: str, table: TrialTable, out: Path, number: int | None = None) -> str:
    """Write the job of the best trial, or of trial `number`, as an executable job file; return a message.

    Raises SweepError if there is no such trial, or `out` exists.
    """
    trial = table.best()
    if number is not None:
        trial = next((one for one in table.trials if one.number == number), None)
    if trial is None or trial.psnr is None:
        missing = (
            "no trial has finished" if number is None else f"there is no trial {number} with a validation"
        )
        raise SweepError(
            f"sweep {sweep}: {missing}; it has {len(table.trials)}. See: mirage sweep report {sweep}"
        )
    if out.exists():
        raise SweepError(f"{out} exists and is not overwritten. Give another --out, or remove it.")
    name = re.sub(r"[^a-z0-9._-]", "-", out.stem.lower()).lstrip("._-")[:63] or f"{sweep}-winner"
    head = (
        f"# Trial {trial.number} of sweep {sweep}: {format_params(trial.values)}.\n"
        f"# Validation: {trial.psnr:.2f} dB PSNR at step {trial.step}; {trial.costs.parameters:,} parameters.\n"
    )
    text = f"{FIRST_LINE}\n" + head + dump_job(winning_job(job, sweep, trial, name))
    write_output(out, text, executable=True)
    return f"{out}: trial {trial.number} of {sweep}. See what it takes: mirage plan {out}"
