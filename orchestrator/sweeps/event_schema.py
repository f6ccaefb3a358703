"""The fields that every event of a sweep has, by its kind. Others may stand beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from orchestrator.config.constraints import Costs

Count = Annotated[int, Field(ge=0, lt=2**53)]
Number = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class Submitted:
    """A driver started."""

    kind: Literal["submitted"]
    job: str


@dataclass(frozen=True)
class Rejected:
    """A candidate that is not run."""

    kind: Literal["rejected"]
    values: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class Suggested:
    """A candidate that is run."""

    kind: Literal["suggested"]
    number: Count
    values: dict[str, Any]
    reason: str
    costs: Costs


@dataclass(frozen=True)
class Started:
    """The process of a trial started."""

    kind: Literal["started"]
    number: Count
    attempt: Count
    run: str
    tracked: str
    devices: Number
    length: Count
    whole: bool


@dataclass(frozen=True)
class Observed:
    """A validation."""

    kind: Literal["observed"]
    number: Count
    attempt: Count
    step: Count
    metrics: dict[str, Number]
    seconds: Number


@dataclass(frozen=True)
class Exploited:
    """A trial copied weights and values of another."""

    kind: Literal["exploited"]
    number: Count
    origin: Count
    step: Count
    values: dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """A trial is final."""

    kind: Literal["ended"]
    number: Count
    status: Literal["finished", "stopped", "failed"]
    reason: str
    seconds: Number


@dataclass(frozen=True)
class Exhausted:
    """Fewer trials than asked for are run."""

    kind: Literal["exhausted"]
    reason: str


AnyEvent = Annotated[
    Submitted | Rejected | Suggested | Started | Observed | Exploited | Ended | Exhausted,
    Field(discriminator="kind"),
]
