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
from orchestrator.resilience.local_workers import Leg, run_leg
from orchestrator.run_files import FOLDER, RUNS
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
class Stretch:
    """What one number of workers does of a run."""

    workers: int
    deaths: tuple[tuple[int, int], ...] = ()
    """(step, worker): after each of these steps that worker dies by SIGKILL, before a checkpoint, and as many begin
    anew; after the last of them, in all but the last stretch, the next number of workers does."""


Runs = Callable[[Job, Dataset, Store, Sequence[Stretch], int, Echo], None]
"""How a run is taken in its folder through stretches until a step, at which it stops with a checkpoint."""


@dataclass(frozen=True)
class Trial:
    """What is done to the job."""

    kills: int
    seed: int
    steps: int
    workers: int
    others: tuple[int, ...] = ()
    """Numbers of workers that take over after a kill, in turn; empty: the same."""

    @property
    def same_world(self) -> bool:
        """Whether every leg has the same number of workers."""
        return set(self.others) <= {self.workers}

    def world(self, leg: int) -> int:
        """Return the number of workers of a leg, from 0."""
        return self.workers if leg == 0 or not self.others else self.others[(leg - 1) % len(self.others)]

    def kill_steps(self) -> list[int]:
        """Return the steps after which a worker dies, ascending."""
        return sorted(random.Random(self.seed).sample(range(1, self.steps), self.kills))

    def stretches(self) -> list[Stretch]:
        """Return who dies when, and who takes over."""
        rng = random.Random(self.seed)
        found = [Stretch(self.workers)]
        for leg, step in enumerate(self.kill_steps()):
            death = (step, rng.randrange(found[-1].workers))
            found[-1] = replace(found[-1], deaths=(*found[-1].deaths, death))
            if self.world(leg + 1) != found[-1].workers:
                found.append(Stretch(self.world(leg + 1)))
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
    same_world: bool

    @property
    def holds(self) -> bool:
        """Whether the job resumed exactly."""
        return not self.ledger and bool(self.compared) and not (self.same_world and self.different)

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
        if not self.same_world:
            lines.append(
                "                       (other numbers of workers add in another order: not required)"
            )
        exactly = "RESUMES EXACTLY" if not self.different else "THE SAME SAMPLES, EACH ONCE"
        lines.append(exactly if self.holds else "DOES NOT RESUME EXACTLY")
        return "\n".join(lines)


def prove_resume(
    job: Job,
    trial: Trial,
    say: Echo,
    *,
    keep: bool = False,
    runs: Runs | None = None,
) -> Proof:
    """Run the first `trial.steps` steps of `job` twice and compare; `runs` is `in_processes` if not given.

    What the runs wrote goes when the proof holds, unless told to `keep` it. Raises an error of `orchestrator.errors`
    when the job cannot be run so.
    """
    runs = runs or in_processes
    pack_what_is_missing(job, say)
    dataset = datasets.open_dataset(job)
    trial, job = watched(job, dataset, trial)
    reference, killed = (open_store(uri) for uri in folders(job, dataset, trial))
    for store in (reference, killed):
        if job.init_from is not None:
            initial_weights.keep(job, store, resolve_tracking_uri(job.track.uri))
    say(f"reference: {trial.steps} steps on {many(trial.workers)}, left alone")
    runs(job, dataset, reference, [Stretch(trial.workers)], trial.steps, say)
    runs(job, dataset, killed, trial.stretches(), trial.steps, say)
    proof = compare(reference, killed, trial)
    if keep or not proof.holds:
        say(f"both runs stay in {reference.uri.rpartition('/')[0]}")
    else:
        for store in (reference, killed):
            for key in store.list():
                store.delete(key)
            if isinstance(store, LocalStore):  # a bucket has no empty folders
                shutil.rmtree(store.root.parent, ignore_errors=True)
    return proof


def check_crew(job: Job, trial: Trial) -> None:
    """Raise PlanError when there are more workers than images for them."""
    images, crew = job.train.global_batch_size // job.train.micro_batches, max((trial.workers, *trial.others))
    if crew > images:
        raise PlanError(f"{crew} workers cannot share a micro-batch of {images} images: each needs one.")


def watched(job: Job, dataset: Dataset, trial: Trial) -> tuple[Trial, Job]:
    """Return trial and job as they are run: with a ledger, and with enough checkpoints that are all kept.

    None of it makes it another run. Raises PlanError when there are not steps enough.
    """
    check_crew(job, trial)
    most = total_steps(job.train, datasets.train_stream(dataset, job).order.steps_per_epoch)
    steps = min(trial.steps, most)
    if trial.kills >= steps:
        raise PlanError(f"{trial.kills} kills need more than {steps} steps. Lower --kills or raise --steps.")
    every = min(job.checkpoint.every_steps, max(1, steps // _CHECKPOINTS))
    changed = job.model_copy(
        update={
            "data": job.data.model_copy(update={"ledger": True}),
            "checkpoint": job.checkpoint.model_copy(update={"every_steps": every, "keep": KEEP_ALL}),
            "track": job.track.model_copy(update={"every_steps": 1}),
        }
    )
    return Trial(trial.kills, trial.seed, steps, trial.workers, trial.others), changed


def folders(job: Job, dataset: Dataset, trial: Trial) -> tuple[str, str]:
    """Return new folders of the store for the two runs; a number by chance keeps two proofs of one job apart."""
    number = secrets.randbelow(10**9)
    base = f"{below(job.storage, FOLDER)}/{run_id(job, dataset.digests)}-{trial.seed}-{number}"
    open_store(base).ensure_bucket()
    return f"{base}/{RUNS[0]}", f"{base}/{RUNS[1]}"


def compare(reference: Store, killed: Store, trial: Trial) -> Proof:
    """Return what checkpoints and ledgers of the two runs have in common."""
    one, other = _blobs(reference), _blobs(killed)
    common = tuple(sorted(step for step in one.keys() & other.keys() if step <= trial.steps))
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
    return Proof(common, different, wrong, positions, attempts, trial.same_world)


def in_processes(
    job: Job,
    dataset: Dataset,
    store: Store,
    stretches: Sequence[Stretch],
    stop: int,
    say: Echo,
    *,
    between: Callable[[Store], None] = lambda store: None,
) -> None:
    """Do what `Runs` says in plain processes; `between` is called with the folder after each death."""
    for stretch in stretches:
        for step, victim in stretch.deaths:
            begins = newest_step(store)
            say(f"from step {begins} to {step} on {many(stretch.workers)}: worker {victim} is killed")
            _run(job, dataset, store, stretch.workers, step - begins, victim)
            between(store)
    begins = newest_step(store)
    say(f"from step {begins} to {stop} on {many(stretches[-1].workers)}: the end")
    _run(job, dataset, store, stretches[-1].workers, stop - begins, None)


def newest_step(store: Store) -> int:
    """Return the step of the newest checkpoint, 0 without one."""
    return max((step for step, _ in _records(store)), default=0)


def _run(job: Job, dataset: Dataset, store: Store, world: int, steps: int, victim: int | None) -> None:
    if steps == 0:
        return
    leg = Leg(
        job=job.model_dump(mode="json", exclude_none=True),
        manifests=datasets.manifest_uris(job),
        digests=tuple(dataset.digests),
        run_uri=store.uri,
        world_size=world,
        steps=steps,
        killed=victim,
        code_version=code_version(),
    )
    run_leg(leg)


def _records(store: Store) -> list[tuple[int, str]]:
    keys = store.list("checkpoints/")
    return [(int(key.removeprefix("checkpoints/").split("-")[0]), key) for key in keys]


def _blobs(store: Store) -> dict[int, dict[str, str]]:
    return {step: dict(json.loads(store.read(key))["blobs"]) for step, key in _records(store)}


def _position(store: Store, step: int) -> int:
    return next(int(json.loads(store.read(key))["position"]) for at, key in _records(store) if at == step)


def many(count: int) -> str:
    """Return so many workers in words."""
    return f"{count} worker{'' if count == 1 else 's'}"
