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


def said_of(notebook: Any) -> list[list[str]]:
    """Return what each cell says, without what differs between machines: fractions, times and lines of progress.

    Each digest is replaced by its number in the notebook, so what is equal in one is equal in the other.
    """
    digests: dict[str, str] = {}

    def number(found: re.Match[str]) -> str:
        return digests.setdefault(found[0][:10], f"<digest {len(digests)}>")

    def plain(output: Any) -> str:
        return "".join(output.get("text") or output.get("data", {}).get("text/plain", ""))

    def stable(text: str) -> str:
        text = re.sub(r"^(scanning|packing|hashing|evaluated) .*", "", text, flags=re.MULTILINE)
        text = re.sub(r"\b(?=[a-f]*\d)[0-9a-f]{10,}\b", number, text)
        text = re.sub(r"[+-]?\d+\.\d+(e[+-]\d+)?|\d+m\d+s", "#", text)
        return " ".join(re.sub(r"-{4,}", "", text).split())

    return [
        [output["output_type"], *sorted(output.get("data", {})), stable(plain(output))]
        for cell in code_cells(notebook)
        for output in cell["outputs"]
    ]


def test_what_is_compared_is_more_than_the_kinds_of_outputs() -> None:
    def notebook(text: str) -> Any:
        return {
            "cells": [
                {"cell_type": "code", "outputs": [{"output_type": "stream", "name": "stdout", "text": text}]}
            ]
        }

    text = "step 5/20  l1 0.1663  42.7 images/s  0m01s left\nhashing 6/6\n1eb3c7e98039 and 1eb3c7e98039\n"
    same = "step 5/20  l1  0.9  3.1 images/s  2m41s left\nhashing 1/6\nabc3c7e98039 and abc3c7e98039\n"
    assert said_of(notebook(text)) == said_of(notebook(same))
    for old, new in (("5/20", "6/20"), ("images", "photographs"), ("and abc3", "and abc4")):
        assert said_of(notebook(text)) != said_of(notebook(same.replace(old, new)))


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
def test_every_cell_runs_and_says_what_is_committed_but_for_fractions_and_times(path: Path) -> None:
    loader = SourceFileLoader("notebooks", str(ROOT / "scripts" / "notebooks"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    script = module_from_spec(spec)
    loader.exec_module(script)
    committed, now = json.loads(path.read_text()), script.executed(path)
    assert said_of(now) == said_of(committed)
