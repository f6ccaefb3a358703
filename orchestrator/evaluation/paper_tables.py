"""The paper's tables with measured rows next to the published ones, each table under one protocol."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator import tables
from orchestrator.errors import EvaluationError
from orchestrator.evaluation.aggregates import AggregateScore
from orchestrator.evaluation.summary import EvaluationSummary
from orchestrator.paper.benchmarks import COLUMNS, matches_column
from orchestrator.paper.tables import AVERAGE, OF_AVERAGES, Cells, PublishedRow, PublishedTable, published

EMPTY = "-"
METRICS = ("psnr", "ssim", "lpips")
_SIZES = {"6M": 6.2e6, "6.21M": 6.2e6, "10M": 9.7e6, "9.68M": 9.7e6}
"""MIRAGE's parameters as tables print them → as a number."""

ColumnScores = Mapping[tuple[str, str], AggregateScore]
"""(metric, subset) → score of one column."""


@dataclass(frozen=True)
class TableLine:
    """One line of a table: published, measured, or the difference of the two."""

    kind: str
    """`published`, `measured` or `difference`."""
    method: str
    parameters: str
    cells: Cells
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
    name: str, summaries: Sequence[EvaluationSummary], compare_with: str | None = None
) -> list[PaperTable]:
    """Return the parts of the paper's table `name` with a measured line for every evaluation that has its columns.

    `compare_with` names the published row that measured ones are compared with; by default the row of the same name or
    size. Raises EvaluationError if an evaluation has a column under other protocols only.
    """
    return [_table(table, summaries, compare_with) for table in published(name)]


def own_tables(summaries: Sequence[EvaluationSummary]) -> list[PaperTable]:
    """Return the tables of benchmarks that are not in the paper: one per dataset, by its digest, and protocol."""
    measured: dict[tuple[str, str, str], dict[str, list[AggregateScore]]] = defaultdict(dict)
    by_name = {summary.evaluation: summary for summary in summaries}
    for summary in summaries:
        for score in summary.figures:
            if (score.source == "" or score.pipeline) and score.metric in METRICS:
                of_table = measured[score.dataset, score.digest, score.protocol]
                of_table.setdefault(summary.evaluation, []).append(score)
    made = []
    for (dataset, digest, protocol), evaluations in sorted(measured.items()):
        columns = (*_own_columns([score for scores in evaluations.values() for score in scores]), AVERAGE)
        lines, notes = [], [f"Data: manifest {digest}. The average is the unweighted mean over the columns."]
        for evaluation, scores in evaluations.items():
            found: dict[str, dict[tuple[str, str], AggregateScore]] = {}
            for score in sorted(scores, key=lambda s: s.degradation):
                column = next(name for name in columns if name in (score.degradation, _with_digest(score)))
                found.setdefault(column, {})[score.metric, score.subset] = score
            summary = by_name[evaluation]
            lines.append(_measured(summary, summary.model.name, _cells(found, columns, "all")))
            notes.append(_provenance(summary, found))
        made.append(PaperTable(dataset, "measured here", protocol, columns, tuple(lines), tuple(notes)))
    return made


def _own_columns(scores: Sequence[AggregateScore]) -> list[str]:
    """Return the degradations; where pipelines of one name differ, each has a column with its digest."""
    pipelines: dict[str, set[str]] = defaultdict(set)
    for score in scores:
        pipelines[score.degradation].add(score.pipeline)
    names = {_with_digest(s) if len(pipelines[s.degradation]) > 1 else s.degradation for s in scores}
    return sorted(names)


def _with_digest(score: AggregateScore) -> str:
    return f"{score.degradation} {score.pipeline[:8] or 'packed'}"


def _table(
    table: PublishedTable, summaries: Sequence[EvaluationSummary], compare_with: str | None
) -> PaperTable:
    columns = published("1")[0].columns if table.key in OF_AVERAGES else table.columns
    benchmarks = [column for column in columns if column != AVERAGE]
    lines = [TableLine("published", r.method, r.parameters, r.cells, r.facts) for r in table.rows]
    notes = [table.note] if table.note else []
    measured: set[str] = set()
    for summary in summaries:
        of_columns = {column: _scores(summary, column, table.protocol) for column in benchmarks}
        found = {column: scores for column, scores in of_columns.items() if scores}
        if not found:
            continue
        measured |= set(found)
        reference = _reference(table, summary, compare_with)
        for subset, suffix in (("all", ""), ("without-leak", ", without the leaked images of SOTS")):
            if not any(subset == of for scores in found.values() for _, of in scores):
                continue
            cells = _cells(found, columns, subset)
            if table.key in OF_AVERAGES:
                cells = {AVERAGE: cells[AVERAGE]}
            facts = {"macs": None if summary.macs is None else f"{summary.macs / 1e9:.1f}G"}
            lines.append(_measured(summary, summary.model.name + suffix, cells, facts))
            if reference is not None:
                difference = _minus(cells, reference.cells)
                lines.append(TableLine("difference", f"  minus {reference.method}", "", difference))
        notes.append(_provenance(summary, found))
    missing = [column for column in benchmarks if column not in measured]
    if missing:
        datasets = sorted({COLUMNS[column].dataset for column in missing})
        notes.append(
            f"Not measured: {', '.join(missing)}. Pack {', '.join(datasets)} (mirage pack DATASET --root RAW --out "
            f"URI) and evaluate a model on it (kind: evaluate, protocols: {table.protocol})."
        )
    return PaperTable(table.key, table.title, table.protocol, table.columns, tuple(lines), tuple(notes))


def _measured(
    summary: EvaluationSummary,
    method: str,
    cells: Cells,
    facts: Mapping[str, str | float | None] | None = None,
) -> TableLine:
    return TableLine("measured", method, f"{summary.parameters / 1e6:.2f}M", cells, facts or {})


def _scores(summary: EvaluationSummary, column: str, protocol: str) -> ColumnScores:
    """Return the scores of a column under the protocol.

    Raises EvaluationError if the column was measured under other protocols only, or on several datasets.
    """
    of_column = [f for f in summary.figures if f.source and matches_column(column, f.source, f.degradation)]
    scores = {(f.metric, f.subset): f for f in of_column if f.protocol == protocol and f.metric in METRICS}
    sets = sorted({f"{f.dataset} {f.source} {f.digest[:8]}" for f in of_column if f.protocol == protocol})
    if len(sets) > 1:
        raise EvaluationError(
            f"evaluation {summary.evaluation}: {column} was measured on {', '.join(sets)}, but a table has one number "
            "per column. Evaluate them by two jobs, or leave this one out (--results)."
        )
    if of_column and not scores:
        others = sorted({f.protocol for f in of_column})
        raise EvaluationError(
            f"evaluation {summary.evaluation}: {column} was measured under {', '.join(others)}, and this table is "
            f"under {protocol}. A table does not mix protocols: evaluate under {protocol}, or leave it out (--results)."
        )
    return scores


def _cells(found: Mapping[str, ColumnScores], columns: Sequence[str], subset: str) -> Cells:
    """Return the cells of a line; columns without that subset have the score of all images."""
    cells: dict[str, Mapping[str, float | None]] = {}
    for column, scores in found.items():
        chosen = {m: scores.get((m, subset)) or scores.get((m, "all")) for m in METRICS}
        cells[column] = {metric: score.value for metric, score in chosen.items() if score is not None}
    if AVERAGE in columns:
        cells[AVERAGE] = _average([cells.get(column, {}) for column in columns if column != AVERAGE])
    return cells


def _average(cells: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Return the unweighted mean over columns, None if one is missing."""
    mean: dict[str, float | None] = {}
    for metric in ("psnr", "ssim"):
        values = [value for cell in cells if (value := cell.get(metric)) is not None]
        mean[metric] = sum(values) / len(values) if len(values) == len(cells) else None
    return mean


def _minus(cells: Cells, other: Cells) -> Cells:
    difference: dict[str, dict[str, float | None]] = {}
    for column, values in cells.items():
        difference[column] = {}
        for metric, value in values.items():
            theirs = other.get(column, {}).get(metric)
            difference[column][metric] = None if value is None or theirs is None else value - theirs
    return difference


def _reference(
    table: PublishedTable, summary: EvaluationSummary, compare_with: str | None
) -> PublishedRow | None:
    """Return the published row to compare with: the one named, else of the same name, else MIRAGE of that size.

    A model `peer-promptir` has the name of the row PromptIR. Other networks than MIRAGE, whose multiply-adds are
    unknown, are compared with a row of their name only.
    """
    if compare_with is not None:
        for row in table.rows:
            if row.method.lower().startswith(compare_with.lower()):
                return row
        raise EvaluationError(
            f"--compare-with {compare_with}: no such row in this table. "
            f"It has: {', '.join(r.method for r in table.rows)}."
        )
    for row in table.rows:
        if _plain(row.method) == _plain(summary.model.name):
            return row
    if summary.macs is None:
        return None
    ours = [row for row in table.rows if "MIRAGE" in row.method]
    same_size = [r for r in ours if abs(_SIZES.get(r.parameters, 0) - summary.parameters) < 1e5]
    candidates = same_size or ours
    return candidates[-1] if candidates else None


def _plain(name: str) -> str:
    """Return a name without what differs between a table, a registry (`models:/peer-x@champion`) and a class."""
    last = re.split("[/:]", name.lower())[-1].partition("@")[0]
    return "".join(filter(str.isalnum, last.removeprefix("peer-")))


def _provenance(summary: EvaluationSummary, found: Mapping[str, ColumnScores]) -> str:
    psnr = {column: scores["psnr", "all"] for column, scores in found.items()}
    intervals = ", ".join(
        f"{column} n={score.n} [{score.low:.2f}, {score.high:.2f}] dB data {score.digest[:8]}"
        f"{f' pipeline {score.pipeline[:8]}' if score.pipeline else ''}"
        for column, score in psnr.items()
    )
    first = next(iter(psnr.values()))
    noise = sorted({score.noise for score in psnr.values()} - {""})
    return (
        f"{summary.model.name}: recipe {first.recipe}, weights {first.weights}, sha256 {first.model_digest[:12]}, "
        f"evaluation {summary.evaluation}{', noise ' + ', '.join(noise) if noise else ''}; 95 % intervals: {intervals}."
    )


def text(table: PaperTable) -> str:
    """Return the table for a terminal."""
    return "\n".join([_title(table), "", *tables.aligned(_head(table), _rows(table)), "", *table.notes])


def markdown(table: PaperTable) -> str:
    """Return the table as Markdown."""
    body = tables.markdown(_head(table), _rows(table))
    return "\n".join([f"## {_title(table)}", "", *body, "", *(f"- {note}" for note in table.notes), ""])


def as_csv(made: Sequence[PaperTable]) -> str:
    """Return the tables as CSV: a line per method, column and metric, empty where there is no number."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(("table", "protocol", "kind", "method", "parameters", "column", "metric", "value"))
    for table in made:
        metrics = _metrics(table)
        for line in table.lines:
            head = (table.key, table.protocol, line.kind, line.method.strip(), line.parameters)
            for column in table.columns:
                values = line.cells.get(column, {})
                writer.writerows((*head, column, metric, values.get(metric)) for metric in metrics)
    return out.getvalue()


def _title(table: PaperTable) -> str:
    if not table.key.startswith("tab"):
        return f"Dataset {table.key}: {table.title}. Protocol {table.protocol}"
    name = table.key.removeprefix("tab").replace("_", ", ")
    return f"Table {name}: {table.title}. Protocol {table.protocol}"


def _metrics(table: PaperTable) -> tuple[str, ...]:
    there = {metric for line in table.lines for cell in line.cells.values() for metric in cell}
    return tuple(metric for metric in METRICS if metric in there)


def _fact_names(table: PaperTable) -> list[str]:
    return sorted({name for line in table.lines if line.kind == "published" for name in line.facts})


def _head(table: PaperTable) -> list[str]:
    return ["", "method", "parameters", *table.columns, *_fact_names(table)]


def _rows(table: PaperTable) -> Iterable[list[str]]:
    metrics, names = _metrics(table), _fact_names(table)
    for line in table.lines:
        cells = [_cell(line.cells.get(column, {}), metrics, line.kind) for column in table.columns]
        empty = "" if line.kind == "difference" else EMPTY
        facts = (str(line.facts.get(name) or empty) for name in names)
        yield [line.kind, line.method, line.parameters, *cells, *facts]


def _cell(cell: Mapping[str, float | None], metrics: Sequence[str], kind: str) -> str:
    sign = "+" if kind == "difference" else ""
    values = [(cell.get(metric), 2 if metric == "psnr" else 3) for metric in metrics]
    parts = [EMPTY if value is None else f"{value:{sign}.{digits}f}" for value, digits in values]
    return EMPTY if set(parts) == {EMPTY} else " / ".join(parts)
