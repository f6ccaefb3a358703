"""docs/degradations.md and its pictures know every operator and every preset."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from shards.degradations.operator import OPERATORS
from shards.degradations.parse import parse_pipelines
from shards.degradations.presets import PRESETS

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "degradations.md").read_text()


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_has_a_row_with_its_parameters_and_a_sheet_of_its_kind(name: str) -> None:
    operator = OPERATORS[name]
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |")]
    assert operator.about in row
    for key, parameter in operator.parameters.items():
        assert f"`{key}`: {parameter.about}" in row
    sheet = f"degradations/{operator.function.__module__.rpartition('.')[2]}.jpg"
    assert f"]({sheet})" in PAGE
    assert 10_000 < (ROOT / "docs" / sheet).stat().st_size <= 150_000


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_on_the_page(name: str) -> None:
    assert f"`{name}`" in PAGE or (name.startswith("cdd11_") and "all eleven" in PAGE)


def test_the_script_of_the_pictures_has_valid_values_of_every_operator() -> None:
    examples = runpy.run_path(str(ROOT / "scripts" / "degradation-sheets"))["EXAMPLES"]
    assert examples.keys() == OPERATORS.keys()
    for name, several in examples.items():
        assert len(several) == 2
        parse_pipelines({"shown": [{name: dict(values)} for values in several]})
