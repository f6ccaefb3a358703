"""The tables that the paper prints, as data (`published.json`, which names its source)."""

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
"""Column → metric → value."""


@dataclass(frozen=True)
class PublishedRow:
    """The numbers of one method or variant."""

    method: str
    parameters: str
    group: str
    cells: Cells
    facts: Mapping[str, str | float | None]
    """Further entries of the row: memory, MACs."""


@dataclass(frozen=True)
class PublishedTable:
    """A table, or one part of it."""

    key: str
    title: str
    columns: tuple[str, ...]
    """Benchmarks; in tables of averages only `average`."""
    note: str
    rows: tuple[PublishedRow, ...]
    protocol: str
    """Protocol of the paper's own rows according to its released code; see docs/evaluation.md."""


_PROTOCOLS = {"tab3": "rgb", "tab4": "y-histoformer", "tab5": "rgb", "tabD": "rgb"}
_DEFAULT_PROTOCOL = "rgb-crop16"
AVERAGE = "average"
OF_AVERAGES = ("tab6", "tab7", "tabC")
"""Tables that print averages over the columns of Table 1."""

NAMES = {
    **{str(number): (f"tab{number}",) for number in range(1, 8)},
    "B": ("tabB_dehaze", "tabB_derain", "tabB_denoise"),
    "C": ("tabC",),
    "D": ("tabD",),
}
"""Number of a table in the paper → keys of its parts."""


def published(name: str) -> list[PublishedTable]:
    """Return the parts of the table with this number in the paper. Raises EvaluationError."""
    if name not in NAMES:
        raise EvaluationError(f"--table {name}: one of {', '.join(NAMES)}.")
    return [_table(key, _content()["tables"][key]) for key in NAMES[name]]


@dataclass(frozen=True)
class PublishedAverage:
    """The average PSNR of a published row, and what it is averaged over."""

    label: str
    psnr: float
    degradations: tuple[str, ...]
    """Degradation of each column, sorted."""
    protocol: str


def published_averages(row: str) -> list[PublishedAverage]:
    """Return the averages of the published row TABLE:METHOD, for example T2:MIRAGE-T, one per part of the table.

    TABLE is the table's number in the paper, with or without T. METHOD is a unique prefix of the method's name,
    followed by the parameters if two rows have the same name: T3:MIRAGE (ours) 6M. The average is the printed one,
    else the mean over the columns. Raises EvaluationError.
    """
    table, colon, method = row.partition(":")
    name = table.strip().removeprefix("T")
    if not colon or name not in NAMES:
        raise EvaluationError(f"paper row {row!r}: write TABLE:METHOD, TABLE one of {', '.join(NAMES)}.")
    found = [(part, one) for part in published(name) for one in _matching_rows(method.strip(), part)]
    if not found or len({part.key for part, _ in found}) < len(found):
        known = [f"{one.method} {one.parameters}" for part in published(name) for one in part.rows]
        raise EvaluationError(
            f"paper row {row!r}: {'several such rows' if found else 'no such row'}. "
            f"Table {name} has: {', '.join(dict.fromkeys(known))}."
        )
    return [_reference(part, one) for part, one in found]


def _matching_rows(method: str, table: PublishedTable) -> list[PublishedRow]:
    wanted = method.lower()
    exact = [row for row in table.rows if row.method.lower() == wanted]
    prefixed = [row for row in table.rows if f"{row.method} {row.parameters}".lower().startswith(wanted)]
    return exact if len(exact) == 1 else prefixed


def _reference(table: PublishedTable, row: PublishedRow) -> PublishedAverage:
    columns = published("1")[0].columns if table.key in OF_AVERAGES else table.columns
    printed = [row.cells.get(column, {}).get("psnr") for column in table.columns]
    values = [value for value in printed if value is not None]
    average = row.cells.get(AVERAGE, {}).get("psnr")
    if average is None and len(values) < len(printed):
        raise EvaluationError(f"{row.method}: the paper prints neither all of its columns nor an average.")
    return PublishedAverage(
        f"{row.method}, Table {table.key.removeprefix('tab').replace('_', ', ')}",
        fmean(values) if average is None else average,
        tuple(sorted(COLUMNS[column].degradation for column in columns if column != AVERAGE)),
        table.protocol,
    )


def source() -> str:
    """Return the source of the published numbers."""
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
