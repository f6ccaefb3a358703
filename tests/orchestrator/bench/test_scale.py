"""The operations of `mirage bench scale` run, and say what they cost."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from orchestrator.bench import scale_operations

OPERATIONS = {
    "different photographs": scale_operations.compare_photographs,
    "photographs of one scene": partial(scale_operations.compare_photographs, alike=True),
    "ledger": scale_operations.check_ledger,
    "pack": scale_operations.pack_again,
    "shards": scale_operations.read_shards,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_costs_something(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MIRAGE_HOME", "MIRAGE_CACHE"):  # the operation sets them
        monkeypatch.setenv(variable, str(tmp_path / "unused"))
    costs = OPERATIONS[name](320, tmp_path)
    assert sum(costs.values()) > 0
