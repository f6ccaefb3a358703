"""Proof that a job resumes exactly: killed at random steps and resumed, it is what it is when left alone.

    reference   begin ──────────────────────────────────────────► step N
    killed      begin ──► ✗   resume ─────► ✗   resume ─────────► step N      the same, or another number of workers

On a Ray cluster that is how a job runs there (`cluster.proving`), without one it is plain processes of this machine.

Both write a checkpoint every few steps, whose tensors are named by their content: equal names are equal bits. On the
same number of workers every checkpoint must have the same weights, averaged weights and optimiser state; on another
one sums are taken in another order, and the ledger must show the same sample at every position, each once.
"""

from __future__ import annotations

import json
import random
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from orchestrator.config.identity import run_id
from orchestrator.config.schedule import total_steps
from orchestrator.config.schema import Job
from orchestrator.console import Echo
from orchestrator.data import datasets
from orchestrator.data.job import pack_what_is_missing
from orchestrator.errors import PlanError
from orchestrator.paths import below
from orchestrator.resilience.local_workers import LocalSegment, run_local_segment
from orchestrator.run_files import PROOF_RUNS, PROOFS_FOLDER
from orchestrator.tracking.uri import resolve_tracking_uri
from orchestrator.training import initial_weights
from orchestrator.version import code_version
from shards.dataset import Dataset
from shards.errors import LedgerError
from shards.ledger import read_ledger
from shards.store import LocalStore, Store, open_store

_CHECKPOINTS = 4
"""Written in the steps that are looked at, at least."""
KEEP_ALL = 10**6
"""Checkpoints."""


@dataclass(frozen=True)
class RunSegment:
    """What one number of workers does of a run."""

    workers: int
    kills: tuple[tuple[int, int], ...] = ()
    """(step, worker): after each of these steps that worker dies by SIGKILL, before a checkpoint, and as many begin
    anew; after the last of them, in all but the last segment, the next number of workers does."""


SegmentRunner = Callable[[Job, Dataset, Store, Sequence[RunSegment], int, Echo], None]
"""How a run is taken in its folder through segments until a step, at which it stops with a checkpoint."""


@dataclass(frozen=True)
class ProofConfig:
    """What is done to the job."""

    kills: int
    seed: int
    steps: int
    workers: int
    resume_workers: tuple[int, ...] = ()
    """Numbers of workers that take over after a kill, in turn; empty: the same."""

    @property
    def same_world_size(self) -> bool:
        """Whether every segment has the same number of workers."""
        return set(self.resume_workers) <= {self.workers}

    def world_size(self, segment: int) -> int:
        """Return the number of workers of a segment, from 0."""
        return (
            self.workers
            if segment == 0 or not self.resume_workers
            else self.resume_workers[(segment - 1) % len(self.resume_workers)]
        )

    def kill_steps(self) -> list[int]:
        """Return the steps after which a worker dies, ascending."""
        return sorted(random.Random(self.seed).sample(range(1, self.steps), self.kills))

    def segments(self) -> list[RunSegment]:
        """Return who dies when, and who takes over."""
        rng = random.Random(self.seed)
        found = [RunSegment(self.workers)]
        for segment, step in enumerate(self.kill_steps()):
            kill = (step, rng.randrange(found[-1].workers))
            found[-1] = replace(found[-1], kills=(*found[-1].kills, kill))
            if self.world_size(segment + 1) != found[-1].workers:
                found.append(RunSegment(self.world_size(segment + 1)))
        return found


@dataclass(frozen=True)
class Proof:
    """What two runs of one job have in common."""

    compared: tuple[int, ...]
    """Steps of the checkpoints that both have."""
    different: dict[int, tuple[str, ...]]
    """Step -> what differs there, of weights, averaged weights and optimiser state."""
    ledger: str
    """"" when both ledgers show the same sample at every position, each once; else what is wrong."""
    positions: int
    attempts: int
    """Starts that wrote a ledger, as each does before a checkpoint; one that died before its first is not counted."""
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
            equal = "bit-equal: weights, averaged weights, optimiser state, at every one of them"
        else:
            first = min(self.different)
            equal = f"different from step {first} on ({', '.join(self.different[first])})"
        lines.append(f"state                  {equal}")
        if not self.same_world_size:
            lines.append(
                "                       (other numbers of workers add in another order: not required)"
            )
        exactly = "RESUMES EXACTLY" if not self.different else "THE SAME SAMPLES, EACH ONCE"
        lines.append(exactly if self.holds else "DOES NOT RESUME EXACTLY")
        return "\n".join(lines)


def prove_resume(
    job: Job,
    config: ProofConfig,
    echo: Echo,
    *,
    keep: bool = False,
    runner: SegmentRunner | None = None,
) -> Proof:
    """Run the first `config.steps` steps of `job` twice and compare; `runner` is `run_in_processes` if not given.

    What the runs wrote goes when the proof holds, unless told to `keep` it. Raises an error of `orchestrator.errors`
    when the job cannot be run so.
    """
    runner = runner or run_in_processes
    pack_what_is_missing(job, echo)
    dataset = datasets.open_dataset(job)
    config, job = instrument(job, dataset, config)
    reference, killed = (open_store(uri) for uri in run_folders(job, dataset, config))
    for store in (reference, killed):
        if job.init_from is not None:
            initial_weights.store_weights(job, store, resolve_tracking_uri(job.track.uri))
    echo(f"reference: {config.steps} steps on {format_workers(config.workers)}, left alone")
    runner(job, dataset, reference, [RunSegment(config.workers)], config.steps, echo)
    runner(job, dataset, killed, config.segments(), config.steps, echo)
    proof = compare(reference, killed, config)
    if keep or not proof.holds:
        echo(f"both runs stay in {reference.uri.rpartition('/')[0]}")
    else:
        for store in (reference, killed):
            for key in store.list():
                store.delete(key)
            if isinstance(store, LocalStore):  # a bucket has no empty folders
                shutil.rmtree(store.root.parent, ignore_errors=True)
    return proof


def check_worker_count(job: Job, config: ProofConfig) -> None:
    """Raise PlanError when there are more workers than images for them."""
    images, worker_count = (
        job.train.global_batch_size // job.train.micro_batches,
        max((config.workers, *config.resume_workers)),
    )
    if worker_count > images:
        raise PlanError(
            f"{worker_count} workers cannot share a micro-batch of {images} images: each needs one."
        )


def instrument(job: Job, dataset: Dataset, config: ProofConfig) -> tuple[ProofConfig, Job]:
    """Return config and job as they are run: with a ledger, and with enough checkpoints that are all kept.

    None of it makes it another run. Raises PlanError when there are not steps enough.
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
    return ProofConfig(config.kills, config.seed, steps, config.workers, config.resume_workers), changed


def run_folders(job: Job, dataset: Dataset, config: ProofConfig) -> tuple[str, str]:
    """Return new folders of the store for the two runs; a number by chance keeps two proofs of one job apart."""
    number = secrets.randbelow(10**9)
    base = f"{below(job.storage, PROOFS_FOLDER)}/{run_id(job, dataset.digests)}-{config.seed}-{number}"
    open_store(base).ensure_bucket()
    return f"{base}/{PROOF_RUNS[0]}", f"{base}/{PROOF_RUNS[1]}"


def compare(reference: Store, killed: Store, config: ProofConfig) -> Proof:
    """Return what checkpoints and ledgers of the two runs have in common."""
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
        expected, found = read_ledger(reference), read_ledger(killed)
        shared = min(len(expected.samples), len(found.samples))
        positions, attempts = shared, found.attempts
        differing = [n for n in range(shared) if expected.samples[n] != found.samples[n]]
        if differing:
            n = differing[0]
            wrong = f"position {n} was {expected.samples[n]}, and {found.samples[n]} in the killed run"
        elif common and shared < _position(reference, max(common)):
            wrong = f"only {shared} positions are in both ledgers"
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
    """Do what `SegmentRunner` says in plain processes; `after_kill` is called with the folder after each death."""
    for segment in segments:
        for step, victim in segment.kills:
            begins = newest_step(store)
            echo(
                f"from step {begins} to {step} on {format_workers(segment.workers)}: worker {victim} is killed"
            )
            _run(job, dataset, store, segment.workers, step - begins, victim)
            after_kill(store)
    begins = newest_step(store)
    echo(f"from step {begins} to {stop} on {format_workers(segments[-1].workers)}: the end")
    _run(job, dataset, store, segments[-1].workers, stop - begins, None)


def newest_step(store: Store) -> int:
    """Return the step of the newest checkpoint, 0 without one."""
    return max((step for step, _ in _records(store)), default=0)


def _run(job: Job, dataset: Dataset, store: Store, world: int, steps: int, victim: int | None) -> None:
    if steps == 0:
        return
    segment = LocalSegment(
        job=job.model_dump(mode="json", exclude_none=True),
        manifests=datasets.manifest_uris(job),
        digests=tuple(dataset.digests),
        run_uri=store.uri,
        world_size=world,
        steps=steps,
        victim=victim,
        code_version=code_version(),
    )
    run_local_segment(segment)


def _records(store: Store) -> list[tuple[int, str]]:
    keys = store.list("checkpoints/")
    return [(int(key.removeprefix("checkpoints/").split("-")[0]), key) for key in keys]


def _blobs(store: Store) -> dict[int, dict[str, str]]:
    return {step: dict(json.loads(store.read(key))["blobs"]) for step, key in _records(store)}


def _position(store: Store, step: int) -> int:
    return next(int(json.loads(store.read(key))["position"]) for at, key in _records(store) if at == step)


def format_workers(count: int) -> str:
    """Return so many workers in words."""
    return f"{count} worker{'' if count == 1 else 's'}"
