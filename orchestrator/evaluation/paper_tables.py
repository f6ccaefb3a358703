"""The paper's tables with measured rows beside the published ones: every number under one protocol."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator import tables
from orchestrator.errors import EvaluationError
from orchestrator.evaluation.aggregates import AggregateScore
from orchestrator.evaluation.summary import EvaluationSummary
from orchestrator.paper.benchmarks import COLUMNS, matches_column
from orchestrator.paper.tables import AVERAGE, OF_AVERAGES, PublishedRow, PublishedTable, published

EMPTY = "-"
METRICS = ("psnr", "ssim", "lpips")


@dataclass(frozen=True)
class TableLine:
    """One line of a table: published, measured, or the difference of the two."""

    kind: str
    """`published`, `measured` or `difference`."""
    method: str
    parameters: str
    cells: Mapping[str, Mapping[str, float | None]]
    facts: Mapping[str, str | float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class PaperTable:
    """A table that can be printed and written."""

    key: str
    title: str
    protocol: str
    columns: tuple[str, ...]
    lines: tuple[TableLine, ...]
    notes: tuple[str, ...]


def make_tables(
    name: str, summaries: Sequence[EvaluationSummary], against: str | None = None
) -> list[PaperTable]:
    """Return the parts of the paper's table `name` with a measured line for every evaluation that has its columns.

    `against` names the published row that measured ones are compared with; by default the row of the same size or
    name. Raises EvaluationError where an evaluation has a column under other protocols only.
    """
    return [_table(table, summaries, against) for table in published(name)]


def own_tables(summaries: Sequence[EvaluationSummary]) -> list[PaperTable]:
    """Return the tables of benchmarks that no paper has: one for each dataset, by its digest, and protocol."""
    groups: dict[tuple[str, str, str], dict[str, tuple[EvaluationSummary, list[AggregateScore]]]] = {}
    for summary in summaries:
        for figure in summary.figures:
            if figure.source == "" and figure.metric in METRICS:
                of_table = groups.setdefault((figure.dataset, figure.digest, figure.protocol), {})
                of_table.setdefault(summary.evaluation, (summary, []))[1].append(figure)
    made = []
    for (dataset, digest, protocol), by_evaluation in sorted(groups.items()):
        columns = sorted({f.degradation for _, own in by_evaluation.values() for f in own})
        lines, notes = [], [f"Data: manifest {digest}. The average is the unweighted mean over the columns."]
        for summary, own in by_evaluation.values():
            found = {
                c: {(f.metric, f.subset): f for f in own if f.degradation == c}
                for c in columns
                if any(f.degradation == c for f in own)
            }
            cells = _cells(found, [*columns, AVERAGE], "all")
            assert cells is not None, "every line has all images"
            lines.append(TableLine("measured", summary.model.name, f"{summary.parameters / 1e6:.2f}M", cells))
            notes.append(_provenance(summary, found))
        made.append(
            PaperTable(dataset, "measured here", protocol, (*columns, AVERAGE), tuple(lines), tuple(notes))
        )
    return made


def _table(table: PublishedTable, summaries: Sequence[EvaluationSummary], against: str | None) -> PaperTable:
    columns = published("1")[0].columns if table.key in OF_AVERAGES else table.columns
    lines = [TableLine("published", r.method, r.parameters, r.cells, r.facts) for r in table.rows]
    notes = [table.note] if table.note else []
    seen: set[str] = set()
    for summary in summaries:
        found = {column: _figures(summary, column, table.protocol) for column in columns if column != AVERAGE}
        found = {column: by for column, by in found.items() if by}
        if not found:
            continue
        seen |= set(found)
        reference = _reference(table, summary, against)
        for subset in ("all", "without-leak"):
            cells = _cells(found, columns, subset)
            if cells is None:
                continue
            if table.key in OF_AVERAGES:
                cells = {AVERAGE: cells[AVERAGE]}
            label = summary.model.name + ("" if subset == "all" else ", without the leaked images of SOTS")
            lines.append(
                TableLine("measured", label, f"{summary.parameters / 1e6:.2f}M", cells, _facts(summary))
            )
            if reference is not None:
                lines.append(
                    TableLine("difference", f"  minus {reference.method}", "", _minus(cells, reference.cells))
                )
        notes.append(_provenance(summary, found))
    missing = [column for column in columns if column != AVERAGE and column not in seen]
    if missing:
        datasets = sorted({_dataset(column) for column in missing})
        notes.append(
            f"Not measured: {', '.join(missing)}. Pack {', '.join(datasets)} (mirage pack DATASET --root RAW --out "
            f"URI) and judge a model on it (kind: evaluate, protocols: {table.protocol})."
        )
    return PaperTable(table.key, table.title, table.protocol, table.columns, tuple(lines), tuple(notes))


def _figures(summary: EvaluationSummary, column: str, protocol: str) -> dict[tuple[str, str], AggregateScore]:
    """Return (metric, subset) -> figure of a column under the protocol.

    Raises EvaluationError where there are figures under other protocols only, or of several sets.
    """
    of_column = [f for f in summary.figures if f.source and matches_column(column, f.source, f.degradation)]
    right = {(f.metric, f.subset): f for f in of_column if f.protocol == protocol and f.metric in METRICS}
    sets = sorted({f"{f.dataset} {f.source} {f.digest[:8]}" for f in of_column if f.protocol == protocol})
    if len(sets) > 1:
        raise EvaluationError(
            f"evaluation {summary.evaluation}: {column} was measured on {', '.join(sets)}, and a table has one number "
            "for it. Judge them by two jobs, or leave this one out (--results)."
        )
    if of_column and not right:
        others = sorted({f.protocol for f in of_column})
        raise EvaluationError(
            f"evaluation {summary.evaluation}: {column} was measured under {', '.join(others)}, and this table is "
            f"under {protocol}. A table does not mix protocols: judge it under {protocol}, or leave it out (--results)."
        )
    return right


def _cells(
    found: Mapping[str, Mapping[tuple[str, str], AggregateScore]], columns: Sequence[str], subset: str
) -> dict[str, dict[str, float | None]] | None:
    """Return the cells of a line, None for a subset that no column has."""
    if subset != "all" and not any(s == subset for by in found.values() for _, s in by):
        return None
    cells: dict[str, dict[str, float | None]] = {}
    for column, by in found.items():
        values: dict[str, float | None] = {}
        for metric in METRICS:
            figure = by.get((metric, subset)) or by.get((metric, "all"))
            if figure is not None:
                values[metric] = figure.value
        cells[column] = values
    if AVERAGE in columns:
        cells[AVERAGE] = _average([cells.get(c, {}) for c in columns if c != AVERAGE])
    return cells


def _average(cells: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Return the unweighted mean over columns, None where one is missing: part of an average is none."""
    mean: dict[str, float | None] = {}
    for metric in ("psnr", "ssim"):
        values = [v for v in (cell.get(metric) for cell in cells) if v is not None]
        mean[metric] = sum(values) / len(values) if len(values) == len(cells) else None
    return mean


def _minus(
    cells: Mapping[str, Mapping[str, float | None]], other: Mapping[str, Mapping[str, float | None]]
) -> dict[str, dict[str, float | None]]:
    difference: dict[str, dict[str, float | None]] = {}
    for column, values in cells.items():
        difference[column] = {}
        for metric, value in values.items():
            theirs = other.get(column, {}).get(metric)
            difference[column][metric] = None if value is None or theirs is None else value - theirs
    return difference


def _reference(table: PublishedTable, summary: EvaluationSummary, against: str | None) -> PublishedRow | None:
    """Return the published row to compare with: the one named, else of the same name, else MIRAGE of that size."""
    if against is not None:
        for row in table.rows:
            if row.method.lower().startswith(against.lower()):
                return row
        raise EvaluationError(
            f"--against {against}: no such row in this table. It has: {', '.join(r.method for r in table.rows)}."
        )
    for row in table.rows:
        if row.method.lower() == summary.model.name.lower():
            return row
    ours = [row for row in table.rows if "MIRAGE" in row.method]
    size = {"6M": 6.2e6, "6.21M": 6.2e6, "10M": 9.7e6, "9.68M": 9.7e6}
    near = [r for r in ours if abs(size.get(r.parameters, 0) - summary.parameters) < 1e5]
    chosen = near or ours
    return chosen[-1] if chosen else None


def _facts(summary: EvaluationSummary) -> dict[str, str | float | None]:
    return {"macs": None if summary.macs is None else f"{summary.macs / 1e9:.1f}G"}


def _provenance(
    summary: EvaluationSummary, found: Mapping[str, Mapping[tuple[str, str], AggregateScore]]
) -> str:
    first = next(iter(next(iter(found.values())).values()))
    each = ", ".join(
        f"{column} n={by['psnr', 'all'].n} [{by['psnr', 'all'].low:.2f}, {by['psnr', 'all'].high:.2f}] dB "
        f"data {by['psnr', 'all'].digest[:8]}"
        for column, by in found.items()
    )
    noise = sorted({f.noise for by in found.values() for f in by.values()} - {""})
    return (
        f"{summary.model.name}: recipe {first.recipe}, weights {first.weights}, sha256 {first.model_digest[:12]}, "
        f"evaluation {summary.evaluation}{', noise ' + ', '.join(noise) if noise else ''}; 95 % intervals: {each}."
    )


def _dataset(column: str) -> str:
    return COLUMNS[column].dataset


# --- as text, Markdown, CSV and JSON -------------------------------------------------------------------------


def text(table: PaperTable) -> str:
    """Return the table for a terminal."""
    return "\n".join([_title(table), "", *tables.aligned(_header(table), _rows(table)), "", *table.notes])


def markdown(table: PaperTable) -> str:
    """Return the table as Markdown."""
    body = tables.markdown(_header(table), _rows(table))
    notes = [f"- {note}" for note in table.notes]
    return "\n".join([f"## {_title(table)}", "", *body, "", *notes, ""])


def as_csv(table: PaperTable) -> str:
    """Return the table as CSV: a line per method, column and metric, empty where there is no number."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(("table", "protocol", "kind", "method", "parameters", "column", "metric", "value"))
    for line in table.lines:
        for column in table.columns:
            for metric in _metrics(table):
                value = line.cells.get(column, {}).get(metric)
                method = line.method.strip()
                writer.writerow(
                    (table.key, table.protocol, line.kind, method, line.parameters, column, metric, value)
                )
    return out.getvalue()


def _title(table: PaperTable) -> str:
    if not table.key.startswith("tab"):
        return f"Dataset {table.key}: {table.title}. Protocol {table.protocol}"
    name = table.key.removeprefix("tab").replace("_", ", ")
    return f"Table {name}: {table.title}. Protocol {table.protocol}"


def _metrics(table: PaperTable) -> tuple[str, ...]:
    held = {metric for line in table.lines for cell in line.cells.values() for metric in cell}
    return tuple(metric for metric in METRICS if metric in held)


def _fact_names(table: PaperTable) -> list[str]:
    return sorted({name for line in table.lines if line.kind == "published" for name in line.facts})


def _header(table: PaperTable) -> list[str]:
    return ["", "method", "parameters", *table.columns, *_fact_names(table)]


def _rows(table: PaperTable) -> Iterable[list[str]]:
    metrics = _metrics(table)
    for line in table.lines:
        cells = [_cell(line.cells.get(column, {}), metrics, line.kind) for column in table.columns]
        facts = [str(line.facts.get(name) or EMPTY) for name in _fact_names(table)]
        yield [
            line.kind,
            line.method,
            line.parameters,
            *cells,
            *(facts if line.kind != "difference" else [""] * len(facts)),
        ]


def _cell(cell: Mapping[str, float | None], metrics: Sequence[str], kind: str) -> str:
    sign = "+" if kind == "difference" else ""
    parts = []
    for metric in metrics:
        value = cell.get(metric)
        digits = 2 if metric == "psnr" else 3
        parts.append(EMPTY if value is None else f"{value:{sign}.{digits}f}")
    return EMPTY if all(part == EMPTY for part in parts) else " / ".join(parts)
