"""Read pipelines from the section `degradations` of a job, or find everything that is wrong with them.

noise35:
  - gaussian_noise: {sigma: 35}
blind:
  - shuffle:
      - gaussian_blur: {sigma: {range: [0.2, 3]}}
      - maybe: {probability: 0.5, steps: [jpeg: {quality: {choice: [30, 60, 90]}}]}
  - use: noise35
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import shards.degradations.operators  # noqa: F401  registers the operators
from shards.degradations.operator import OPERATORS, Operator, Parameter, Value
from shards.degradations.pipeline import (
    Choice,
    Distribution,
    Fixed,
    Maybe,
    OneOf,
    OperatorStep,
    Pipeline,
    Range,
    Repeat,
    Shuffle,
    Step,
    Steps,
    Use,
)
from shards.degradations.presets import PRESETS
from shards.errors import PipelineError
from shards.sample import DEGRADATIONS, OWN_NAME_RULE, is_own_name

ARRANGING = ("shuffle", "repeat", "one_of", "maybe", "use")
"""Steps that arrange other steps."""
DISTRIBUTIONS = ("range", "log_range", "choice", "probability")
"""Ways to draw the value of a parameter."""
MAX_STEPS = 100
"""Largest number of operators that a pipeline may apply to an image."""
MAX_DEPTH = 10
"""Largest number of lists of steps within each other, those of used pipelines included."""
_TOO_DEEP = f"has steps within each other more than {MAX_DEPTH} deep."
MAX_TIMES = 20

Key = tuple[str, ...]


def parse_pipelines(written: object, presets: Mapping[str, Any] = PRESETS) -> dict[str, Pipeline]:
    """Return the pipelines of a mapping NAME -> [step, ...]; `use` also finds those of `presets`.

    Raises PipelineError, which lists every problem with its key.
    """
    if not isinstance(written, Mapping):
        raise PipelineError([((), "must be a mapping of names to lists of steps.")])
    return _Parser(written, presets).pipelines()


class _Parser:
    """Pipelines as they are written, those that were read, and the problems."""

    def __init__(self, written: Mapping[str, Any], presets: Mapping[str, Any]) -> None:
        self._written, self._presets = written, presets
        self._sources = {**written, **presets, **written}  # the job's first
        self._read: dict[str, Pipeline | None] = {}
        self._open: dict[str, Key] = {}
        """The pipelines that are being read, each with the key of the `use` in it that led to the next."""
        self._depth = 0
        self._problems: list[tuple[Key, str]] = []

    def pipelines(self) -> dict[str, Pipeline]:
        """Return all pipelines that the job names. Raises PipelineError."""
        for name in self._written:
            if not isinstance(name, str) or not is_own_name(name):
                published = (
                    "is a published degradation and needs no pipeline: data.mixture may name it as it is"
                )
                wrong = published if name in DEGRADATIONS else f"is no name: {OWN_NAME_RULE}"
                self._problem((str(name),), f"{wrong}.")
            else:
                self._pipeline(name)
        if self._problems:
            raise PipelineError(self._problems)
        return {name: each for name in self._written if (each := self._read[name]) is not None}

    def _problem(self, key: Key, message: str) -> None:
        if (key, message) not in self._problems:
            self._problems.append((key, message))

    def _pipeline(self, name: str) -> Pipeline | None:
        """Return a pipeline, None if it or one that it uses is wrong."""
        if name not in self._read:
            self._open[name] = (name,)
            known = len(self._problems)
            steps = self._steps(self._sources[name], (name,))
            del self._open[name]
            if steps is not None and steps.depth > MAX_DEPTH:
                self._problem((name,), _TOO_DEEP)
            if steps is not None and not steps.most:
                self._problem((name,), "never applies an operator.")
            if steps is not None and steps.most > MAX_STEPS:
                most = f"may apply {steps.most} operators to one image"
                self._problem((name,), f"{most}. At most {MAX_STEPS} are possible: repeat less.")
            wrong = steps is None or len(self._problems) > known
            self._read[name] = None if wrong or steps is None else Pipeline(name, steps)
        return self._read[name]

    def _steps(self, written: Any, key: Key, *, may_be_empty: bool = False) -> Steps | None:
        if not isinstance(written, list | tuple):
            self._problem(key, f"is {_shown(written)}: write a list of steps, each after a dash.")
            return None
        if not written and not may_be_empty:
            self._problem(key, "has no steps.")
            return None
        if self._depth == MAX_DEPTH:  # before Python's own limit
            self._problem((next(iter(self._open)),), _TOO_DEEP)
            return None
        self._depth += 1
        steps = [self._step(each, (*key, str(number))) for number, each in enumerate(written)]
        self._depth -= 1
        return None if None in steps else Steps(tuple(step for step in steps if step is not None))

    def _step(self, written: Any, key: Key) -> Step | None:
        """Return a step, None after a problem was noted."""
        named = {written: None} if isinstance(written, str) else written
        if not isinstance(named, Mapping) or len(named) != 1:
            self._problem(
                key, f"is {_shown(written)}: write one operator, NAME: {{PARAMETER: VALUE}}, after a dash."
            )
            return None
        ((name, given),) = named.items()
        inner = key if isinstance(written, str) else (*key, str(name))
        if name in ARRANGING:
            arrange: Callable[[Any, Key], Step | None] = getattr(self, f"_{name}")
            return arrange(given, inner)
        if name not in OPERATORS:
            known = (*OPERATORS, *ARRANGING)
            also = "" if name not in self._sources else f" A pipeline of this name is called by use: {name}."
            self._problem(inner, f"{_shown(name)} is no operator.{_near(name, known)}{also}")
            return None
        return self._operator(OPERATORS[name], {} if given is None else given, inner)

    def _operator(self, operator: Operator, given: Any, key: Key) -> Step | None:
        if not isinstance(given, Mapping):
            self._problem(key, f"is {_shown(given)}: write its parameters, {{PARAMETER: VALUE}}.")
            return None
        if operator.needs and operator.lacks_package:
            module, extra = operator.needs
            self._problem(
                key,
                f"needs the package {module}: pip install 'mirage-orchestrator[{extra}]', also on every node.",
            )
            return None
        known = operator.parameters
        unknown = [name for name in given if name not in known]
        for name in unknown:
            listed = ", ".join(known) or "none"
            self._problem(
                (*key, str(name)), f"is no parameter of {operator.name} ({listed}).{_near(name, known)}"
            )
        meant = {near for name in unknown for near in difflib.get_close_matches(str(name), list(known), n=1)}
        read = {
            name: self._distribution(name, each, given, key)
            for name, each in known.items()
            if name in given
            or name not in meant  # a misspelt parameter is one problem, not also a missing one
        }
        parameters = {name: each for name, each in read.items() if each is not None}
        return OperatorStep(operator, parameters) if len(parameters) == len(known) and not unknown else None

    def _distribution(
        self, name: str, of: Parameter, given: Mapping[str, Any], key: Key
    ) -> Distribution | None:
        if name not in given and of.default is None:
            self._problem(key, f"needs {name}, which {_allowed(of)}.")
            return None
        return self._value(of, given.get(name, of.default), (*key, name))

    def _value(self, of: Parameter, written: Any, key: Key) -> Distribution | None:
        """Return the distribution that is written for a parameter, None after a problem was noted."""
        try:
            return _distribution(of, written)
        except ValueError as error:
            self._problem(key, str(error))
            return None

    def _shuffle(self, given: Any, key: Key) -> Step | None:
        steps = self._steps(given, key)
        return None if steps is None else Shuffle(steps)

    def _repeat(self, given: Any, key: Key) -> Step | None:
        keys = self._keys(given, key, ("times", "steps"))
        if keys is None:
            return None
        times = self._value(TIMES, keys["times"], (*key, "times"))
        steps = self._steps(keys["steps"], (*key, "steps"))
        return None if times is None or steps is None else Repeat(times, steps)

    def _one_of(self, given: Any, key: Key) -> Step | None:
        if not isinstance(given, list | tuple) or not given:
            self._problem(key, f"is {_shown(given)}: write a list of {{weight: NUMBER, steps: [...]}}.")
            return None
        weights, branches = [], []
        for number, each in enumerate(given):
            inner = (*key, str(number))
            keys = self._keys(each, inner, ("steps",), weight=1.0)
            if keys is None:
                continue
            weights.append(self._value(_WEIGHT, keys["weight"], (*inner, "weight")))
            steps = self._steps(keys["steps"], (*inner, "steps"), may_be_empty=True)
            branches += [] if steps is None else [steps]
        fixed = [float(weight.value) for weight in weights if isinstance(weight, Fixed)]
        if len(fixed) < len(given) or len(branches) < len(given):
            if len(fixed) < len([weight for weight in weights if weight is not None]):
                self._problem(key, "draws a weight; weights are numbers.")
            return None
        if not sum(fixed):
            self._problem(key, "has weights of 0 only.")
            return None
        return OneOf(tuple(fixed), tuple(branches))

    def _maybe(self, given: Any, key: Key) -> Step | None:
        keys = self._keys(given, key, ("probability", "steps"))
        if keys is None:
            return None
        probability = self._value(Parameter(0, 1), keys["probability"], (*key, "probability"))
        steps = self._steps(keys["steps"], (*key, "steps"))
        if isinstance(probability, Fixed) and steps is not None:
            return Maybe(float(probability.value), steps)
        if probability is not None and not isinstance(probability, Fixed):
            self._problem((*key, "probability"), "must be a number from 0 to 1.")
        return None

    def _use(self, given: Any, key: Key) -> Step | None:
        if not isinstance(given, str) or given not in self._sources:
            listed = ", ".join(self._sources)
            self._problem(
                key, f"is {_shown(given)}, which is no pipeline ({listed}).{_near(given, self._sources)}"
            )
            return None
        self._open[key[0]] = key
        if given in self._open:
            names = list(self._open)
            circle = " → ".join([*names[names.index(given) :], given])
            preset = (
                f" To use the preset {given}, name your pipeline otherwise." if given in self._presets else ""
            )
            self._problem(self._open[given], f"refers to itself: {circle}.{preset}")
            return None
        pipeline = self._pipeline(given)
        return None if pipeline is None else Use(pipeline)

    def _keys(self, given: Any, key: Key, needed: tuple[str, ...], **others: Any) -> dict[str, Any] | None:
        """Return the keys of an arranging step with defaults, None after a problem was noted."""
        known = (*needed, *others)
        if not isinstance(given, Mapping):
            self._problem(key, f"is {_shown(given)}: write the keys {', '.join(known)}.")
            return None
        unknown = [name for name in given if name not in known]
        for name in unknown:
            self._problem((*key, str(name)), f"unknown key. Known: {', '.join(known)}.{_near(name, known)}")
        missing = [name for name in needed if name not in given]
        for name in missing:
            self._problem(key, f"needs the key {name}.")
        return None if unknown or missing else {**others, **given}


TIMES = Parameter(0, MAX_TIMES, "times", integer=True)
"""How often `repeat` applies its steps."""
_WEIGHT = Parameter(0, 1e9)


def _distribution(of: Parameter, written: Any) -> Distribution:
    """Return the distribution of a parameter as it is written. Raises ValueError with what is wrong."""
    if not isinstance(written, Mapping):
        return Fixed(_checked(of, written))
    kinds = [name for name in written if name in DISTRIBUTIONS]
    if (
        len(kinds) != 1
        or set(written) - {kinds[0], "weights"}
        or ("weights" in written and kinds != ["choice"])
    ):
        raise ValueError(
            f"is {_shown(written)}: write a value, {{range: [A, B]}}, {{log_range: [A, B]}}, or {{choice: [...]}}, "
            f"also with weights: [...]."
        )
    kind, given = kinds[0], written[kinds[0]]
    if kind == "probability":
        return _chance(of, given)
    if not isinstance(given, list | tuple) or not given:
        raise ValueError(f"is {_shown(written)}: write a list, {kind}: [..., ...].")
    values = tuple(_checked(of, value) for value in given)
    if kind == "choice":
        return Choice(values, _weights(written.get("weights", [1.0] * len(values)), len(values)))
    if of.words or len(values) != 2:
        needs = "is a word, which has no range: use choice" if of.words else "must have two numbers"
        raise ValueError(f"is {_shown(written)}: {kind} {needs}.")
    low, high = (float(value) for value in values)
    if low > high:
        raise ValueError(f"is {_shown(written)}: the first number is larger than the second.")
    if kind == "log_range" and low <= 0:
        raise ValueError(f"is {_shown(written)}: a log_range starts above 0.")
    return Range(low, high, log=kind == "log_range", integer=of.integer)


def _chance(of: Parameter, given: Any) -> Distribution:
    """Return how often a switch, an integer of 0 or 1, is on."""
    if not is_switch(of):
        raise ValueError(f"is not on or off, so it has no probability: {_allowed(of)}.")
    probability = _checked(Parameter(0, 1), given)
    return Choice((1, 0), (float(probability), 1.0 - float(probability)))


def is_switch(parameter: Parameter) -> bool:
    """Return whether a parameter is on (1) or off (0)."""
    return parameter.integer and (parameter.minimum, parameter.maximum) == (0, 1)


def _weights(given: Any, count: int) -> tuple[float, ...]:
    if not isinstance(given, list | tuple) or len(given) != count:
        raise ValueError(f"has weights {_shown(given)}: write one number for each of the {count} choices.")
    weights = tuple(float(_checked(_WEIGHT, weight)) for weight in given)
    if not sum(weights):
        raise ValueError("has weights of 0 only.")
    return weights


def _checked(of: Parameter, value: Any) -> Value:
    """Return a value that the parameter can have. Raises ValueError."""
    if of.words:
        if isinstance(value, str) and value in of.words:
            return value
        raise ValueError(f"is {_shown(value)}: choose from {', '.join(of.words)}.{_near(value, of.words)}")
    number = int(value) if isinstance(value, bool) and is_switch(of) else value
    usable = isinstance(number, int | float) and not isinstance(number, bool)
    if not usable or not of.minimum <= number <= of.maximum or (of.integer and number != math.floor(number)):
        raise ValueError(f"is {_shown(value)}: {_allowed(of)}.")
    return int(number) if of.integer else float(number)


def _allowed(of: Parameter) -> str:
    """Return what a parameter can be, in words."""
    if of.words:
        return f"must be one of {', '.join(of.words)}"
    if is_switch(of):
        return "must be true or false"
    kind = "an integer" if of.integer else "a number"
    return f"must be {kind} from {of.minimum:g} to {of.maximum:g}{f' {of.unit}' if of.unit else ''}"


def _near(name: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1) if isinstance(name, str) else []
    return f' Did you mean "{near[0]}"?' if near else ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
