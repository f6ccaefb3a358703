"""Which values are tried next: a function of the sweep, its seed and the trials so far, and of nothing else.

No searcher keeps a state of its own. Optuna's is built anew from the book for every proposal, so a sweep whose driver
was killed proposes what it would have proposed.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.config.search_space import Draws, Values, draw, grid
from orchestrator.config.sweep_schema import Domain, Sweep

if TYPE_CHECKING:
    import optuna

REDRAWS = 1000
"""Draws in a row that were made before, after which there is taken to be nothing new."""
_COUNTED = 20_000
"""Points of a grid that are gone through one by one to count those that conditions leave."""
_ASKS = 20
"""Proposals of Optuna in a row that were made before, after which one is drawn."""


@dataclass(frozen=True)
class Proposal:
    """Values to try, and what made them."""

    values: Values
    why: str


@dataclass(frozen=True)
class Tried:
    """An earlier proposal and what came of it."""

    values: Values
    scores: tuple[float, ...] | None
    """PSNR [dB] where the trial stands, and the second objective; None when it gave none: rejected or failed."""
    step: int = 0
    """Where it stands."""
    at_end: bool = True
    """Whether it ran to its end."""
    running: bool = False


def propose(sweep: Sweep, tried: Sequence[Tried]) -> Proposal | None:
    """Return the next proposal after those in `tried`, in their order; None when there is nothing new to propose."""
    index = len(tried)
    search = sweep.search
    if search.method == "grid":
        point = next(itertools.islice(grid(sweep.space), index, None), None)
        return (
            Proposal(point, f"point {index + 1} of {count(sweep.space)} of the grid")
            if point is not None
            else None
        )
    made = {_key(one.values) for one in tried}
    if len(made) >= _most(sweep.space):
        return None
    useful = [one for one in tried if one.scores is not None]
    why = f"draw {index + 1} of seed {search.seed}"
    if search.method == "tpe":
        if len(useful) >= search.startup_trials:
            learned = _learned(sweep, tried, index, made)
            if learned is not None:
                return Proposal(learned, f"tpe, from {len(useful)} trials")
        why += f", {len(useful)} of the {search.startup_trials} trials before tpe learns are done"
    for again in range(REDRAWS):
        values = draw(sweep.space, Draws(search.seed, index, again))
        if _key(values) not in made:
            return Proposal(values, why)
    return None


def _key(values: Values) -> str:
    return json.dumps(values, sort_keys=True)


def count(space: dict[str, Domain]) -> int | None:
    """Return the number of points of the grid, None when a range is not cut into points.

    Of a large one with conditions it is what there would be without them.
    """
    if any(domain.values is None for domain in space.values()):
        return None
    points = math.prod(len(domain.values or ()) for domain in space.values())
    if points <= _COUNTED and any(domain.when for domain in space.values()):
        return sum(1 for _ in grid(space))
    return points


def _most(space: dict[str, Domain]) -> float:
    """Return how many different values there can be at most."""
    found = 1.0
    for domain in space.values():
        if domain.integer is not None:
            found *= domain.integer[1] - domain.integer[0] + 1
        elif domain.range is not None or domain.log_range is not None:
            return math.inf
        else:
            found *= len(domain.values or ())
    return found


# --- Optuna ----------------------------------------------------------------------------------------------------


class _Asked:
    """A chooser that asks an Optuna trial."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial

    def one_of(self, knob: str, count: int) -> int:
        """Return an index, as Optuna prefers."""
        return int(self._trial.suggest_categorical(knob, list(range(count))))

    def real(self, knob: str, low: float, high: float, *, log: bool) -> float:
        """Return a number, as Optuna prefers."""
        return self._trial.suggest_float(knob, low, high, log=log)

    def whole(self, knob: str, low: int, high: int) -> int:
        """Return a whole number, as Optuna prefers."""
        return self._trial.suggest_int(knob, low, high)


def _learned(sweep: Sweep, tried: Sequence[Tried], index: int, made: set[str]) -> Values | None:
    """Return what Optuna asks for; None when it asks for nothing new."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = sweep.search
    sampler = optuna.samplers.TPESampler(
        n_startup_trials=1,  # whether there are enough is decided before
        constant_liar=True,  # what runs already is not proposed again
        seed=(search.seed * 1_000_003 + index) % 2**32,
    )
    directions: list[Literal["maximize", "minimize"]] = ["maximize"]
    if search.against:
        directions.append("minimize")
    study = optuna.create_study(directions=directions, sampler=sampler)
    scored = [one.scores for one in tried if one.scores is not None]
    worst = [
        min(score[0] for score in scored) - 1,
        *([max(score[1] for score in scored)] if search.against else []),
    ]
    for one in tried:
        study.add_trial(_as_optuna(sweep.space, one, worst))
    asked = (draw(sweep.space, _Asked(study.ask())) for _ in range(_ASKS))
    return next((values for values in asked if _key(values) not in made), None)


def _as_optuna(space: dict[str, Domain], one: Tried, worst: Sequence[float]) -> optuna.trial.FrozenTrial:
    """Return the proposal for Optuna's history; a rejected or failed one counts as the worst, or its like returns."""
    from optuna.trial import TrialState, create_trial

    params, distributions = dict[str, Any](), dict[str, Any]()
    for knob, value, distribution in _coded(space, one.values):
        params[knob], distributions[knob] = value, distribution
    state = TrialState.COMPLETE
    values: list[float] | None = list(worst)
    reached: dict[int, float] | None = None
    if one.running:
        state, values = TrialState.RUNNING, None
    elif one.scores is not None and one.at_end:
        values = list(one.scores[: len(worst)])
    elif one.scores is not None:  # behind all that ran to their end, and among its like by what it reached
        state, values, reached = TrialState.PRUNED, None, {one.step: one.scores[0]}
    return create_trial(
        state=state, params=params, distributions=distributions, values=values, intermediate_values=reached
    )


def _coded(space: dict[str, Domain], values: Values) -> Iterator[tuple[str, Any, Any]]:
    """Yield knob, value and distribution as `_Asked` would have asked for them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    for knob, domain in space.items():
        if knob not in values:
            continue
        value = values[knob]
        if domain.choice is not None or domain.variants is not None:
            options = list(domain.values or ())
            yield knob, options.index(value), CategoricalDistribution(list(range(len(options))))
        elif domain.integer is not None:
            yield knob, value, IntDistribution(*domain.integer)
        else:
            ends = domain.log_range or domain.range
            assert ends is not None, "a domain has one form"
            log = domain.log_range is not None
            yield knob, min(max(value, ends[0]), ends[1]), FloatDistribution(*ends, log=log)
