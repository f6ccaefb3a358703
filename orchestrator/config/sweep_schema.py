"""The schema of a sweep: a training job, and a section that says which of its keys are searched and how."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from orchestrator.config.schema import Bool, FiniteAny, Float, Hours, Int, Section, Training

_RANGES = ("range", "log_range", "integer")
_FORMS = ("choice", *_RANGES, "variants")


class Domain(Section):
    """The values that a parameter may take. A plain value in a file means `choice` of that value alone."""

    choice: Annotated[tuple[FiniteAny, ...], Field(min_length=1)] | None = None
    """A list of values."""
    range: tuple[Float, Float] | None = None
    """Lowest and highest number, distributed uniformly."""
    log_range: tuple[Float, Float] | None = None
    """Lowest and highest positive number, distributed uniformly in the logarithm."""
    integer: tuple[Int, Int] | None = None
    """Lowest and highest integer, both included."""
    variants: Annotated[dict[str, dict[str, FiniteAny]], Field(min_length=1)] | None = None
    """Named sets of keys that change together; the name of the parameter is then not a key of a job."""
    points: Int | None = Field(default=None, ge=2)
    """Number of values that a grid takes from a range, both ends included."""
    when: dict[str, FiniteAny] | None = None
    """Earlier parameters and the value, or list of values, that they must have for this one to be used."""
    default: FiniteAny = None
    """Value where `when` does not hold; unset: the job's own."""

    @model_validator(mode="after")
    def _is_one_domain(self) -> Domain:
        given = [form for form in _FORMS if getattr(self, form) is not None]
        if len(given) != 1:
            found = f"not {' and '.join(given)} together" if given else "none is given"
            raise ValueError(f"give exactly one of {', '.join(_FORMS)}; {found}")
        for form in _RANGES:
            ends = getattr(self, form)
            if ends is not None and not ends[0] < ends[1]:
                raise ValueError(f"{form} goes from the smaller to the larger number: [{ends[1]}, {ends[0]}]")
        if self.log_range is not None and self.log_range[0] <= 0:
            raise ValueError("log_range must begin above 0; use range otherwise")
        if self.points is not None and given[0] not in _RANGES:
            raise ValueError(f"points divide a range; {given[0]} already lists its values")
        return self

    @property
    def values(self) -> tuple[Any, ...] | None:
        """The values in their order, None for a range without `points`."""
        if self.choice is not None:
            return self.choice
        if self.variants is not None:
            return tuple(self.variants)
        if self.points is None:
            return None
        if self.integer is not None:
            first, last = self.integer
            count = min(self.points, last - first + 1)
            return tuple(round(first + (last - first) * i / (count - 1)) for i in range(count))
        ends = self.log_range or self.range
        assert ends is not None, "a domain has one form"
        low, high = ends
        shares = [i / (self.points - 1) for i in range(1, self.points - 1)]
        inner = (
            low * (high / low) ** share if self.log_range is not None else low + (high - low) * share
            for share in shares
        )
        return (low, *(float(f"{value:.6g}") for value in inner), high)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Lowest and highest number of a range, None for a list of values."""
        return self.range or self.log_range or self.integer

    def __str__(self) -> str:
        if self.variants is not None:
            text = "one of " + "; ".join(self.variants)
        elif self.choice is not None:
            text = " | ".join(map(format_value, self.choice))
        else:
            form = next(form for form in _RANGES if getattr(self, form) is not None)
            low, high = getattr(self, form)
            how = {"range": "", "log_range": ", logarithmic", "integer": ", integers"}[form]
            text = f"{low:g} to {high:g}{how}" + (f", {self.points} points in a grid" if self.points else "")
        if self.when:
            conditions = (f"{name} is {format_value(value)}" for name, value in self.when.items())
            text += "   when " + " and ".join(conditions)
        return text


def format_value(value: Any) -> str:
    """Return a value as tables show it: ratios as 2:1:1, numbers with four digits."""
    if isinstance(value, list | tuple):
        return ":".join(map(format_value, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _as_domain(value: Any) -> Any:
    """Return a plain value as the choice of it alone. Raises ValueError for a list, whose meaning is ambiguous."""
    if isinstance(value, list | tuple):
        raise ValueError(
            f"write {{choice: {list(value)}}} for several values, {{choice: [{list(value)}]}} for one"
        )
    return value if isinstance(value, dict | Domain) else {"choice": [value]}


def _reject_bohb(value: Any) -> Any:
    if value == "bohb":
        raise ValueError(
            "bohb needs the packages hpbandster and ConfigSpace 0.7, which do not load with NumPy 2; use scheduler "
            "hyperband with search method random"
        )
    return value


class Search(Section):
    """How the values of a trial are chosen."""

    method: Annotated[
        Literal["random", "grid", "tpe", "optuna", "hyperopt", "ax", "bayesopt"],
        BeforeValidator(_reject_bohb),
    ] = "random"
    """`random` values; a `grid` of all points; or a searcher of Ray Tune, which learns from earlier trials. `tpe`, also
    called `optuna`, is part of the installation; the others need a package of their own."""
    second_objective: Literal["parameters", "macs_224"] | None = None
    """With `tpe`: a cost to minimise while PSNR is maximised."""
    seed: Int = Field(default=0, ge=0, lt=2**31)
    """Random seed of the search and the scheduler; that of training is the job's `seed`."""
    startup_trials: Int = Field(default=5, ge=1)
    """Random trials before `tpe` uses its model."""


class Scheduler(Section):
    """Which trials stop early, or continue with the weights of others: a scheduler of Ray Tune."""

    name: Annotated[
        Literal["none", "asha", "hyperband", "median", "pbt", "pb2"], BeforeValidator(_reject_bohb)
    ] = "none"
    """`asha`: asynchronous successive halving; `hyperband`: the same in brackets; `median`: stop below the median;
    `pbt`, `pb2`: weak trials copy weights and values of strong ones."""
    first_steps: Int = Field(default=100, ge=1)
    """Steps before the first comparison of trials; with `pbt` and `pb2`, steps between comparisons."""
    reduction: Int = Field(default=3, ge=2)
    """One of this many trials passes a comparison; with `pbt` and `pb2`, one of this many is copied."""


class Winner(Section):
    """What to do with the best trial."""

    then: Literal["none", "continue", "retrain"] = "none"
    """Report it only; continue its run to the end of its job; or train it again with the keys of `set`. The resulting
    model is evaluated and registered as `track.register_as`."""
    set: dict[str, FiniteAny] = Field(default_factory=dict)
    """Keys of the job that retraining changes, for example {train.steps: 100000}."""


class Sweep(Section):
    """The search."""

    space: Annotated[dict[str, Annotated[Domain, BeforeValidator(_as_domain)]], Field(min_length=1)]
    """Key of the job, with dots -> the values it may take."""
    constraints: tuple[str, ...] = ()
    """Limits on the cost of a candidate, for example `parameters <= 6.3M`; docs/sweeps.md lists the quantities."""
    search: Search = Search()
    scheduler: Annotated[
        Scheduler, BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value)
    ] = Scheduler()
    trials: Int = Field(default=12, ge=1)
    """Trials to run; rejected candidates do not count. A grid ends with its last point."""
    steps: Int | None = Field(default=None, ge=1)
    """Steps after which a trial ends, even if its job is longer; unset: the whole job."""
    max_concurrent: Int | None = Field(default=None, ge=1)
    """Most trials that run at the same time; unset: as many as fit the cluster when the sweep starts."""
    max_device_hours: Hours | None = None
    """No trial starts after this many hours, summed over all devices."""
    stall_minutes: Float = Field(default=30, gt=0, le=1e6)
    """The sweep ends with an error when a trial makes no progress for this long."""
    tensorboard: Bool = False
    """Whether Ray Tune writes TensorBoard files of the trials' validations."""
    winner: Winner = Winner()


class SweepJob(Training):
    """A job of kind `sweep`: many trials of one training job."""

    kind: Literal["sweep"] = "sweep"
    """Kind of the job."""
    sweep: Sweep


EXTENDABLE = ("trials", "max_concurrent", "max_device_hours", "stall_minutes", "tensorboard", "winner")
"""Keys of `sweep` that may change while it remains the same sweep, for example to run more trials."""

SYNCHRONOUS = ("hyperband", "pbt", "pb2")
"""Schedulers that must know all trials from the start: they pause trials to compare them at equal steps."""


def rungs(first_steps: int, reduction: int, length: int) -> tuple[int, ...]:
    """Return the steps at which `asha` compares trials of `length` steps, ascending, all before the end."""
    found = []
    step = first_steps
    while step < length:
        found.append(step)
        step *= reduction
    return tuple(found)
