"""What a candidate costs, from its configuration alone, and what it may cost.

parameters <= 6.3M      parameters_at_inference < 6M      macs_224 <= 17G      training_memory <= 40GiB
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

_RELATIONS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
_UNITS = {
    "": 1,
    **{"k": 10**3, "M": 10**6, "G": 10**9},
    **{"KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
}
_PATTERN = re.compile(
    r"\s*(?P<quantity>\w+)\s*(?P<relation><=|>=|<|>)\s*(?P<number>\d+(\.\d+)?)\s*(?P<unit>k|M|G|KiB|MiB|GiB)?\s*"
)


@dataclass(frozen=True)
class Costs:
    """What is known of a candidate before it is run."""

    parameters: int
    """Learned numbers, those of the SPD heads among them."""
    parameters_at_inference: int
    macs_224: int
    """Multiply-adds of one 3 x 224 x 224 image as papers count them; 0 where they cannot be counted."""
    training_memory: int
    """Bytes of one of `workers.min` workers, as `mirage plan` counts them; 0 where they cannot be counted."""


QUANTITIES = tuple(Costs.__dataclass_fields__)


@dataclass(frozen=True)
class Constraint:
    """A bound of one quantity."""

    text: str
    quantity: str
    relation: str
    limit: float

    def broken_by(self, found: Costs) -> str:
        """Return by what value the bound is broken, "" when it holds."""
        value = asdict(found)[self.quantity]
        return (
            ""
            if _RELATIONS[self.relation](value, self.limit)
            else f"{self.quantity} {amount(self.quantity, value)}"
        )


def parse(text: str) -> Constraint:
    """Return the constraint that `text` states. Raises ValueError with what to write."""
    found = _PATTERN.fullmatch(text)
    if found is None or found["quantity"] not in QUANTITIES:
        raise ValueError(
            f"{text!r} is not QUANTITY <= NUMBER, for example parameters <= 6.3M; quantities: {', '.join(QUANTITIES)}; "
            f"units: {', '.join(unit for unit in _UNITS if unit)}"
        )
    limit = float(found["number"]) * _UNITS[found["unit"] or ""]
    return Constraint(" ".join(text.split()), found["quantity"], found["relation"], limit)


def rejection(found: Costs, constraints: Sequence[str]) -> str:
    """Return which constraints the candidate breaks and by what, "" when it breaks none."""
    broken = [(one, one.broken_by(found)) for one in map(parse, constraints)]
    return "; ".join(
        f"{by}, not {one.relation} {one.text.rpartition(one.relation)[2].strip()}" for one, by in broken if by
    )


def amount(quantity: str, value: float) -> str:
    """Return a quantity in its usual unit."""
    if quantity == "training_memory":
        return f"{value / 2**30:.2f} GiB"
    unit, scale = ("G", 1e9) if value >= 1e9 else ("M", 1e6) if value >= 1e6 else ("k", 1e3)
    return f"{value / scale:.3g}{unit}" if value < 1e6 else f"{value / scale:.2f}{unit}"
