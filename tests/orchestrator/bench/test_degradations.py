"""`mirage bench degradations` measures every operator; a folder that is no checkout is one error."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from orchestrator.bench.__main__ import main
from orchestrator.bench.degradations import PIPELINES
from orchestrator.bench.environment import command
from shards.degradations.operator import OPERATORS


def test_every_operator_and_pipeline_has_a_rate(tmp_path: Path) -> None:
    assert main(["degradations", "--repeats", "1", "--json", str(tmp_path / "r.json")]) == 0
    rates = json.loads((tmp_path / "r.json").read_text())["crops_per_second"]
    assert rates.keys() == {*PIPELINES, *OPERATORS}
    assert min(rates.values()) > 0


def test_a_record_has_the_command_without_the_folder_of_the_peer() -> None:
    options = argparse.Namespace(kind="degradations", peer=Path("/home/someone/BasicSR"), repeats=25)
    assert command(options) == "mirage bench degradations --peer PATH --repeats 25"


def test_a_peer_that_is_no_checkout_is_one_error(tmp_path: Path, capsys) -> None:
    assert main(["degradations", "--peer", str(tmp_path)]) == 2
    assert "is no checkout of XPixelGroup/BasicSR" in capsys.readouterr().err
