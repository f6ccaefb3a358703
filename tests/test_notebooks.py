"""The notebooks run, and their committed outputs say nothing of the machine that made them."""

from __future__ import annotations

import getpass
import json
import re
import socket
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

from tests.claims import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|Users|var|opt|private|mnt|usr)/|[A-Z]:\\\\")


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def texts(value: Any) -> list[str]:
    """Return all text in a cell's outputs, pictures left out."""
    if isinstance(value, dict):
        return [text for key, each in value.items() if not key.startswith("image/") for text in texts(each)]
    if isinstance(value, list):
        return [text for each in value for text in texts(each)]
    return [value] if isinstance(value, str) else []


def test_there_are_three() -> None:
    assert [path.name for path in NOTEBOOKS] == ["1-data.ipynb", "2-train.ipynb", "3-evaluate.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_are_whole_small_and_name_no_machine(path: Path) -> None:
    assert path.stat().st_size < 400_000
    cells = code_cells(json.loads(path.read_text()))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell["outputs"]) for cell in cells) >= len(cells) // 2
    for cell in cells:
        said = "\n".join(texts(cell["outputs"]))
        assert all(output["output_type"] != "error" for output in cell["outputs"])
        assert not ABSOLUTE.search(said), said
        for name in (socket.gethostname(), getpass.getuser()):
            assert not re.search(rf"[/@]{re.escape(name)}\b|\b{re.escape(name)}@", said), said


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs_and_gives_what_is_committed(path: Path) -> None:
    loader = SourceFileLoader("notebooks", str(ROOT / "scripts" / "notebooks"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    script = module_from_spec(spec)
    loader.exec_module(script)
    committed, now = json.loads(path.read_text()), script.executed(path)
    kinds = [
        [[output["output_type"] for output in cell["outputs"]] for cell in code_cells(notebook)]
        for notebook in (committed, now)
    ]
    assert kinds[0] == kinds[1]
