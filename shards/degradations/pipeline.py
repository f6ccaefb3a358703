"""A pipeline of operators, and what it draws for one image.

Every draw is a function of a key and a path alone:

    key     train/SEED/POSITION or test/SEED/ID
    path    blind/shuffle:0/jpeg:0        the steps from the pipeline inwards, each with its number among those of its
                                          name in the same list
    number  uniform(key, path/quality)    of a parameter, a branch or an order
    pixels  generator(key, path)          of an operator

So a step that is added to a list moves no draw of the others, unless it stands before one of its own name.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

from shards.degradations.operator import Image, Operator, Value
from shards.degradations.resampling import resampled
from shards.errors import DegradeError

_MAX_GROWTH = 16
"""An image with more than this many times its pixels is brought back to its size before the next operator."""


def training_key(seed: int, position: int) -> str:
    """Return the key of a sample of the stream."""
    return f"train/{seed}/{position}"


def evaluation_key(seed: int, id_: str) -> str:
    """Return the key of a held-out image."""
    return f"test/{seed}/{id_}"


def uniform(key: str, path: str) -> float:
    """Return the number in [0, 1) of a path: the upper 53 bits of its hash."""
    digest = hashlib.blake2b(f"{key}/{path}".encode(), digest_size=8).digest()
    return float((int.from_bytes(digest, "little") >> 11) * 2.0**-53)


def generator(key: str, path: str) -> np.random.Generator:
    """Return the generator of a path: Philox, with its hash as the key."""
    seeds = _Key(f"{key}/{path}")
    return np.random.Generator(np.random.Philox(seeds))  # type: ignore[arg-type]  # NumPy's stub knows less


class _Key(ISeedSequence):
    """A key for Philox: `Philox(key=...)` sets the same one, but asks the system for a seed before."""

    def __init__(self, text: str) -> None:
        self._digest = hashlib.blake2b(text.encode(), digest_size=16).digest()

    def generate_state(self, n_words: int, dtype: object = np.uint32) -> NDArray[np.uint64]:
        """Return the two words of the key."""
        return np.frombuffer(self._digest, "<u8").astype(np.uint64)


class Distribution(Protocol):
    """From where a parameter takes its value."""

    @property
    def least(self) -> Value:
        """Smallest value."""

    @property
    def most(self) -> Value:
        """Largest value."""

    def at(self, number: float) -> Value:
        """Return the value for a number in [0, 1)."""

    def plain(self) -> Any:
        """Return the distribution as in a job."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same value."""

    value: Value

    @property
    def least(self) -> Value:
        """The value."""
        return self.value

    @property
    def most(self) -> Value:
        """The value."""
        return self.value

    def at(self, number: float) -> Value:
        """Return the value."""
        return self.value

    def plain(self) -> Any:
        """Return the value."""
        return self.value


@dataclass(frozen=True, slots=True)
class Range:
    """A number between two, it or its logarithm uniformly distributed; an integer includes both ends."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    @property
    def least(self) -> Value:
        """Lower end of the range."""
        return self.low

    @property
    def most(self) -> Value:
        """Upper end of the range."""
        return self.high

    def at(self, number: float) -> Value:
        """Return the number at a share of the range."""
        high = self.high + 1 if self.integer else self.high
        if self.log:  # the ratio of the ends may be beyond any float
            low, high = math.log(self.low), math.log(high)
            drawn = math.exp(low + number * (high - low))
        else:
            drawn = self.low + number * (high - self.low)
        drawn = min(max(drawn, self.low), self.high)  # rounding may leave the range
        return math.floor(drawn) if self.integer else drawn

    def plain(self) -> Any:
        """Return the range as in a job."""
        return {"log_range" if self.log else "range": [self.low, self.high]}


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some values, equally often or by weight."""

    values: tuple[Value, ...]
    weights: tuple[float, ...]

    @property
    def least(self) -> Value:
        """Smallest value."""
        return min(self.values)

    @property
    def most(self) -> Value:
        """Largest value."""
        return max(self.values)

    def at(self, number: float) -> Value:
        """Return the value in whose share the number lies."""
        return self.values[_weighted(self.weights, number)]

    def plain(self) -> Any:
        """Return the choice as in a job."""
        return {"choice": list(self.values), "weights": list(self.weights)}


class AppliedOperator(NamedTuple):
    """An operator with the values that were drawn for one image."""

    operator: Operator
    path: str
    values: Mapping[str, Value]

    def words(self) -> str:
        """Return the operator with its parameters that are not at their default, for people."""
        known = self.operator.parameters
        given = {name: value for name, value in self.values.items() if value != known[name].default}
        return " ".join((self.operator.name, *(f"{name} {_shown(value)}" for name, value in given.items())))

    def record(self) -> dict[str, Any]:
        """Return the operator, its path and all its values, for a file."""
        return {"operator": self.operator.name, "path": self.path, "values": dict(self.values)}


class Step(Protocol):
    """A step of a pipeline: an operator, or one that arranges other steps."""

    @property
    def name(self) -> str:
        """Name of the step in a path."""

    @property
    def most(self) -> int:
        """Largest number of operators that the step may apply."""

    @property
    def depth(self) -> int:
        """Number of lists of steps within each other that the step has."""

    def draw(self, key: str, path: str) -> Iterator[AppliedOperator]:
        """Yield the operators that the step applies under a key."""

    def plain(self) -> Any:
        """Return the step as in a job, so that two steps that do the same are equal."""


@dataclass(frozen=True, slots=True)
class OperatorStep:
    """Apply an operator."""

    operator: Operator
    parameters: Mapping[str, Distribution]
    most = 1
    depth = 0

    @property
    def name(self) -> str:
        """Name of the operator."""
        return self.operator.name

    def draw(self, key: str, path: str) -> Iterator[AppliedOperator]:
        """Yield the operator with a value of each parameter."""
        values = {
            name: each.value if isinstance(each, Fixed) else each.at(uniform(key, f"{path}/{name}"))
            for name, each in self.parameters.items()
        }
        yield AppliedOperator(self.operator, path, values)

    def plain(self) -> Any:
        """Return the operator, with its version above 1, and the parameters that are not at their default."""
        version = f" {self.operator.version}" if self.operator.version > 1 else ""
        known = self.operator.parameters
        values = {name: each.plain() for name, each in self.parameters.items()}
        given = {name: value for name, value in values.items() if value != known[name].default}
        return {f"{self.name}{version}": given}


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps, one after another."""

    items: tuple[Step, ...]

    @property
    def most(self) -> int:
        """Largest number of operators that the steps may apply."""
        return sum(step.most for step in self.items)

    @property
    def depth(self) -> int:
        """Number of lists of steps within each other, this one included."""
        return 1 + max((step.depth for step in self.items), default=0)

    def named(self) -> Iterator[tuple[str, Step]]:
        """Yield each step with its place in a path: its name, and its number among those of its name."""
        seen: Counter[str] = Counter()
        for step in self.items:
            yield f"{step.name}:{seen[step.name]}", step
            seen[step.name] += 1

    def draw(self, key: str, path: str) -> Iterator[AppliedOperator]:
        """Yield the operators of all steps."""
        for name, step in self.named():
            yield from step.draw(key, f"{path}/{name}")

    def plain(self) -> list[Any]:
        """Return the steps as in a job."""
        return [step.plain() for step in self.items]


class _OneList:
    """What steps have in common that arrange one list of steps."""

    __slots__ = ()
    steps: Steps

    @property
    def most(self) -> int:
        """Largest number of operators that the step may apply."""
        return self.steps.most

    @property
    def depth(self) -> int:
        """Number of lists of steps that the step has within each other."""
        return self.steps.depth


@dataclass(frozen=True, slots=True)
class Shuffle(_OneList):
    """Apply steps in a random order."""

    steps: Steps
    name = "shuffle"

    def draw(self, key: str, path: str) -> Iterator[AppliedOperator]:
        """Yield the operators of the steps in the order of a number that each draws."""
        named = [(f"{path}/{name}", step) for name, step in self.steps.named()]
        for place, step in sorted(named, key=lambda one: uniform(key, f"{one[0]}/order")):
            yield from step.draw(key, place)

    def plain(self) -> Any:
        """Return the step as in a job."""
        return {self.name: self.steps.plain()}


@dataclass(frozen=True, slots=True)
class Repeat(_OneList):
    """Apply steps several times, each with its own draws."""

    times: Distribution
    steps: Steps
    name = "repeat"

    @property
    def most(self) -> int:
        """Largest number of operators that the step may apply."""
        return int(self.times.most) * self.steps.most

    def draw(self, key: str, path: str) -> Iterator[AppliedOperator]:
        """Yield the operators of each round."""
        for number in range(int(self.times.at(uniform(key, f"{path}/times")))):
            yield from self.steps.draw(key, f"{path}/{number}")

    def plain(self) -> Any:
        """Return the step as in a job."""
        return {self.name: {"times": self.times.plain(), "steps": self.steps.plain()}}


@dataclass(frozen=True, slots=True)
class OneOf:
    """Apply one of several lists of steps, by weight."""

    weights: tuple[float, ...]
    branches: tuple[Steps, ...]
    name = "one_of"

    @property
    def most(self) -> int:
        """Largest number of operators that the step may apply."""
        return max(steps.most for steps in self.branches)

    @property
    def depth(self) -> int:
        """Number of lists of steps that the step has within each other."""
        return max(steps.depth for steps in self.branches)

    def draw(self, key: str, path: str) -> Iterator[AppliedOperator]:
        """Yield the operators of the branch that is drawn."""
        branch = _weighted(self.weights, uniform(key, f"{path}/branch"))
        yield from self.branches[branch].draw(key, f"{path}/{branch}")

    def plain(self) -> Any:
        """Return the step as in a job."""
        pairs = zip(self.weights, self.branches, strict=True)
        return {self.name: [{"weight": weight, "steps": steps.plain()} for weight, steps in pairs]}


@dataclass(frozen=True, slots=True)
class Maybe(_OneList):
    """Apply steps with a probability."""

    probability: float
    steps: Steps
    name = "maybe"

    def draw(self, key: str, path: str) -> Iterator[AppliedOperator]:
        """Yield the operators of the steps, or none."""
        if uniform(key, f"{path}/happens") < self.probability:
            yield from self.steps.draw(key, path)

    def plain(self) -> Any:
        """Return the step as in a job."""
        return {self.name: {"probability": self.probability, "steps": self.steps.plain()}}


@dataclass(frozen=True)
class Pipeline:
    """A named degradation of clean images."""

    name: str
    steps: Steps

    def draw(self, key: str) -> tuple[AppliedOperator, ...]:
        """Return the operators that an image gets under a key, with their values."""
        return tuple(self.steps.draw(key, self.name))

    def degrade(self, clean: NDArray[np.uint8], key: str) -> NDArray[np.uint8]:
        """Return an image after the pipeline, in its size; grey levels are rounded once, at the end.

        Raises DegradeError.
        """
        height, width = clean.shape[:2]
        image: Image = clean.astype(np.float32) / np.float32(255)
        for applied in self.draw(key):
            rng = generator(key, applied.path)
            try:
                image = applied.operator(image, rng, applied.values, (height, width))
            except DegradeError as error:
                raise DegradeError(f"{applied.path} cannot degrade {key}: {error}") from error
            if image.size > _MAX_GROWTH * clean.size:
                image = resampled(image, height, width).clip(0, 1)
        if image.shape != clean.shape:
            image = resampled(image, height, width).clip(0, 1)
        grey: NDArray[np.uint8] = np.rint(image * np.float32(255)).astype(np.uint8)
        return grey

    @cached_property
    def most(self) -> int:
        """Largest number of operators that the pipeline may apply."""
        return self.steps.most

    @cached_property
    def depth(self) -> int:
        """Number of lists of steps within each other."""
        return self.steps.depth

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the pipeline as JSON and of the versions of its operators; equal pipelines have equal ones."""
        text = json.dumps([self.name, self.steps.plain()], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def evaluation_digest(self, seed: int) -> str:
        """SHA-256 of what an evaluation shows: scores of one id compare where it is equal."""
        return hashlib.sha256(f"{self.digest}/{seed}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Use:
    """Apply another pipeline."""

    pipeline: Pipeline

    @property
    def name(self) -> str:
        """Name of the step in a path."""
        return f"use.{self.pipeline.name}"

    @property
    def most(self) -> int:
        """Largest number of operators that the step may apply."""
        return self.pipeline.most

    @property
    def depth(self) -> int:
        """Number of lists of steps that the step has within each other."""
        return self.pipeline.depth

    def draw(self, key: str, path: str) -> Iterator[AppliedOperator]:
        """Yield the operators of the other pipeline."""
        yield from self.pipeline.steps.draw(key, path)

    def plain(self) -> Any:
        """Return the other pipeline by its name and digest."""
        return {"use": [self.pipeline.name, self.pipeline.digest]}


def _shown(value: Value) -> str:
    return value if isinstance(value, str) else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _weighted(weights: Sequence[float], number: float) -> int:
    """Return the index in whose share of the weights a number in [0, 1) lies."""
    ends = list(accumulate(weights))
    place = number * ends[-1]
    # A weight of 0 has no share; rounding may put the place at the very end.
    return next((i for i, end in enumerate(ends) if place < end), max(i for i, w in enumerate(weights) if w))
