"""A job's example is found by its id or by the last part of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.config.schema import Example
from orchestrator.data.datasets import example_id
from orchestrator.errors import PlanError

IDS = ["degraded/Dune", "degraded/Aqua", "other/Aqua", "Lone"]


def found(name: str) -> str:
    rows: Any = SimpleNamespace(rows=lambda split, degradation: [SimpleNamespace(id=one) for one in IDS])
    job: Any = SimpleNamespace(evaluate=SimpleNamespace(degradations=["blur"]), degradations={})
    return example_id(rows, job, Example(photograph=name, degradation="blur"))


@pytest.mark.parametrize(
    ("name", "expected"), [("Dune", IDS[0]), ("degraded/Aqua", IDS[1]), ("Lone", IDS[3])]
)
def test_a_photograph_is_found_by_its_id_or_its_last_part(name: str, expected: str) -> None:
    assert found(name) == expected


@pytest.mark.parametrize(
    ("name", "says"), [("Aqua", "2 have this name. There are: "), ("une", "with blur. There")]
)
def test_a_name_that_is_not_one_photograph_lists_all(name: str, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        found(name)
