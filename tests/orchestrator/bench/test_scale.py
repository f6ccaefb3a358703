"""The operations of `mirage bench scale` run, and say what they cost."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest

from orchestrator.bench import scale_operations, scale_tracking
from orchestrator.bench.__main__ import main

OPERATIONS = {
    "different photographs": scale_operations.compare_photographs,
    "photographs of one scene": partial(scale_operations.compare_photographs, alike=True),
    "ledger": scale_operations.check_ledger,
    "pack": scale_operations.pack_again,
    "scan": scale_operations.scan_pairs,
    "shards": scale_operations.read_shards,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_costs_something(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MIRAGE_HOME", "MIRAGE_CACHE"):  # the operation sets them
        monkeypatch.setenv(variable, str(tmp_path / "unused"))
    costs = OPERATIONS[name](320, tmp_path)
    assert sum(costs.values()) > 0


@pytest.mark.parametrize("operation", [scale_tracking.track_lines, scale_tracking.find_version])
def test_an_operation_on_mlflow_costs_something(operation, store: str, tmp_path: Path) -> None:
    shutil.copy(store.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    assert min(operation(320, tmp_path).values()) > 0


def test_an_operation_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "--only", "nothing"]) == 2
    assert (
        "--only nothing: no operation has that name. There are: open a manifest, " in capsys.readouterr().err
    )
