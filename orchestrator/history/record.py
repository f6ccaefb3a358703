"""What is known of a run: its job and plan, its curves, what interrupted it, and which processes ran it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from orchestrator import console, events
from orchestrator.config.loader import show_job
from orchestrator.config.schema import Job
from orchestrator.data import datasets
from orchestrator.events import Event
from orchestrator.history.curve import Curve, finite
from orchestrator.masking import without_password
from orchestrator.planning.estimate import GIB
from orchestrator.planning.plan import Plan
from shards.dataset import Dataset

State = Literal["training", "stopped", "failed", "finished"]

PSNR, LOSS = "val/psnr", "loss/total"
SPEED, WAITING = "perf/images_per_second", "perf/data_wait"

_MAX_NOTES = 200
_MAX_PROCESSES = 100
_MAX_RESUMES = 20
_MAX_TEXT = 600
_STATUS_POINTS = 32
_STATUS_NOTES = 5


@dataclass(frozen=True)
class Input:
    """A packed dataset of the run."""

    uri: str
    digest: str
    train: int
    """Samples of this split."""
    test: int


@dataclass(frozen=True)
class Prediction:
    """The plan's estimate for one number of workers."""

    workers: int
    hours: float
    step_seconds: float
    memory_gib: float
    """Of one worker."""
    cost: float | None


@dataclass(frozen=True)
class Facts:
    """What a run is by its job, data and plan."""

    run: str
    folder: str
    """The run's folder in the store."""
    name: str
    """Of the job."""
    setting: str
    recipe: str
    protocol: str
    degradations: list[str]
    """That are evaluated."""
    job: str
    """The resolved job, as YAML."""
    plan: str
    """As `mirage plan` prints it."""
    total_steps: int
    parameters: int
    batch: int
    predictions: list[Prediction]
    speed_from: str
    """Where the plan has the speed from."""
    currency: str
    worker_hour: float | None
    """Price."""
    head_hour: float
    data: list[Input]
    tracked: str
    """The MLflow server, and the run's id there."""

    @classmethod
    def of(cls, run: str, folder: str, job: Job, plan: Plan, dataset: Dataset, tracked: str) -> Facts:
        """Return the facts of a run, without passwords."""
        counts = [manifest.counts() for manifest in dataset.manifests]
        data = zip(datasets.manifest_uris(job), dataset.digests, counts, strict=True)
        estimates = plan.estimates
        return cls(
            run=run,
            folder=without_password(folder),
            name=job.name,
            setting=job.setting,
            recipe=job.recipe,
            protocol=job.evaluate.protocol,
            degradations=list(job.evaluate.degradations),
            job=show_job(job),
            plan=without_password(plan.render()),
            total_steps=plan.total_steps,
            parameters=plan.parameters,
            batch=job.train.global_batch_size,
            predictions=[
                Prediction(e.workers, e.hours, e.step_seconds, e.memory.total / GIB, e.cost)
                for e in estimates
            ],
            speed_from=estimates[0].rate.source if estimates else "",
            currency=job.prices.currency,
            worker_hour=job.prices.worker_hour,
            head_hour=job.prices.head_hour,
            data=[
                Input(
                    without_password(uri), digest, *(sum(held.get(s, {}).values()) for s in ("train", "test"))
                )
                for uri, digest, held in data
            ],
            tracked=without_password(tracked),
        )


@dataclass(frozen=True)
class Note:
    """Something that happened to a run."""

    unix: float
    step: int
    text: str


@dataclass
class DriverProcess:
    """A driver process of the run, from its start to its end."""

    host: str
    code_version: str
    began_unix: float
    seen_unix: float
    """Time of the newest event."""
    first_step: int = 0
    last_step: int = 0
    end: str = ""
    """How it ended; empty while it runs."""
    resumed_at: list[int] = field(default_factory=list)
    """Steps that its groups of workers resumed from, the newest ones."""

    @property
    def seconds(self) -> float:
        """Return how long it ran."""
        return max(0.0, self.seen_unix - self.began_unix)


@dataclass(frozen=True)
class Status:
    """The state of a run in few bytes, for lists of runs and for who follows it."""

    run: str
    name: str
    setting: str
    recipe: str
    state: State
    reason: str
    step: int
    total_steps: int
    psnr: float | None
    """Of the newest validation, or of the finished run [dB]."""
    loss: float | None
    images_per_second: float | None
    data_wait: float | None
    """Share of the time that waits for data."""
    seconds: float
    """Time of all processes of the run."""
    seconds_left: float | None
    began_unix: float
    seen_unix: float
    workers: int
    model: str
    """The registered version."""
    curve_of: str
    """Name of the metric of `curve`."""
    curve: list[float | None]
    notes: list[Note]
    """The newest ones."""


@dataclass
class History:
    """The record of a run, which its driver keeps up to date. Its size does not grow with the run's length."""

    facts: Facts
    state: State = "training"
    reason: str = ""
    """Of the end."""
    step: int = 0
    seconds_left: float | None = None
    workers: int = 0
    worker_seconds: float = 0.0
    """Time of all workers together."""
    checkpoints: int = 0
    """Checkpoints written so far."""
    final_psnr: float | None = None
    """Average of the finished run's whole held-out photographs [dB]."""
    model: str = ""
    peaks: dict[str, float] = field(default_factory=dict)
    """Maximum of each metric of the nodes' memory [GiB]."""
    curves: dict[str, Curve] = field(default_factory=dict)
    latest: dict[str, float | None] = field(default_factory=dict)
    """Newest value of each curve's metric; None: not finite."""
    processes: list[DriverProcess] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    notes_left_out: int = 0

    def begin(self, facts: Facts, host: str, code_version: str, workers: int, now: float) -> None:
        """Note that a process starts or resumes the run, with that many workers so far."""
        if self.processes and not self.processes[-1].end:
            self.processes[-1].end = "ended without a word"
            self._note("the process before this one ended without a word", now)
        self.facts, self.state, self.reason = facts, "training", ""
        self.workers, self.seconds_left = workers, None
        self.processes = [*self.processes, DriverProcess(host, code_version, now, now)][-_MAX_PROCESSES:]

    def end(self, state: State, reason: str, now: float) -> None:
        """Note that the process ends."""
        self._see(now)
        self.state, self.reason, self.seconds_left, self.workers = state, _cut(reason), None, 0
        self.processes[-1].end = f"{state}: {self.reason}" if self.reason else state
        if state != "finished":
            self._note(self.processes[-1].end, now)

    def score(self, psnr: float) -> None:
        """Note the average of the whole held-out photographs, infinite where one is restored exactly."""
        self.final_psnr = finite(psnr)

    def add(self, event: Event, now: float) -> None:
        """Take what an event tells. Pictures are not part of the record."""
        self._see(now)
        match event:
            case events.Measured(step, metrics):
                self._measured(step, metrics)
                if isinstance(event, events.Progress):
                    self.seconds_left = event.seconds_left
            case events.CheckpointWritten(step):
                self.checkpoints += 1
                self.processes[-1].last_step = max(step, self.processes[-1].last_step)
            case events.WorkersStarted(workers):
                self.workers = workers
                self._note(console.text(event), now)
            case events.WorkersStarting():
                self.workers = 0
            case events.ModelRegistered():
                self.model = event.words
            case events.Resumed(_, step):
                process, self.step = self.processes[-1], step
                if not process.last_step:  # else only its workers have started again
                    process.first_step = process.last_step = step
                process.resumed_at.append(step)
                del process.resumed_at[:-_MAX_RESUMES]
                self._note(console.text(event), now)
            case events.Image() | events.RunFinished() | events.RunStarted() | events.RunStopped():
                pass
            case events.LogMessage(level="info"):
                pass
            case _:
                self._note(console.text(event), now)

    @property
    def seconds(self) -> float:
        """Return the time of all processes together."""
        return sum(process.seconds for process in self.processes)

    def status(self) -> Status:
        """Return the state in few bytes."""
        facts = self.facts
        shown = PSNR if len(self.curves.get(PSNR, Curve()).steps) > 1 else LOSS
        values = self.curves.get(shown, Curve()).values
        return Status(
            **{name: getattr(facts, name) for name in ("run", "name", "setting", "recipe", "total_steps")},
            **{name: getattr(self, name) for name in ("state", "reason", "step", "seconds", "seconds_left")},
            psnr=self.latest.get(PSNR) if self.final_psnr is None else self.final_psnr,
            loss=self.latest.get(LOSS),
            images_per_second=self.latest.get(SPEED),
            data_wait=self.latest.get(WAITING),
            began_unix=self.processes[0].began_unix,
            seen_unix=self.processes[-1].seen_unix,
            workers=self.workers,
            model=self.model,
            curve_of=shown,
            curve=thinned(values, _STATUS_POINTS),
            notes=self.notes[-_STATUS_NOTES:],
        )

    def _see(self, now: float) -> None:
        process = self.processes[-1]
        self.worker_seconds += self.workers * max(0.0, now - process.seen_unix)
        process.seen_unix = max(now, process.began_unix)

    def _measured(self, step: int, metrics: Mapping[str, float]) -> None:
        self.step = self.processes[-1].last_step = step
        for name, value in metrics.items():
            if _is_curve(name):
                self.curves.setdefault(name, Curve()).add(step, value)
                self.latest[name] = finite(value)
            elif name.endswith(("/memory_gib", "/gpu_peak_allocated_gib")):
                kind = name.rpartition("/")[2]
                self.peaks[kind] = max(value, self.peaks.get(kind, 0.0))

    def _note(self, text: str, now: float) -> None:
        self.notes.append(Note(round(now, 3), self.step, _cut(without_password(text))))
        if len(self.notes) > _MAX_NOTES:
            del self.notes[0]
            self.notes_left_out += 1


def thinned(values: Sequence[float | None], count: int) -> list[float | None]:
    """Return at most `count` of the values, evenly chosen, with the first and the last."""
    if len(values) <= count:
        return list(values)
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]


def _is_curve(name: str) -> bool:
    if name.startswith("val/"):
        return name.endswith(("/psnr", "/gain")) and not name.endswith("/input_psnr")
    return name.startswith(("loss/", "loss_of/", "perf/", "data/")) or name in (
        "optim/lr",
        "optim/skipped_steps",
    )


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"
