"""The events of a sweep, which its table, its report and a later driver read. Stored ones may have more fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from orchestrator.config.constraints import Costs
from orchestrator.config.search_space import Values, format_params

Count = Annotated[int, Field(ge=0, lt=2**53)]
Number = Annotated[float, Field(allow_inf_nan=False)]

EndStatus = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class _Event:
    def __str__(self) -> str:
        """Return the line that is printed when it happens, "" for none."""
        return ""


@dataclass(frozen=True)
class _TrialEvent(_Event):
    number: Count


@dataclass(frozen=True)
class Submitted(_Event):
    """A driver started."""

    job: str
    """Key of its resolved job."""
    format: int = 1
    code: str = ""
    data: Sequence[str] = ()
    """Digests of the datasets."""
    kind: Literal["submitted"] = "submitted"


@dataclass(frozen=True)
class Rejected(_Event):
    """A candidate that is not run."""

    values: Values
    reason: str
    index: int = 0
    """Candidates before it."""
    kind: Literal["rejected"] = "rejected"

    def __str__(self) -> str:
        return f"rejected   {format_params(self.values)}: {self.reason}"


@dataclass(frozen=True)
class Suggested(_TrialEvent):
    """A candidate that is run."""

    values: Values
    reason: str
    costs: Costs
    index: int = 0
    """Candidates before it."""
    kind: Literal["suggested"] = "suggested"

    def __str__(self) -> str:
        return f"trial {self.number}    {format_params(self.values)}"


@dataclass(frozen=True)
class Started(_TrialEvent):
    """The process of a trial started; `TrialRow` describes the fields."""

    attempt: Count
    run: str
    tracked: str
    devices: Number
    length: Count
    whole: bool
    kind: Literal["started"] = "started"


@dataclass(frozen=True)
class Observed(_TrialEvent):
    """A validation."""

    attempt: Count
    step: Count
    metrics: Mapping[str, Number]
    seconds: Number
    """Wall time since the attempt began."""
    kind: Literal["observed"] = "observed"


@dataclass(frozen=True)
class Exploited(_TrialEvent):
    """A trial copied the weights that another one had at a step, and has new values."""

    origin: Count
    step: Count
    values: Values
    kind: Literal["exploited"] = "exploited"

    def __str__(self) -> str:
        return f"trial {self.number}    copies trial {self.origin} at step {self.step}: {format_params(self.values)}"


@dataclass(frozen=True)
class Ended(_TrialEvent):
    """A trial is final."""

    status: EndStatus
    reason: str
    seconds: Number
    kind: Literal["ended"] = "ended"

    def __str__(self) -> str:
        return f"trial {self.number}    {self.status}: {self.reason}"


@dataclass(frozen=True)
class Exhausted(_Event):
    """Fewer trials than asked for are run."""

    reason: str
    kind: Literal["exhausted"] = "exhausted"

    def __str__(self) -> str:
        return f"the search ends: {self.reason}"


SweepEvent = Submitted | Rejected | Suggested | Started | Observed | Exploited | Ended | Exhausted
