"""From the knobs of a sweep to the job of one trial.

draw        ask a chooser for the value of every knob that matters → values
settings    values → keys of the job                (a variant sets several)
candidate   values → the trial's job, or why there can be none
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import ValidationError

from orchestrator.config import validation
from orchestrator.config.renamed import current_key
from orchestrator.config.schema import NON_IDENTITY_KEYS, Job
from orchestrator.config.sweep_schema import Domain, SweepJob

Values = dict[str, Any]
"""Knob -> value; of `variants` the name. A knob whose `when` does not hold is not in it."""

_NOT_SEARCHED = {
    **dict.fromkeys(("name", "kind", "storage"), "is what the sweep itself is called and where it lies"),
    **dict.fromkeys(("recipe", "setting"), "stands for many keys, which are settled when the file is read"),
    **dict.fromkeys(("evaluate", "validation"), "says how trials are judged, and they are all judged alike"),
    **dict.fromkeys(("data.manifests", "data.pack"), "says which data it is, and trials share one dataset"),
    **dict.fromkeys(NON_IDENTITY_KEYS, "says where and how fast a job runs, not what comes out"),
    "sweep": "is the search itself",
}
"""Keys or sections that no knob may be, and why."""


class Chooser(Protocol):
    """Whoever decides what a knob is set to."""

    def one_of(self, knob: str, count: int) -> int:
        """Return an index below `count`."""

    def real(self, knob: str, low: float, high: float, *, log: bool) -> float:
        """Return a number from low to high."""

    def whole(self, knob: str, low: int, high: int) -> int:
        """Return a whole number from low to high, both among them."""


def draw(space: Mapping[str, Domain], chooser: Chooser) -> Values:
    """Return a value for every knob that matters, chosen in the order of the file."""
    values: Values = {}
    for knob, domain in space.items():
        if _matters(domain, values):
            values[knob] = _chosen(knob, domain, chooser)
    return values


def _chosen(knob: str, domain: Domain, chooser: Chooser) -> Any:
    if domain.choice is not None or domain.variants is not None:
        options = domain.values
        assert options is not None, "choices and variants are finite"
        return options[chooser.one_of(knob, len(options))]
    if domain.integer is not None:
        return chooser.whole(knob, *domain.integer)
    log = domain.log_range is not None
    ends = domain.log_range or domain.range
    assert ends is not None, "a domain has one form"
    typed = float(f"{chooser.real(knob, *ends, log=log):.6g}")  # what a person can type into a job
    return min(max(typed, ends[0]), ends[1])


def _matters(domain: Domain, values: Values) -> bool:
    for knob, wanted in (domain.when or {}).items():
        options = wanted if isinstance(wanted, list | tuple) else (wanted,)
        if knob not in values or values[knob] not in options:
            return False
    return True


class Draws:
    """A chooser that draws, each time the same for one seed, one index and one repeat."""

    def __init__(self, seed: int, index: int, again: int = 0) -> None:
        self._random = random.Random(f"{seed}-{index}-{again}")

    def one_of(self, knob: str, count: int) -> int:
        """Return an index below `count`, all equally likely."""
        return self._random.randrange(count)

    def real(self, knob: str, low: float, high: float, *, log: bool) -> float:
        """Return a number from low to high, it or its logarithm uniform."""
        if log:
            return math.exp(self._random.uniform(math.log(low), math.log(high)))
        return self._random.uniform(low, high)

    def whole(self, knob: str, low: int, high: int) -> int:
        """Return a whole number, all equally likely."""
        return self._random.randint(low, high)


def grid(space: Mapping[str, Domain]) -> Iterator[Values]:
    """Yield every point once, the last knob fastest; a knob that does not matter has one value."""
    seen: set[str] = set()
    options = [domain.values for domain in space.values()]
    assert all(option is not None for option in options), "a grid is asked for of finite domains"
    for point in itertools.product(*(option or () for option in options)):
        values: Values = {}
        for (knob, domain), value in zip(space.items(), point, strict=True):
            if _matters(domain, values):
                values[knob] = value
        if repr(values) not in seen:
            seen.add(repr(values))
            yield values


def settings(space: Mapping[str, Domain], values: Values) -> dict[str, Any]:
    """Return key of the job -> value."""
    found: dict[str, Any] = {}
    for knob, domain in space.items():
        if knob in values:
            found |= domain.variants[values[knob]] if domain.variants is not None else {knob: values[knob]}
        elif domain.otherwise is not None:
            found[knob] = domain.otherwise
    return found


@dataclass(frozen=True)
class Candidate:
    """What values amount to: a job that could be run, or the reason why none can."""

    values: Values
    job: Job | None
    impossible: str = ""


def candidate(job: SweepJob, values: Values, name: str | None = None) -> Candidate:
    """Return the job of a trial with these values, under `name`; impossible widths and ratios never get further."""
    content = trial_content(job)
    if name is not None:
        content["name"] = name
    for key, value in settings(job.sweep.space, values).items():
        put(content, key, value)
    try:
        made = Job.model_validate(content)
    except ValidationError as error:
        return Candidate(values, None, "; ".join(_told(e) for e in error.errors()))
    problems = [f"{key}: {message}" for key, message in validation.training_conflicts(made)]
    return Candidate(values, None if problems else made, "; ".join(problems))


def trial_content(job: SweepJob) -> dict[str, Any]:
    """Return what all trials have in common: the sweep's training, of one size of crew, registering nothing."""
    content = job.model_dump(mode="json", exclude={"sweep", "kind"})
    content["workers"]["max"] = content["workers"]["min"]
    content["track"]["register_as"] = None
    content["example"] = None
    return content


def put(content: dict[str, Any], key: str, value: Any) -> None:
    """Set a key with dots in nested mappings; it may have its old name."""
    *sections, name = current_key(key).split(".")
    for section in sections:
        below = content.get(section)
        if not isinstance(below, dict):
            below = content[section] = {}
        content = below
    content[name] = value


def unsearchable(key: str) -> str:
    """Return why a knob cannot be this key, "" when it can."""
    key = current_key(key)
    for forbidden, why in _NOT_SEARCHED.items():
        if key == forbidden or key.startswith(f"{forbidden}."):
            return f"{key} {why}"
    return ""


def _told(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    message = str(error["msg"])
    return f"{key}: is {error.get('input')!r}: {message[0].lower()}{message[1:]}"
