"""Prove that a job resumes exactly: kill and resume a run at random steps, and compare it with an uninterrupted run.

    reference   start ──────────────────────────────────────────► step N
    killed      start ──► ✗   resume ─────► ✗   resume ─────────► step N      on the same or another number of workers

The runs use a Ray cluster (`ray_runs`) or plain local processes (`local_workers`).

Both runs write a checkpoint every few steps, with tensors named by their hash. With the same number of workers,
weights, EMA and optimizer state of every checkpoint must be bit-equal. With another number, sums are computed in
another order: the ledgers must show the same sample at every position, each exactly once.
"""

from __future__ import annotations

import random
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.config import crop_stages
from orchestrator.config.identity import run_id
from orchestrator.config.schedule import total_steps
from orchestrator.config.schema import Job
from orchestrator.console import Echo, count
from orchestrator.data import datasets
from orchestrator.data.job import pack_if_missing
from orchestrator.errors import PlanError
from orchestrator.paths import below
from orchestrator.resilience.local_workers import LocalSegment, run_local_segment
from orchestrator.run_files import PROOF_RUNS, PROOFS_FOLDER
from orchestrator.tracking.uri import resolve_tracking_uri
from orchestrator.training import initial_weights, loss_network
from orchestrator.training.assignment import worker_assignment
from orchestrator.training.checkpoint import read_record
from orchestrator.training.run_location import RunLocation
from shards.dataset import Dataset
from shards.errors import LedgerError
from shards.ledger import LedgerReader
from shards.store import LocalStore, Store, open_store

_CHECKPOINTS = 4
"""Minimum number of checkpoints per run, if there are enough steps."""
KEEP_ALL = 10**6
"""Value of `checkpoint.keep` that keeps every checkpoint."""


@dataclass(frozen=True)
class RunSegment:
    """Part of a run with one number of workers."""

    workers: int
    kills: tuple[tuple[int, int], ...] = ()
    """(step, rank) of each kill: that worker gets SIGKILL after that step, before a checkpoint.

    The workers then restart; after the last kill of a segment, the next segment starts instead, if there is one.
    """


SegmentRunner = Callable[[Job, Dataset, Store, Sequence[RunSegment], int, Echo], None]
"""Function that runs segments of a job in a folder until a step, where the run stops with a checkpoint."""


@dataclass(frozen=True)
class ProofConfig:
    """Settings of a proof."""

    kills: int
    seed: int
    steps: int
    workers: int
    resume_workers: tuple[int, ...] = ()
    """Numbers of workers after each kill, repeated in turn; empty: no change."""

    @property
    def same_world_size(self) -> bool:
        """Whether the number of workers never changes."""
        return set(self.resume_workers) <= {self.workers}

    def world_size(self, kill_count: int) -> int:
        """Return the number of workers after `kill_count` kills."""
        if kill_count == 0 or not self.resume_workers:
            return self.workers
        return self.resume_workers[(kill_count - 1) % len(self.resume_workers)]

    def kill_steps(self) -> list[int]:
        """Return the steps after which a worker is killed, in ascending order."""
        return sorted(random.Random(self.seed).sample(range(1, self.steps), self.kills))

    def segments(self) -> list[RunSegment]:
        """Return the segments of the killed run, with random kill steps and victims."""
        rng = random.Random(self.seed)
        found = [RunSegment(self.workers)]
        for kill_count, step in enumerate(self.kill_steps(), 1):
            kill = (step, rng.randrange(found[-1].workers))
            found[-1] = replace(found[-1], kills=(*found[-1].kills, kill))
            if self.world_size(kill_count) != found[-1].workers:
                found.append(RunSegment(self.world_size(kill_count)))
        return found


@dataclass(frozen=True)
class Proof:
    """Comparison of two runs of one job."""

    compared: tuple[int, ...]
    """Steps of the checkpoints that both runs have."""
    different: dict[int, tuple[str, ...]]
    """Names of the differing parts (weights, EMA, optimizer state) by step."""
    ledger: str
    """Error in the ledgers; empty if both show the same sample at every position, each once."""
    positions: int
    """Number of sample positions in both ledgers."""
    attempts: int
    """Number of starts of the killed run that wrote a ledger, without those killed before their first checkpoint."""
    same_world_size: bool

    @property
    def holds(self) -> bool:
        """Whether the job resumed exactly."""
        return not self.ledger and bool(self.compared) and not (self.same_world_size and self.different)

    def render(self) -> str:
        """Return the proof as text."""
        steps = ", ".join(str(step) for step in self.compared)
        if len(self.compared) > 8:
            steps = f"{self.compared[0]}, {self.compared[1]}, ... {self.compared[-1]}"
        lines = [
            f"checkpoints compared   {len(self.compared)}, at step {steps or '-'}",
            f"samples                {self.positions:,} positions, from {self.attempts} starts that wrote a ledger, "
            + (f"WRONG: {self.ledger}" if self.ledger else "the same ones in both runs, each exactly once"),
        ]
        if not self.different:
            equal = "bit-equal: weights, EMA and optimizer state of every checkpoint"
        else:
            first = min(self.different)
            equal = f"different from step {first} on ({', '.join(self.different[first])})"
        lines.append(f"state                  {equal}")
        if not self.same_world_size:
            lines.append(
                "                       (not required: another number of workers changes the order of sums)"
            )
        exactly = "RESUMES EXACTLY" if not self.different else "THE SAME SAMPLES, EACH ONCE"
        lines.append(exactly if self.holds else "DOES NOT RESUME EXACTLY")
        return "\n".join(lines)


def prove_resume(
    job: Job, config: ProofConfig, echo: Echo, *, keep: bool = False, runner: SegmentRunner | None = None
) -> Proof:
    """Run the first `config.steps` steps of `job` twice and compare; `runner` defaults to `run_in_processes`.

    Deletes both runs if the proof holds, unless `keep` is set. Raises an error of `orchestrator.errors` if the job
    cannot run.
    """
    runner = runner or run_in_processes
    pack_if_missing(job, echo)
    dataset = datasets.open_dataset(job)
    config, job = instrument(job, dataset, config)
    reference, killed = (open_store(uri) for uri in run_folders(job, dataset, config))
    for store in (reference, killed):
        if job.init_from is not None:
            initial_weights.store_weights(job, store, resolve_tracking_uri(job.track.uri))
        loss_network.store_network(job, store)
    echo(f"reference: {config.steps} steps on {count(config.workers, 'worker')}, without kills")
    runner(job, dataset, reference, [RunSegment(config.workers)], config.steps, echo)
    runner(job, dataset, killed, config.segments(), config.steps, echo)
    proof = compare(reference, killed, config)
    if keep or not proof.holds:
        echo(f"both runs are kept in {reference.uri.rpartition('/')[0]}")
    else:
        for store in (reference, killed):
            for key in store.list():
                store.delete(key)
            if isinstance(store, LocalStore):  # buckets have no empty folders to remove
                shutil.rmtree(store.root.parent, ignore_errors=True)
    return proof


def check_worker_count(job: Job, config: ProofConfig) -> None:
    """Raise PlanError if there are more workers than images in a micro-batch."""
    images = min(crop_stages.batches(job)) // job.train.micro_batches
    workers = max((config.workers, *config.resume_workers))
    if workers > images:
        raise PlanError(f"{workers} workers cannot share a micro-batch of {images} images: each needs one.")


def instrument(job: Job, dataset: Dataset, config: ProofConfig) -> tuple[ProofConfig, Job]:
    """Return settings and job for the proof: with a ledger, and with enough checkpoints, all of them kept.

    The run identity does not change. Raises PlanError if there are too few steps for the kills.
    """
    check_worker_count(job, config)
    most = total_steps(job.train, datasets.train_stream(dataset, job).order.steps_per_epoch)
    steps = min(config.steps, most)
    if config.kills >= steps:
        raise PlanError(f"{config.kills} kills need more than {steps} steps. Lower --kills or raise --steps.")
    every = min(job.checkpoint.every_steps, max(1, steps // _CHECKPOINTS))
    changed = job.model_copy(
        update={
            "data": job.data.model_copy(update={"ledger": True}),
            "checkpoint": job.checkpoint.model_copy(update={"every_steps": every, "keep": KEEP_ALL}),
            "track": job.track.model_copy(update={"every_steps": 1}),
        }
    )
    return replace(config, steps=steps), changed


def run_folders(job: Job, dataset: Dataset, config: ProofConfig) -> tuple[str, str]:
    """Return new folders in the store for both runs; a random number separates proofs of the same job."""
    number = secrets.randbelow(10**9)
    base = f"{below(job.storage, PROOFS_FOLDER)}/{run_id(job, dataset.digests)}-{config.seed}-{number}"
    open_store(base).ensure_bucket()
    return f"{base}/{PROOF_RUNS[0]}", f"{base}/{PROOF_RUNS[1]}"


def compare(reference: Store, killed: Store, config: ProofConfig) -> Proof:
    """Compare checkpoints and ledgers of two runs."""
    one, other = _blobs(reference), _blobs(killed)
    common = tuple(sorted(step for step in one.keys() & other.keys() if step <= config.steps))
    different = {
        step: parts
        for step in common
        if (parts := tuple(sorted(name for name in one[step] if one[step][name] != other[step].get(name))))
    }
    positions = attempts = 0
    wrong = ""
    try:
        expected, found = LedgerReader(reference), LedgerReader(killed)
        for n, (before, after) in enumerate(zip(expected, found, strict=False)):
            if before != after:
                wrong = f"position {n} was {before}, and {after} in the killed run"
                break
        reports = expected.report(), found.report()
        positions, attempts = min(report.positions for report in reports), reports[1].attempts
        if not wrong and common and positions < _position(reference, max(common)):
            wrong = f"only {positions} positions are in both ledgers"
    except LedgerError as error:
        wrong = str(error)
    return Proof(common, different, wrong, positions, attempts, config.same_world_size)


def run_in_processes(
    job: Job,
    dataset: Dataset,
    store: Store,
    segments: Sequence[RunSegment],
    stop: int,
    echo: Echo,
    *,
    after_kill: Callable[[Store], None] = lambda store: None,
) -> None:
    """Run segments in local processes, as a `SegmentRunner`; call `after_kill` with the folder after each kill."""
    for segment in segments:
        for step, victim in segment.kills:
            start_step = newest_step(store)
            echo(
                f"from step {start_step} to {step} on {count(segment.workers, 'worker')}: worker {victim} is killed"
            )
            _run(job, dataset, store, segment.workers, step - start_step, victim)
            after_kill(store)
    start_step = newest_step(store)
    echo(f"from step {start_step} to {stop} on {count(segments[-1].workers, 'worker')}: no kill")
    _run(job, dataset, store, segments[-1].workers, stop - start_step, None)


def newest_step(store: Store) -> int:
    """Return the step of the newest checkpoint, 0 if there is none."""
    return max((step for step, _ in _records(store)), default=0)


def _run(job: Job, dataset: Dataset, store: Store, world: int, steps: int, victim: int | None) -> None:
    if steps == 0:
        return
    location = RunLocation(run_id(job, dataset.digests), store.uri, Path())
    run_local_segment(LocalSegment(worker_assignment(job, dataset, location), world, steps, victim))


def _records(store: Store) -> list[tuple[int, str]]:
    keys = store.list("checkpoints/")
    return [(int(key.removeprefix("checkpoints/").split("-")[0]), key) for key in keys]


def _blobs(store: Store) -> dict[int, dict[str, str]]:
    return {step: dict(read_record(store, key)["blobs"]) for step, key in _records(store)}


def _position(store: Store, step: int) -> int:
    return next(int(read_record(store, key)["position"]) for at, key in _records(store) if at == step)
