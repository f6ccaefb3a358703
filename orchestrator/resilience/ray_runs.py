"""The runs of a proof on the connected Ray cluster, as `mirage run` would launch them.

Where the next workers are as many, Ray itself starts them in place of those that died; another number of workers takes
over as a job that is submitted again. SIGKILL comes from within, at the very step
(`orchestrator.training.fault_injection`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from orchestrator.config.identity import run_id
from orchestrator.config.schema import Job
from orchestrator.console import Say
from orchestrator.errors import TrainingError
from orchestrator.resilience.resume_proof import Stretch, many
from orchestrator.training.assignment import assignment_of
from orchestrator.training.driver import Wish
from orchestrator.training.fault_injection import KILLED, Fate
from orchestrator.training.ray_launcher import Assignment, OutOfRestartsError, launch
from orchestrator.training.run_location import Place
from shards.dataset import Dataset
from shards.store import Store


def on_ray(
    job: Job, dataset: Dataset, store: Store, stretches: Sequence[Stretch], stop: int, say: Say
) -> None:
    """Run `job` in the folder `store` through all stretches until step `stop`.

    Raises PlanError when the cluster can never hold it, TrainingError when it ended in another way than was meant.
    """
    where = assignment_of(job, dataset, Place(run_id(job, dataset.digests), store.uri, Path()))
    for stretch in stretches:
        last = stretch is stretches[-1]
        deaths = ", ".join(f"worker {worker} after step {step}" for step, worker in stretch.deaths)
        say(f"{many(stretch.workers)}; to be killed: {deaths or 'none'}")
        _run(job, where, stretch, stop if last else None, say)


def _run(job: Job, where: Assignment, stretch: Stretch, stop: int | None, say: Say) -> None:
    """Take one stretch; `stop` is None when it ends with its last death."""
    restarts = len(stretch.deaths) - (stop is None)
    crew = {"min": stretch.workers, "max": stretch.workers, "max_failures": restarts}
    job = job.model_copy(update={"workers": job.workers.model_copy(update=crew)})
    fate = Fate(stop or 10**9, stretch.deaths)
    assignment = replace(where, job=job.model_dump(mode="json"), fate=asdict(fate))
    driver = _Witness(say)
    try:
        outcome = launch(job, assignment, driver, insist=False)
    except OutOfRestartsError:
        if stop is not None or driver.deaths < len(stretch.deaths):
            raise
        return
    if outcome.step != stop:
        raise TrainingError(f"the run was {outcome.status} at step {outcome.step}: nothing is proven.")
    if driver.deaths < len(stretch.deaths):
        raise TrainingError(f"{driver.deaths} of {len(stretch.deaths)} workers died: nothing is proven.")


class _Witness:
    """A driver that shows what happens and counts the deaths; nothing is tracked."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self.deaths = 0

    def say(self, line: str) -> None:
        self.deaths += KILLED in line
        self._say(line)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def image(self, name: str, png: bytes, step: int) -> None:
        pass

    def wish(self, step: int) -> Wish:
        return Wish.GO_ON
