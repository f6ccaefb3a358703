"""The paper's tables as it prints them, shipped as data (`published.json`, which names its source)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from statistics import fmean
from typing import Any

from orchestrator.errors import EvaluationError
from orchestrator.paper.benchmarks import COLUMNS

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
    """Return the parts of the table that the paper calls `name`. Raises EvaluationError."""
    if name not in NAMES:
        raise EvaluationError(f"--table {name}: one of {', '.join(NAMES)}.")
    return [_table(key, _content()["tables"][key]) for key in NAMES[name]]


@dataclass(frozen=True)
class PublishedAverage:
    """The average of a published row, and what it is the average of."""

    label: str
    psnr: float
    degradations: tuple[str, ...]
    """One of each column, sorted."""
    protocol: str


def published_averages(row: str) -> list[PublishedAverage]:
    """Return the averages of the published row TABLE:METHOD, for example T2:MIRAGE-T, one for each part of the table.

    TABLE is a number or letter of the paper, with or without T. METHOD is a name or enough of its beginning to be the
    only one; where two have one name, with the parameters: T3:MIRAGE (ours) 6M. The average is the printed one, else
    the mean over columns. Raises EvaluationError.
    """
    table, colon, method = row.partition(":")
    name = table.strip().removeprefix("T")
    if not colon or name not in NAMES:
        raise EvaluationError(f"paper row {row!r}: write TABLE:METHOD, TABLE one of {', '.join(NAMES)}.")
    found = [(part, one) for part in published(name) for one in _rows_called(method.strip(), part)]
    if not found or len({part.key for part, _ in found}) < len(found):
        known = [f"{one.method} {one.parameters}" for part in published(name) for one in part.rows]
        raise EvaluationError(
            f"paper row {row!r}: {'several such rows' if found else 'no such row'}. "
            f"Table {name} has: {', '.join(dict.fromkeys(known))}."
        )
    return [_reference(part, one) for part, one in found]


def _rows_called(method: str, table: PublishedTable) -> list[PublishedRow]:
    wanted = method.lower()
    exact = [row for row in table.rows if row.method.lower() == wanted]
    begins = [row for row in table.rows if f"{row.method} {row.parameters}".lower().startswith(wanted)]
    return exact if len(exact) == 1 else begins


def _reference(table: PublishedTable, row: PublishedRow) -> PublishedAverage:
    columns = published("1")[0].columns if table.key in OF_AVERAGES else table.columns
    printed = [row.cells.get(column, {}).get("psnr") for column in table.columns]
    values = [value for value in printed if value is not None]
    average = row.cells.get(AVERAGE, {}).get("psnr")
    if average is None and len(values) < len(printed):
        raise EvaluationError(f"{row.method}: the paper prints neither all of its columns nor their average.")
    return PublishedAverage(
        f"{row.method}, Table {table.key.removeprefix('tab').replace('_', ', ')}",
        fmean(values) if average is None else average,
        tuple(sorted(COLUMNS[column].degradation for column in columns if column != AVERAGE)),
        table.protocol,
    )


def source() -> str:
    """Return where the published numbers are from."""
    return str(_content()["source"])


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(files("orchestrator.paper").joinpath("published.json").read_bytes())
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
