import re
from dataclasses import replace
from pathlib import Path

import pytest

from mirage import ModelConfig
from mirage.cost import macs, parameters

PAGE = (Path(__file__).parents[2] / "docs" / "model.md").read_text()
ROWS = re.findall(r"^\| [^|]+ \|(.*?)\| ([\d,]+) \| ([\d,]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)


def test_the_table_of_ablations_is_there() -> None:
    assert len(ROWS) == 10


@pytest.mark.parametrize(("override", "count", "at_inference", "gmacs"), ROWS)
def test_counts_of_the_ablations_are_the_computed_ones(
    override: str, count: str, at_inference: str, gmacs: str
) -> None:
    changes = {}
    for name, value in re.findall(r"model\.(\w+)=([^`]+)`", override):
        changes[name] = tuple(int(v) for v in value.strip("[]").split(",")) if "[" in value else value
    config = replace(ModelConfig.tiny(), **changes)
    assert parameters(config) == int(count.replace(",", ""))
    assert parameters(config, spd_head=False) == int(at_inference.replace(",", ""))
    assert f"{macs(config, 224, 224) / 1e9:.2f}" == gmacs
