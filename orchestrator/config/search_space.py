"""From the parameters of a sweep to the job of one trial.

sample      ask a sampler for a value of every parameter in use -> values
job_keys    values -> keys of the job                              (a variant sets several)
candidate   values -> the trial's job, or why there is none
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import ValidationError

from orchestrator.config import conflicts
from orchestrator.config.pydantic_messages import message_of
from orchestrator.config.renamed import current_key
from orchestrator.config.schema import NON_IDENTITY_KEYS, Job
from orchestrator.config.sweep_schema import Domain, SweepJob, format_value

Values = dict[str, Any]
"""Parameter -> value; of `variants` the name. A parameter whose `when` does not hold is absent."""

MAX_REPEATED_SAMPLES = 1000
"""Repeated values in a row after which a space counts as exhausted."""

_NOT_SEARCHABLE = {
    **dict.fromkeys(("name", "kind", "storage"), "names the sweep itself and its location"),
    **dict.fromkeys(("recipe", "setting"), "stands for many keys, which are set when the file is read"),
    **dict.fromkeys(
        ("evaluate", "validation"), "decides how trials are measured, which must be the same for all"
    ),
    **dict.fromkeys(("data.manifests", "data.pack"), "selects the data, which all trials share"),
    **dict.fromkeys(NON_IDENTITY_KEYS, "decides where and how fast a job runs, not its result"),
    "sweep": "is the search itself",
}
"""Key or section that no parameter may set -> the reason."""

_CHANGEABLE_IN_TRAINING = (
    *("loss.", "data.weights.", "data.mixture."),
    *("train.learning_rate", "train.weight_decay", "train.betas", "train.clip_norm", "train.ema_decay"),
)
"""Keys, or beginnings of keys, that may change between two steps of a run."""


class Sampler(Protocol):
    """A source of parameter values."""

    def choose(self, parameter: str, count: int) -> int:
        """Return an index below `count`."""

    def uniform(self, parameter: str, low: float, high: float, *, log: bool) -> float:
        """Return a number from `low` to `high`."""

    def integer(self, parameter: str, low: int, high: int) -> int:
        """Return an integer from `low` to `high`, both included."""


def sample(space: Mapping[str, Domain], sampler: Sampler) -> Values:
    """Return a value for every parameter in use, in the order of the file."""
    values: Values = {}
    for parameter, domain in space.items():
        if _is_used(domain, values):
            values[parameter] = _sample_one(parameter, domain, sampler)
    return values


def _sample_one(parameter: str, domain: Domain, sampler: Sampler) -> Any:
    if domain.choice is not None or domain.variants is not None:
        options = domain.values or ()
        return options[sampler.choose(parameter, len(options))]
    if domain.integer is not None:
        return sampler.integer(parameter, *domain.integer)
    assert domain.bounds is not None, "a domain has one form"
    return rounded(domain, sampler.uniform(parameter, *domain.bounds, log=domain.log_range is not None))


def rounded(domain: Domain, value: float) -> float:
    """Return the number, limited to the domain's range, with the six digits that a person can type into a job."""
    assert domain.bounds is not None, "called for ranges"
    low, high = domain.bounds
    value = min(max(value, low), high)
    return round(value) if domain.integer is not None else min(max(float(f"{value:.6g}"), low), high)


def _is_used(domain: Domain, values: Values) -> bool:
    for parameter, wanted in (domain.when or {}).items():
        options = wanted if isinstance(wanted, list | tuple) else (wanted,)
        if parameter not in values or values[parameter] not in options:
            return False
    return True


class RandomSampler:
    """A sampler whose values are a function of a seed, an index and a repetition."""

    def __init__(self, seed: int, index: int, repetition: int = 0) -> None:
        self._random = random.Random(f"{seed}-{index}-{repetition}")

    def choose(self, parameter: str, count: int) -> int:
        """Return an index below `count`, uniformly distributed."""
        return self._random.randrange(count)

    def uniform(self, parameter: str, low: float, high: float, *, log: bool) -> float:
        """Return a number from `low` to `high`, it or its logarithm uniformly distributed."""
        if log:
            return math.exp(self._random.uniform(math.log(low), math.log(high)))
        return self._random.uniform(low, high)

    def integer(self, parameter: str, low: int, high: int) -> int:
        """Return an integer from `low` to `high`, uniformly distributed."""
        return self._random.randint(low, high)


def grid(space: Mapping[str, Domain]) -> Iterator[Values]:
    """Yield every point once, the last parameter fastest; parameters that are not in use do not multiply points."""
    seen: set[str] = set()
    for point in itertools.product(*(domain.values or () for domain in space.values())):
        values: Values = {}
        for (parameter, domain), value in zip(space.items(), point, strict=True):
            if _is_used(domain, values):
                values[parameter] = value
        if value_key(values) not in seen:
            seen.add(value_key(values))
            yield values


def random_points(space: Mapping[str, Domain], seed: int) -> Iterator[Values]:
    """Yield random values, none twice, until a space of finitely many seems exhausted."""
    seen: set[str] = set()
    for index in itertools.count():
        for repetition in range(MAX_REPEATED_SAMPLES):
            values = sample(space, RandomSampler(seed, index, repetition))
            if value_key(values) not in seen:
                break
        else:
            return
        seen.add(value_key(values))
        yield values


def format_params(values: Values) -> str:
    """Return values as a line of text."""
    return "  ".join(f"{name.rpartition('.')[2]} {format_value(value)}" for name, value in values.items())


def value_key(values: Values) -> str:
    """Return a string that is equal for equal values."""
    return json.dumps(values, sort_keys=True)


def job_keys(space: Mapping[str, Domain], values: Values) -> dict[str, Any]:
    """Return key of the job -> value."""
    found: dict[str, Any] = {}
    for parameter, domain in space.items():
        if parameter in values:
            value = values[parameter]
            found |= domain.variants[value] if domain.variants is not None else {parameter: value}
        elif domain.default is not None:
            found[parameter] = domain.default
    return found


@dataclass(frozen=True)
class Candidate:
    """Values with the job that they make, or the reason why they make none."""

    values: Values
    job: Job | None
    impossible: str = ""


def candidate(job: SweepJob, values: Values, name: str | None = None) -> Candidate:
    """Return the job of a trial with these values, called `name`, or why the values cannot be used."""
    content = trial_content(job)
    if name is not None:
        content["name"] = name
    for key, value in job_keys(job.sweep.space, values).items():
        set_key(content, key, value)
    try:
        made = Job.model_validate(content)
    except ValidationError as error:
        return Candidate(values, None, "; ".join(map(_error_text, error.errors())))
    problems = [f"{key}: {message}" for key, message in conflicts.training_conflicts(made)]
    return Candidate(values, None if problems else made, "; ".join(problems))


def trial_content(job: SweepJob) -> dict[str, Any]:
    """Return what all trials share: the training job with a fixed number of workers, registering no model.

    Trials of `pbt` and `pb2` keep all their checkpoints, as others may copy any of them.
    """
    content = job.model_dump(mode="json", exclude={"sweep", "kind"})
    content["workers"]["max"] = content["workers"]["min"]
    content["track"]["register_as"] = None
    content["example"] = None
    if job.sweep.scheduler.name in ("pbt", "pb2"):
        content["checkpoint"]["keep"] = 10**6
    return content


def set_key(content: dict[str, Any], key: str, value: Any) -> None:
    """Set a key with dots in nested mappings and lists; the items of a list are numbered from 0."""
    *sections, name = current_key(key).split(".")
    place: Any = content
    for section in sections:
        below = _item(place, section)
        if not isinstance(below, dict | list):
            below = {}
            _set_item(place, section, below)
        place = below
    _set_item(place, name, value)


def _item(place: dict[str, Any] | list[Any], name: str) -> Any:
    return place[_index(place, name)] if isinstance(place, list) else place.get(name)


def _set_item(place: dict[str, Any] | list[Any], name: str, value: Any) -> None:
    if isinstance(place, list):
        place[_index(place, name)] = value
    else:
        place[name] = value


def _index(items: list[Any], name: str) -> int:
    if not name.isdecimal() or int(name) >= len(items):
        raise IndexError(f"there is no item {name!r} in a list of {len(items)}; the first is 0")
    return int(name)


def not_searchable(key: str) -> str:
    """Return why no parameter can set this key, "" if one can."""
    key = current_key(key)
    for forbidden, reason in _NOT_SEARCHABLE.items():
        if key == forbidden or key.startswith(f"{forbidden}."):
            return f"{key} {reason}"
    return ""


def not_changeable(key: str, value: Any) -> str:
    """Return why training cannot continue from another trial's weights with this value, "" if it can."""
    if not key.startswith(_CHANGEABLE_IN_TRAINING):
        allowed = ", ".join(name.rstrip(".") for name in _CHANGEABLE_IN_TRAINING)
        return (
            f"{key} cannot change during training: weights of one trial would not fit another, or samples would "
            f"repeat. Keys that can: {allowed}"
        )
    if value is None or (key == "loss.spd_weight" and value == 0):
        return f"{key} {value} leaves out a part of the state that other trials have. Give other values"
    return ""


def _error_text(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    return f"{key}: is {error.get('input')!r}: {message_of(error)}"
