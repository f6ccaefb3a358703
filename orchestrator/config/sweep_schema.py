"""The schema of a sweep: a training job, and a section that says what is searched over it and how."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from orchestrator.config.schema import Section, Training

_RANGES = ("range", "log_range", "integer")
_FORMS = ("choice", *_RANGES, "variants")


class Domain(Section):
    """The values that a knob may take. A plain value in a file stands for `choice` of that one."""

    choice: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    """These values."""
    range: tuple[float, float] | None = None
    """Any number between two, all equally likely."""
    log_range: tuple[float, float] | None = None
    """Any number between two positive ones, its logarithm uniform."""
    integer: tuple[int, int] | None = None
    """Any whole number from one to another, both among them."""
    variants: Annotated[dict[str, dict[str, Any]], Field(min_length=1)] | None = None
    """Named sets of keys that change together; the knob's own name is then no key of a job."""
    points: int | None = Field(default=None, ge=2)
    """Into how many values a range is cut for a grid, both ends among them."""
    when: dict[str, Any] | None = None
    """Earlier knobs and the value, or list of values, that they must have for this one to matter."""
    otherwise: Any = None
    """Value where `when` does not hold; unset: the job's own."""

    @model_validator(mode="after")
    def _is_one_domain(self) -> Domain:
        given = [form for form in _FORMS if getattr(self, form) is not None]
        if len(given) != 1:
            told = f"not {' and '.join(given)} at once" if given else "and none is given"
            raise ValueError(f"say one of {', '.join(_FORMS)}, {told}")
        for form in _RANGES:
            ends = getattr(self, form)
            if ends is not None and not ends[0] < ends[1]:
                raise ValueError(f"{form} goes from the smaller to the larger: [{ends[1]}, {ends[0]}]")
        if self.log_range is not None and self.log_range[0] <= 0:
            raise ValueError("log_range has no logarithm at 0 or below: begin above 0, or use range")
        if self.points is not None and given[0] not in _RANGES:
            raise ValueError(f"points cut a range; {given[0]} has its own")
        return self

    @property
    def values(self) -> tuple[Any, ...] | None:
        """The values in their order, None for a range without `points`."""
        if self.choice is not None:
            return self.choice
        if self.variants is not None:
            return tuple(self.variants)
        if self.integer is not None:
            first, last = self.integer
            count = min(self.points or 0, last - first + 1)
            if not count:
                return None
            return tuple(round(first + (last - first) * i / (count - 1)) for i in range(count))
        if self.points is None:
            return None
        ends = self.log_range or self.range
        assert ends is not None, "a domain has one form"
        low, high = ends
        shares = [i / (self.points - 1) for i in range(1, self.points - 1)]
        inner = (
            low * (high / low) ** share if self.log_range is not None else low + (high - low) * share
            for share in shares
        )
        return (low, *(float(f"{value:.6g}") for value in inner), high)

    def __str__(self) -> str:
        """Return it as a reader of a plan wants it."""
        if self.variants is not None:
            text = "one of " + "; ".join(self.variants)
        elif self.choice is not None:
            text = " | ".join(map(shown, self.choice))
        else:
            form = next(form for form in _RANGES if getattr(self, form) is not None)
            low, high = getattr(self, form)
            how = {"range": "", "log_range": ", logarithmic", "integer": ", whole numbers"}[form]
            text = f"{low:g} to {high:g}{how}" + (f", {self.points} points in a grid" if self.points else "")
        if self.when:
            text += "   when " + " and ".join(
                f"{name} is {shown(value)}" for name, value in self.when.items()
            )
        return text


def shown(value: Any) -> str:
    """Return a value as tables show it: ratios as 2:1:1, numbers short."""
    if isinstance(value, list | tuple):
        return ":".join(map(shown, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def domain_of(value: Any) -> Any:
    """Return a plain value as the choice of it alone; a list could mean two things, so it is refused."""
    if isinstance(value, list | tuple):
        raise ValueError(
            f"say {{choice: {list(value)}}} for several values, {{choice: [{list(value)}]}} for one"
        )
    return value if isinstance(value, dict | Domain) else {"choice": [value]}


class Search(Section):
    """How values are chosen."""

    method: Literal["random", "grid", "tpe"] = "random"
    """Draws; every point; or Optuna's tree-structured Parzen estimator, which learns from the trials before."""
    against: Literal["parameters", "macs_224"] | None = None
    """With `tpe`: the second objective, which is made small while PSNR is made large."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the search; that of the trials is the job's `seed`."""
    startup_trials: int = Field(default=5, ge=1)
    """Random draws before `tpe` begins to learn."""


def scheduler_named(value: Any) -> Any:
    """Return a scheduler that is given by its name alone as a section; population-based training is refused."""
    name = value.get("name") if isinstance(value, dict) else value
    if isinstance(name, str) and name.lower() in ("pbt", "pb2", "population"):
        raise ValueError(
            "population-based training is not offered: a trial is a run with workers of its own, from which no other "
            "trial takes weights, so it would be a random search in disguise. Use asha, or none"
        )
    return {"name": value} if isinstance(value, str) else value


class Scheduler(Section):
    """Which trials are stopped before their end."""

    name: Literal["none", "asha"] = "none"
    """`asha`: at each rung the best share of the trials that came so far goes on (successive halving)."""
    first_steps: int = Field(default=100, ge=1)
    """Steps of the first rung; the next ones are `reduction` times as far each."""
    reduction: int = Field(default=3, ge=2)
    """One of so many trials goes on from a rung."""


class Winner(Section):
    """What becomes of the best trial."""

    then: Literal["none", "continue", "retrain"] = "none"
    """Report it alone; run it on to its job's end; or train it anew with the keys of `set`. A model that comes of it is
    judged and registered as `track.register_as`."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Keys of the job that a retraining changes, for example {train.steps: 100000}."""


class Sweep(Section):
    """The search."""

    space: Annotated[
        dict[str, Annotated[Domain, BeforeValidator(domain_of)]],
        Field(min_length=1),
    ]
    """Key of the job, with dots -> the values it may take."""
    constraints: tuple[str, ...] = ()
    """What a candidate may cost, for example `parameters <= 6.3M`; docs/sweeps.md lists the quantities."""
    search: Search = Search()
    scheduler: Annotated[Scheduler, BeforeValidator(scheduler_named)] = Scheduler()
    trials: int = Field(default=12, ge=1)
    """Trials that are run; rejected candidates do not count. A grid ends with its last point."""
    steps: int | None = Field(default=None, ge=1)
    """Steps after which a trial is over, though its job would go on; unset: the whole job."""
    max_concurrent: int | None = Field(default=None, ge=1)
    """Trials at a time; unset: as many as the cluster holds, now where it grows and nobody says how far."""
    max_device_hours: float | None = Field(default=None, gt=0)
    """No trial is begun after so many hours of all devices together."""
    stall_minutes: float = Field(default=30, gt=0)
    """A trial that is silent for so long ends the sweep, with what it waits for."""
    winner: Winner = Winner()


class SweepJob(Training):
    """A job of kind `sweep`: trials of a training job."""

    kind: Literal["sweep"] = "sweep"
    sweep: Sweep


EXTENDABLE = ("trials", "max_concurrent", "max_device_hours", "stall_minutes", "winner")
"""Keys of `sweep` that leave it the same sweep: one that was too short is continued, not begun anew."""


def rungs(first_steps: int, reduction: int, length: int) -> tuple[int, ...]:
    """Return the steps at which trials of `length` steps are compared, ascending, all before the end."""
    found = []
    step = first_steps
    while step < length:
        found.append(step)
        step *= reduction
    return tuple(found)
