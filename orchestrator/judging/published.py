"""The paper's tables as it prints them, shipped as data (`published.json`, which names its source)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from orchestrator.errors import JudgingError

Cells = Mapping[str, Mapping[str, float | None]]
"""Column -> metric -> value."""


@dataclass(frozen=True)
class PublishedRow:
    """One row: a method or a variant with its numbers."""

    method: str
    parameters: str
    group: str
    cells: Cells
    facts: Mapping[str, str | float | None]
    """What else the row holds, in tables of other columns: memory, MACs."""


@dataclass(frozen=True)
class PublishedTable:
    """One table, or one part of it."""

    key: str
    title: str
    columns: tuple[str, ...]
    """Benchmarks; for tables of averages, `average` alone."""
    note: str
    rows: tuple[PublishedRow, ...]
    protocol: str
    """Under which the paper's own rows were computed, as its released code says; see docs/evaluation.md."""


_PROTOCOLS = {"tab3": "rgb", "tab4": "y-histoformer", "tab5": "rgb", "tabD": "rgb"}
_DEFAULT_PROTOCOL = "rgb-crop16"
AVERAGE = "average"
OF_AVERAGES = ("tab6", "tab7", "tabC")
"""Tables whose numbers are the averages of Table 1's columns."""

NAMES = {
    **{str(number): (f"tab{number}",) for number in range(1, 8)},
    "B": ("tabB_dehaze", "tabB_derain", "tabB_denoise"),
    "C": ("tabC",),
    "D": ("tabD",),
}
"""Table as the paper numbers it -> its parts."""


def published(name: str) -> list[PublishedTable]:
    """Return the parts of the table that the paper calls `name`. Raises JudgingError."""
    if name not in NAMES:
        raise JudgingError(f"--table {name}: one of {', '.join(NAMES)}.")
    return [_table(key, _content()["tables"][key]) for key in NAMES[name]]


def source() -> str:
    """Return where the published numbers are from."""
    return str(_content()["source"])


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(files("orchestrator").joinpath("published.json").read_bytes())
    return content


def _table(key: str, content: dict[str, Any]) -> PublishedTable:
    return PublishedTable(
        key=key,
        title=content["title"],
        columns=tuple(content.get("benchmarks", (AVERAGE,))),
        note=content.get("note", ""),
        rows=tuple(_row(row) for row in content["rows"]),
        protocol=_PROTOCOLS.get(key, _DEFAULT_PROTOCOL),
    )


def _row(row: dict[str, Any]) -> PublishedRow:
    cells = row.get("cells") or {AVERAGE: {name: row.get(name) for name in ("psnr", "ssim") if name in row}}
    facts: dict[str, str | float | None] = {name: row[name] for name in ("memory", "macs") if name in row}
    return PublishedRow(
        row.get("method") or row["variant"], row.get("parameters", "-"), row.get("group", ""), cells, facts
    )
