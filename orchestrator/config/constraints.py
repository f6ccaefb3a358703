"""The cost of a candidate, computed from its configuration, and limits on it.

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
    """Costs of a candidate that are known without training it."""

    parameters: int
    """Learned numbers, including those of the SPD heads."""
    parameters_at_inference: int
    macs_224: int
    """Multiply-adds of one 3 x 224 x 224 image, counted as in papers; 0 where they cannot be computed."""
    training_memory: int
    """Bytes of one of `workers.min` workers, computed as in `mirage plan`; 0 where they cannot be computed."""


QUANTITIES = tuple(Costs.__dataclass_fields__)


@dataclass(frozen=True)
class Constraint:
    """A limit on one quantity."""

    text: str
    quantity: str
    relation: str
    limit: float

    def violation(self, costs: Costs) -> str:
        """Return the value that violates the limit, as text, "" if the limit is met."""
        value = asdict(costs)[self.quantity]
        if _RELATIONS[self.relation](value, self.limit):
            return ""
        limit = self.text.rpartition(self.relation)[2].strip()
        return f"{self.quantity} {format_quantity(self.quantity, value)}, not {self.relation} {limit}"


def parse(text: str) -> Constraint:
    """Return the constraint that `text` states. Raises ValueError with an example."""
    found = _PATTERN.fullmatch(text)
    if found is None or found["quantity"] not in QUANTITIES:
        raise ValueError(
            f"{text!r} is not QUANTITY <= NUMBER, for example parameters <= 6.3M; quantities: {', '.join(QUANTITIES)}; "
            f"units: {', '.join(unit for unit in _UNITS if unit)}"
        )
    limit = float(found["number"]) * _UNITS[found["unit"] or ""]
    return Constraint(" ".join(text.split()), found["quantity"], found["relation"], limit)


def violations(costs: Costs, constraints: Sequence[str]) -> str:
    """Return which constraints the costs violate, as text, "" if none."""
    return "; ".join(filter(None, (constraint.violation(costs) for constraint in map(parse, constraints))))


def format_quantity(quantity: str, value: float) -> str:
    """Return a quantity in its usual unit."""
    if quantity == "training_memory":
        return f"{value / 2**30:.2f} GiB"
    unit, scale = ("G", 1e9) if value >= 1e9 else ("M", 1e6) if value >= 1e6 else ("k", 1e3)
    return f"{value / scale:.3g}{unit}" if value < 1e6 else f"{value / scale:.2f}{unit}"
