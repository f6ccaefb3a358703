"""Search on Ray Tune: its searchers by name, and the search algorithm that keeps constraints and the event log."""

from __future__ import annotations

import importlib.util
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ray import tune
from ray.tune.experiment import Experiment, Trial
from ray.tune.search import SearchAlgorithm, Searcher, create_searcher

from orchestrator.config.schema import METRIC
from orchestrator.config.search_space import (
    Values,
    grid,
    random_points,
    rounded,
    sample,
    value_key,
)
from orchestrator.config.sweep_schema import SYNCHRONOUS, Domain, Sweep, SweepJob
from orchestrator.errors import SweepError
from orchestrator.planning.candidate_costs import examine
from orchestrator.planning.sweep_plan import MAX_CONSECUTIVE_REJECTIONS
from orchestrator.sweeps.event_log import EventLog
from orchestrator.sweeps.event_schema import Exhausted, Rejected, Suggested
from orchestrator.sweeps.ray_trial import TRIAL
from orchestrator.sweeps.trial_table import TrialRow
from orchestrator.sweeps.trial_training import STEP

_logger = logging.getLogger(__name__)

_MAX_REPEATED = 20
"""Repeated suggestions in a row after which a searcher counts as exhausted."""
_PACKAGES = {
    "ax": ("ax", "ax-platform"),
    "bayesopt": ("bayes_opt", "bayesian-optimization"),
    "hyperopt": ("hyperopt", "hyperopt"),
}
"""Searcher -> the module that it imports, and what to install."""

Decode = Callable[[Mapping[str, Any]], Values]
"""From a searcher's suggestion to values."""


# --- searchers by name ------------------------------------------------------------------------------------------


def searcher_of(sweep: Sweep) -> tuple[Searcher, Decode]:
    """Return the sweep's searcher and its decoder. Raises SweepError if its package is missing or does not fit."""
    search, space = sweep.search, sweep.space
    if search.method in ("grid", "random"):
        points = grid(space) if search.method == "grid" else random_points(space, search.seed)
        return _PointSearcher(points), dict
    if search.method in ("tpe", "optuna"):
        return _optuna(sweep), lambda suggestion: dict(suggestion["values"])
    module, package = _PACKAGES[search.method]
    if importlib.util.find_spec(module) is None:
        raise SweepError(f"search method {search.method}: not installed, run pip install {package}")
    searched = {
        name: domain for name, domain in space.items() if domain.bounds or len(domain.values or ()) > 1
    }
    logging.getLogger("ray.tune.search").setLevel(
        logging.ERROR
    )  # its searchers warn of how they are made here
    try:
        made = create_searcher(
            search.method,
            space={name: tune_domain(domain) for name, domain in searched.items()},
            metric=METRIC,
            mode="max",
            **dict.fromkeys(("seed", "random_state", "random_state_seed"), search.seed),
        )
    except Exception as error:  # whatever an unsuitable version of the package raises
        raise SweepError(
            f"search method {search.method}: Ray Tune cannot use the installed {package}: {error!r}"
        ) from error
    return made, lambda suggestion: {
        name: _decoded(domain, suggestion[name]) if name in searched else (domain.values or ())[0]
        for name, domain in space.items()
    }


class _PointSearcher(Searcher):  # type: ignore[misc]
    """Suggests the points of an iterator."""

    def __init__(self, points: Iterator[Values]) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._points = points

    def suggest(self, trial_id: str) -> Values | str:
        return next(self._points, Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        pass


class _OptunaSampler:
    """A `Sampler` that asks a trial of Optuna."""

    def __init__(self, trial: Any) -> None:
        self._trial = trial

    def choose(self, parameter: str, count: int) -> int:
        return int(self._trial.suggest_categorical(parameter, list(range(count))))

    def uniform(self, parameter: str, low: float, high: float, *, log: bool) -> float:
        return float(self._trial.suggest_float(parameter, low, high, log=log))

    def integer(self, parameter: str, low: int, high: int) -> int:
        return int(self._trial.suggest_int(parameter, low, high))


def _optuna(sweep: Sweep) -> Searcher:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = sweep.search
    return OptunaSearch(
        lambda trial: {"values": sample(sweep.space, _OptunaSampler(trial))},
        metric=[METRIC, search.second_objective] if search.second_objective else METRIC,
        mode=["max", "min"] if search.second_objective else "max",
        sampler=optuna.samplers.TPESampler(
            seed=search.seed,
            n_startup_trials=search.startup_trials,
            constant_liar=True,  # suggests nothing near a running trial
        ),
    )


def tune_domain(domain: Domain) -> Any:
    """Return the domain as Ray Tune writes it; a choice becomes the choice of an index."""
    if domain.bounds is None:
        return tune.choice(list(range(len(domain.values or ()))))
    low, high = domain.bounds
    if domain.integer is not None:
        return tune.randint(int(low), int(high) + 1)
    return tune.loguniform(low, high) if domain.log_range is not None else tune.uniform(low, high)


def _decoded(domain: Domain, suggested: Any) -> Any:
    return (
        (domain.values or ())[int(suggested)] if domain.bounds is None else rounded(domain, float(suggested))
    )


# --- search with constraints and an event log -------------------------------------------------------------------


class RecordedSearch(SearchAlgorithm):  # type: ignore[misc]
    """Makes trials of what a searcher suggests, leaves out what may not be run, and records both.

    A searcher learns of every candidate: rejected and failed ones count as worse than the worst trial.
    """

    def __init__(self, job: SweepJob, log: EventLog, concurrent: int) -> None:
        self._sweep, self._job, self._log = job.sweep, job, log
        self._searcher, self._decode = searcher_of(job.sweep)
        self.limit = job.sweep.trials if job.sweep.scheduler.name in SYNCHRONOUS else concurrent
        """Most trials that wait or run at the same time."""
        self._tried: set[str] = set()
        self._asked = 0
        self._ids: dict[int, str] = {}
        self._restored: deque[Trial] = deque()
        self.trials: dict[int, Trial] = {}
        self.results: dict[int, dict[str, Any]] = {}
        """Number -> the newest result that the scheduler saw, and that the searcher has yet to see."""
        self.repeat_recorded: Callable[[], list[Trial]] = list
        """Repeats recorded events, which make the first trials."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray Tune pickles it into files that nothing reads

    # What Ray Tune calls, in the order of a trial's life.

    @property
    def total_samples(self) -> int:
        """Number of trials, for Ray Tune's progress table."""
        return self._sweep.trials

    def add_configurations(self, experiments: list[Experiment]) -> None:
        """Take the experiment that new trials belong to, and repeat what is recorded."""
        (self._experiment,) = experiments
        self._restored.extend(self.repeat_recorded())

    def next_trial(self) -> Trial | None:
        """Return a trial of an earlier driver, else a new one; None if there is none, or none yet."""
        if self._restored:
            return self._restored.popleft()
        waiting = sum(trial.status in (Trial.PENDING, Trial.RUNNING) for trial in self.trials.values())
        if self._finished or waiting >= self.limit:
            return None
        if len(self.trials) >= self._sweep.trials:
            self.set_finished()
            return None
        hours = self._sweep.max_device_hours
        if hours is not None and self._log.table.device_seconds >= 3600 * hours:
            self._exhausted(f"sweep.max_device_hours ({hours:g}) are used up")
            return None
        return self.new_trial()

    def is_finished(self) -> bool:
        """Return whether there are no more trials to start."""
        return bool(self._finished) and not self._restored

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Pass on a validation, in the form that the scheduler saw; other results carry none."""
        if told := self.results.pop(int(trial_id), None):
            self._searcher.on_trial_result(self._ids[int(trial_id)], told)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Tell the searcher how a trial ended."""
        row = self._log.table.trials[int(trial_id)]
        self.results.pop(row.number, None)
        scored = row.status != "failed" and row.psnr is not None
        self._searcher.on_trial_complete(self._ids[row.number], result_of(row) if scored else self._worst())

    # Suggestions.

    def new_trial(self) -> Trial | None:
        """Return the next trial that may be run; None if there is none, or the searcher waits for results."""
        number = len(self.trials)
        for _ in range(MAX_CONSECUTIVE_REJECTIONS):
            values = self._suggestion(number)
            if values is None:
                return None
            event = self._log.add(self._log.next or self._examined(number, values))
            if isinstance(event, Suggested):
                identity = {TRIAL: {"number": number, "generation": 0}}
                made = self.make_trial(
                    config={**identity, **values}, trial_id=f"{number:05d}", evaluated_params=values
                )
                self.trials[number] = made
                return made
            self._searcher.on_trial_complete(self._ids[number], self._worst())
        last = self._log.table.rejected[-1].reason
        self._exhausted(
            f"{MAX_CONSECUTIVE_REJECTIONS} candidates in a row were rejected, the last one: {last}"
        )
        return None

    def _examined(self, number: int, values: Values) -> Suggested | Rejected:
        """Return the event that a candidate makes: `rejected` before it costs anything."""
        made, index = examine(self._job, values), self._log.table.candidates
        if isinstance(made, str):
            return Rejected(values, made, index)
        search = self._sweep.search
        reason = "grid" if search.method == "grid" else f"{search.method}, seed {search.seed}"
        return Suggested(number, values, reason, made[1], index)

    def _suggestion(self, number: int) -> Values | None:
        """Return values that were not suggested before; recorded ones take precedence over the searcher's."""
        suggestion: Any = None
        for _ in range(_MAX_REPEATED):
            self._ids[number] = f"{number:05d}-{self._asked}"
            self._asked += 1
            suggestion = self._searcher.suggest(self._ids[number])
            if suggestion is None or suggestion == Searcher.FINISHED:
                break
            values = self._decode(suggestion)
            if value_key(values) in self._tried:
                self._searcher.on_trial_complete(self._ids[number], self._worst())
                continue
            recorded = self._log.next
            if isinstance(recorded, Suggested | Rejected) and recorded.values != values:
                _logger.warning("the searcher no longer suggests the recorded values of trial %d", number)
                values = recorded.values
            self._tried.add(value_key(values))
            return values
        if suggestion is not None:
            self._exhausted("all points were tried")
            return None
        if all(trial.is_finished() for trial in self.trials.values()):
            self._exhausted("the searcher suggests nothing more")
            return None
        return None  # it waits for results

    def make_trial(self, **arguments: Any) -> Trial:
        """Return a trial of Ray Tune's experiment."""
        spec = self._experiment.spec
        made = Trial(
            spec["run"],
            storage=spec["storage"],
            max_failures=spec["max_failures"],
            checkpoint_config=spec["checkpoint_config"],
            trial_name_creator=spec["trial_name_creator"],
            **arguments,
        )
        made.relative_logdir = made.storage.trial_dir_name = (
            f"trial-{made.trial_id}"  # also of an earlier driver
        )
        return made

    def _exhausted(self, why: str) -> None:
        self.set_finished()
        if why not in self._log.table.notes:
            self._log.add(Exhausted(why))

    def _worst(self) -> dict[str, Any]:
        """Return a result worse than that of any trial, so that the searcher avoids similar values."""
        rows = self._log.table.trials
        scores = [row.psnr for row in rows if row.ended and row.psnr is not None]
        return {
            METRIC: min(scores, default=1.0) - 1,
            "parameters": max((row.costs.parameters for row in rows), default=0),
            "macs_224": max((row.costs.macs_224 for row in rows), default=0),
            **dict.fromkeys((STEP, "training_iteration"), 1),
        }


def result_of(row: TrialRow) -> dict[str, Any]:
    """Return the newest validation of a trial as searchers and schedulers read it."""
    return {
        METRIC: row.psnr,
        **dict.fromkeys((STEP, "training_iteration"), row.step),
        "parameters": row.costs.parameters,
        "macs_224": row.costs.macs_224,
    }
