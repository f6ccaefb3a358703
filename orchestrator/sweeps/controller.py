"""What a sweep does next, and the writing down of it. How a trial is run is not known here.

    propose ─► rejected (impossible, too dear, tried before) ─► propose again
        └────► suggested ─► a thread of its own ─► observed, decided ... ─► ended

Trials run in threads and report here under one lock, so the book has one writer and one order. A trial that the book
calls suggested and not ended is run again first, and goes on from its checkpoint.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.config.constraints import Costs, rejection
from orchestrator.config.schema import Job
from orchestrator.config.search_space import Values, candidate
from orchestrator.config.sweep_schema import SweepJob, rungs, shown
from orchestrator.console import Echo
from orchestrator.errors import ModelError, SweepError, TrainingError
from orchestrator.sweeps.costs import cost_of
from orchestrator.sweeps.event_log import Book
from orchestrator.sweeps.search import Proposal, propose
from orchestrator.sweeps.successive_halving import Decision, decide
from orchestrator.sweeps.trial_table import Table, Trial, apply, table_of
from orchestrator.training.checkpoint import METRIC

HOPELESS = 200
"""Candidates rejected one after another after which a search is over."""
_TICK_SECONDS = 0.5
_LEAVING_SECONDS = 120.0
"""How long trials that were asked to stop may take for their checkpoints."""

OWN_FAILURES = (TrainingError, ModelError, MemoryError)
"""What ends a trial and not the sweep. Out of memory on a GPU is a TrainingError by then, or a RuntimeError."""


@dataclass
class Watch:
    """What a running trial tells, and asks. `observed` and `heard` are called from its thread."""

    number: int
    attempt: int
    asked: threading.Event = field(default_factory=threading.Event)
    """Set when the trial shall write a checkpoint and end."""
    unfit: str = ""
    """Why the trial is given up, though its run did not fail by itself."""
    began: float = field(default_factory=time.monotonic)
    last: float = field(default_factory=time.monotonic)
    controller: Controller | None = None

    def heard(self) -> None:
        """Note that the trial is alive."""
        self.last = time.monotonic()

    def started(self, run: str, tracked: str, devices: float, total_steps: int) -> None:
        """Tell the trial's run, here and in MLflow, the devices it holds, and the steps to its job's end."""
        assert self.controller is not None, "a watch belongs to a controller"
        self.controller.note_start(self, run, tracked, devices, total_steps)

    def observed(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell a validation; `asked` is set before this returns when the trial stops here."""
        assert self.controller is not None, "a watch belongs to a controller"
        self.heard()
        self.controller.note_observation(self, step, metrics)

    @property
    def seconds(self) -> float:
        """Since the attempt began."""
        return round(time.monotonic() - self.began, 3)


RunTrial = Callable[[Trial, Job, Watch], bool]
"""Runs a trial in the calling thread; returns whether its job came to its end, or was stopped with a checkpoint."""


class Controller:
    """Runs a sweep to its end, or until it is asked to stop."""

    def __init__(self, job: SweepJob, name: str, book: Book, run: RunTrial, room: int, say: Echo) -> None:
        self._job, self._name, self._book, self._run = job, name, book, run
        self._room = min(room, job.sweep.max_concurrent or room)
        self._say = say
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._running: dict[int, Watch] = {}
        self._broken: BaseException | None = None
        self._silent: set[int] = set()
        self._searched = False
        """Whether the search has said its last word."""
        self._leaving = False
        self.table: Table = table_of(book.events)

    def run(self, stopping: Callable[[], bool], explain: Callable[[], str]) -> bool:
        """Return whether the sweep came to its end. Raises what no trial is to blame for.

        `explain` says what the cluster holds, for a trial that is silent.
        """
        with self._changed:
            while True:
                leave = stopping() or self._broken is not None
                while not leave and len(self._running) < self._room and (trial := self._next()):
                    self._start(trial)
                if not self._running:
                    break
                if leave:
                    self._leave()
                    break
                self._changed.wait(_TICK_SECONDS)
                self._complain_of_silence(explain)
            if self._broken is not None:
                raise self._broken
            return self._searched and all(trial.ended for trial in self.table.trials)

    # --- suggesting -----------------------------------------------------------------------------------------

    def _next(self) -> Trial | None:
        """Return the next trial to run: one that was begun before, else a new one; None when there is none now."""
        for trial in self.table.trials:
            if not trial.ended and trial.number not in self._running:
                if self._settled(trial):
                    continue
                return trial
        if self._searched:
            return None
        if len(self.table.trials) >= self._job.sweep.trials:
            self._searched = True
            return None
        hours = self._job.sweep.max_device_hours
        if hours is not None and self.table.device_seconds >= 3600 * hours:
            self._end_of_search(f"sweep.max_device_hours ({hours:g}) are spent")
            return None
        for _ in range(HOPELESS):
            index = self.table.proposals
            proposal = propose(self._job.sweep, self.table.tried(self._job.sweep.search.against))
            if proposal is None:
                self._end_of_search("every point was tried")
                return None
            why_not, costs = self._objection(proposal)
            if costs is not None and not why_not:
                return self._suggest(index, proposal, costs)
            self._note("rejected", index=index, values=proposal.values, reason=why_not)
            self._say(f"rejected   {words(proposal.values)}: {why_not}")
        self._end_of_search(
            f"{HOPELESS} candidates in a row were rejected, the last one because {self.table.rejected[-1].reason}"
        )
        return None

    def _objection(self, proposal: Proposal) -> tuple[str, Costs | None]:
        """Return why the candidate is not run, "" when it is, and what it costs."""
        made = candidate(self._job, proposal.values)
        if made.job is None:
            return made.impossible, None
        found = cost_of(made.job)
        return rejection(found, self._job.sweep.constraints), found

    def _suggest(self, index: int, proposal: Proposal, costs: Costs) -> Trial:
        number = len(self.table.trials)
        self._note(
            "suggested",
            index=index,
            number=number,
            values=proposal.values,
            reason=proposal.why,
            costs=asdict(costs),
        )
        self._say(f"trial {number}    {words(proposal.values)}   ({proposal.why})")
        return self.table.trials[number]

    def _end_of_search(self, why: str) -> None:
        """Begin no more trials, and write down why there are fewer than were asked for."""
        self._searched = True
        if why not in self.table.notes:
            self._note("exhausted", reason=why)
        self._say(f"the search is over: {why}")

    # --- running --------------------------------------------------------------------------------------------

    def _start(self, trial: Trial) -> None:
        watch = Watch(trial.number, trial.attempts + 1, controller=self)
        self._running[trial.number] = watch
        threading.Thread(
            target=self._attend, args=(trial, watch), name=f"trial-{trial.number}", daemon=True
        ).start()

    def _attend(self, trial: Trial, watch: Watch) -> None:
        """Body of a trial's thread."""
        made = candidate(self._job, trial.values, trial_name(self._name, trial.number))
        assert made.job is not None, "only candidates that can be run are suggested"
        try:
            complete = self._run(trial, made.job, watch)
        except OWN_FAILURES as error:
            with self._changed:
                self._end(trial, watch, "failed", _reason(error))
        except RuntimeError as error:
            with self._changed:
                if "out of memory" in str(error).lower():
                    self._end(trial, watch, "failed", _reason(error))
                else:
                    self._broken = error
        except BaseException as error:  # carried to the main thread, which raises it
            with self._changed:
                self._broken = error
        else:
            with self._changed:
                self._conclude(trial, watch, complete)
        finally:
            with self._changed:
                self._running.pop(trial.number, None)
                self._changed.notify_all()

    def note_start(self, watch: Watch, run: str, tracked: str, devices: float, total_steps: int) -> None:
        """Write down that a trial's attempt begins."""
        length = min(total_steps, self._job.sweep.steps or total_steps)
        with self._changed:
            self._note(
                "started",
                number=watch.number,
                attempt=watch.attempt,
                run=run,
                tracked=tracked,
                devices=devices,
                length=length,
                whole=length == total_steps,
            )

    def note_observation(self, watch: Watch, step: int, metrics: Mapping[str, float]) -> None:
        """Write down a validation and decide whether its trial goes on."""
        with self._changed:
            trial = self.table.trials[watch.number]
            if trial.ended or step in trial.observed or trial.stopping_rung is not None:
                return
            if step > trial.length:
                return
            psnr = metrics.get(METRIC, math.nan)
            if not math.isfinite(psnr):
                watch.unfit = f"the validation at step {step} is not finite: the run has diverged"
                watch.asked.set()
                return
            self._note(
                "observed",
                number=trial.number,
                attempt=watch.attempt,
                step=step,
                seconds=watch.seconds,
                metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
                decisions=[
                    {"step": rung, **asdict(made)} for rung, made in self._decisions(trial, step, psnr)
                ],
            )
            if trial.cut or trial.stopping_rung is not None:
                watch.asked.set()

    def _decisions(self, trial: Trial, step: int, psnr: float) -> Iterator[tuple[int, Decision]]:
        """Yield what is decided at `step`; it is written down in one with the validation that it is based on."""
        scheduler = self._job.sweep.scheduler
        if scheduler.name == "none" or step == trial.length:
            return
        for rung in rungs(scheduler.first_steps, scheduler.reduction, trial.length):
            if rung > step or rung in trial.decisions:
                continue
            before = [_at_rung(other, rung) for other in self.table.trials if rung in other.decisions]
            made = decide(rung, psnr, before, scheduler.reduction)
            yield rung, made
            if made.stop:
                self._say(f"trial {trial.number}    stops: {made.reason}")
                return

    def _settled(self, trial: Trial) -> bool:
        """End a trial whose end was decided before the driver died; return whether that was so."""
        if trial.stopping_rung is None and not trial.cut:
            return False
        self._conclude(trial, Watch(trial.number, trial.attempts), complete=False)
        return trial.ended

    def _conclude(self, trial: Trial, watch: Watch, complete: bool) -> None:
        """Write down how a trial ended that did not fail; one that was only interrupted has no end yet."""
        if watch.unfit:
            self._end(trial, watch, "failed", watch.unfit)
        elif (rung := trial.stopping_rung) is not None:
            self._end(trial, watch, "stopped", trial.decisions[rung][1])
        elif complete or trial.cut:
            if trial.psnr is None:
                self._end(
                    trial, watch, "failed", "no validation was reached: train longer, or validate more often"
                )
            else:
                self._end(trial, watch, "finished", f"{trial.psnr:.2f} dB at step {trial.step}")
        elif not self._leaving:
            self._end(
                trial, watch, "failed", "it was stopped before its end: workers.max_runtime_hours are over"
            )

    def _end(self, trial: Trial, watch: Watch, status: str, reason: str) -> None:
        seconds = trial.seconds.get(watch.attempt, 0.0) if watch.controller is None else watch.seconds
        self._note("ended", number=trial.number, status=status, reason=reason, seconds=seconds)
        if status != "stopped":
            self._say(f"trial {trial.number}    {status}: {reason}")

    def _leave(self) -> None:
        """Ask all trials for a checkpoint and wait for them."""
        self._leaving = True
        deadline = time.monotonic() + _LEAVING_SECONDS
        for watch in self._running.values():
            watch.asked.set()
        while self._running.keys() - self._silent and time.monotonic() < deadline:
            self._changed.wait(_TICK_SECONDS)

    def _complain_of_silence(self, explain: Callable[[], str]) -> None:
        limit = 60 * self._job.sweep.stall_minutes
        for watch in self._running.values():
            if time.monotonic() - watch.last > limit and watch.number not in self._silent:
                self._silent.add(watch.number)
                self._broken = self._broken or SweepError(
                    f"trial {watch.number} has said nothing for sweep.stall_minutes "
                    f"({self._job.sweep.stall_minutes:g}). {explain()} "
                    "What is done is kept: submit the sweep again to go on."
                )

    def _note(self, kind: str, **facts: Any) -> None:
        apply(self.table, self._book.add(kind, **facts))


def trial_name(sweep: str, number: int) -> str:
    """Return what the run of a trial is called."""
    return f"{sweep}-t{number:03d}"


def words(values: Values) -> str:
    """Return values as a line of text."""
    return "  ".join(f"{knob.rpartition('.')[2]} {shown(value)}" for knob, value in values.items())


def _at_rung(trial: Trial, rung: int) -> float:
    """Return the PSNR with which a trial came to a rung: of its first validation there or after it."""
    return next(psnr for step, psnr in trial.curve if step >= rung)


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    told = text.partition(" Submit the job again")[0]
    return (
        f"out of memory: {told}"
        if "out of memory" in text.lower() or isinstance(error, MemoryError)
        else told
    )
